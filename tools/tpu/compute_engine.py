"""Compute Engine: `gcloud compute`, which alone has tpu7x.

A slice of one host is an instance. One of several is a managed instance group under a workload
policy that states the topology, since only so the hosts get the links between their chips; the
group must not repair a host by itself, which would leave the slice (Compute Engine documentation,
"Create a MIG with multi-host TPU slice", in excerpts, 2026-11-29).
"""

from typing import Any

from tools.tpu.condition import Condition, seconds_of
from tools.tpu.gcloud import World, look
from tools.tpu.slices import slice_of
from tools.tpu.state import State

MACHINE = "tpu7x-standard-4t"  # 4 chips
IMAGES = "ubuntu-os-accelerator-images"
GROUPS = ["compute", "instance-groups", "managed"]
POLICIES = ["compute", "resource-policies"]
TEMPLATES = ["compute", "instance-templates"]
INSTANCES = ["compute", "instances"]
WAITING = {"PROVISIONING", "STAGING", "PENDING", ""}


def create(state: State) -> list[list[str]]:
    """The commands that ask for the slice, in order; they return before it is there."""
    found = slice_of(state.slice)
    version = state.runtime_version or found.generation.runtime_version
    shape = [
        f"--machine-type={MACHINE}",
        f"--image-project={IMAGES}",
        f"--image-family={version}",
        "--boot-disk-type=hyperdisk-balanced",  # other kinds cannot be attached
        "--boot-disk-size=200GB",
        "--maintenance-policy=TERMINATE",
        "--scopes=cloud-platform",
    ]
    if state.spot:
        shape += ["--provisioning-model=SPOT", "--instance-termination-action=STOP"]
    if found.hosts == 1:
        return [[*INSTANCES, "create", state.name, *shape, "--async", *place(state)]]
    region = region_of(state)
    policy = f"projects/{state.project}/regions/{region}/resourcePolicies/{state.name}"
    links = ["--type=HIGH_THROUGHPUT", f"--accelerator-topology={found.sides}"]
    hosts = [f"--size={found.hosts}", f"--template={state.name}", f"--workload-policy={policy}"]
    alone = "--default-action-on-vm-failure=do-nothing"
    return [
        [*POLICIES, "create", "workload-policy", state.name, *links, *regional(state)],
        [*TEMPLATES, "create", state.name, *shape, f"--project={state.project}"],
        [*GROUPS, "create", state.name, *hosts, alone, *place(state)],
    ]


def observe(world: World, state: State) -> Condition:
    """How the slice stands. Raises GcloudError."""
    hosts = slice_of(state.slice).hosts
    if hosts == 1:
        instance = ask(world, [*INSTANCES, "describe", state.name, *place(state)])
        if instance is None:
            return Condition(kind="absent", said="not there")
        found = [(state.name, instance.get("status") or "")]
        since = seconds_of(instance.get("creationTimestamp", ""))
    else:
        group = ask(world, [*GROUPS, "describe", state.name, *place(state)])
        if group is None:
            return Condition(kind="absent", said="not there")
        listed = ask(world, [*GROUPS, "list-instances", state.name, *place(state)]) or []
        names = [row.get("instance", "").rpartition("/")[2] for row in listed]
        found = sorted(zip(names, (row.get("instanceStatus") or "" for row in listed)))
        since = seconds_of(group.get("creationTimestamp", ""))
    statuses = {status for _, status in found}
    said = ", ".join(sorted(statuses)) or "no instance"
    if statuses == {"RUNNING"} and len(found) == hosts:
        workers = tuple(name for name, _ in found)
        return Condition(kind="ready", said=said, slice=state.slice, workers=workers, since=since)
    # A host that was there and is not: the others are no slice without it.
    broken = statuses - WAITING - {"RUNNING"} or (state.workers and len(found) < hosts)
    return Condition(kind="gone" if broken else "waiting", said=said, slice=state.slice)


def ask(world: World, command: list[str]) -> Any:
    """What `describe` or a listing says, None if there is no such thing."""
    return look(world, [*command, "--format=json"])


def remains(world: World, state: State) -> list[list[str]] | None:
    """The commands that delete what is left of the slice, None once nothing is left. Raises
    GcloudError."""
    if slice_of(state.slice).hosts == 1:
        kinds = [(INSTANCES, place(state))]
    else:  # what uses another comes first
        everywhere = [f"--project={state.project}"]
        kinds = [(GROUPS, place(state)), (TEMPLATES, everywhere), (POLICIES, regional(state))]
    left = [
        [*kind, "delete", state.name, "--quiet", *where]
        for kind, where in kinds
        if ask(world, [*kind, "describe", state.name, *where]) is not None
    ]
    return left or None


def ssh(state: State, workers: tuple[str, ...], command: str) -> list[list[str]]:
    """The calls that run `command`, a string for a shell, on `workers`."""
    call = [f"--command={command}", "--quiet", *place(state)]
    return [["compute", "ssh", worker, *call] for worker in workers]


def copy(state: State, files: list[str]) -> list[list[str]]:
    """The calls that copy `files`, of the current folder, to the home of every worker."""
    return [
        ["compute", "scp", *files, f"{worker}:", "--quiet", *place(state)]
        for worker in state.workers
    ]


def listing(project: str, zone: str) -> list[list[str]]:
    """The calls that list what is in a zone."""
    machine = f"--filter=zone:({zone}) AND machineType:{MACHINE}"
    return [[*INSTANCES, "list", f"--project={project}", machine, "--format=json"]]


def region_of(state: State) -> str:
    return state.zone.rpartition("-")[0]


def place(state: State) -> list[str]:
    return [f"--project={state.project}", f"--zone={state.zone}"]


def regional(state: State) -> list[str]:
    return [f"--project={state.project}", f"--region={region_of(state)}"]
