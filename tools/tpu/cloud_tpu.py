"""Cloud TPU VMs: `gcloud compute tpus`, with or without a queue in front of the slice."""

from typing import Any

from tools.tpu.condition import Condition, seconds_of
from tools.tpu.gcloud import World, look
from tools.tpu.slices import slice_of
from tools.tpu.state import State

TPUS = ["compute", "tpus"]

# States of a queued resource and of a node, as of the TPU API v2; others count as waiting.
GONE = {"SUSPENDING", "SUSPENDED", "FAILED", "DELETING", "PREEMPTED", "TERMINATED"} | {
    "STOPPING",
    "STOPPED",
    "HIDING",
    "HIDDEN",
}


def create(state: State) -> list[list[str]]:
    """The commands that ask for the slice; they return before it is there."""
    generation = slice_of(state.slice).generation
    version = state.runtime_version or generation.runtime_version
    spot = ["--spot"] if state.spot else []
    kind = f"--accelerator-type={state.slice}"
    if state.queued:
        ask = ["queued-resources", "create", state.name, f"--node-id={state.name}", kind]
        return [[*TPUS, *ask, f"--runtime-version={version}", *spot, "--async", *place(state)]]
    ask = ["tpu-vm", "create", state.name, kind, f"--version={version}"]
    return [[*TPUS, *ask, *spot, "--async", *place(state)]]


def observe(world: World, state: State) -> Condition:
    """How the slice stands. Raises GcloudError."""
    if state.queued:
        queued = describe(world, state, "queued-resources")
        if queued is None:
            return Condition(kind="absent", said="not there")
        said = queued.get("state", {}).get("state", "UNKNOWN")
        specs = queued.get("tpu", {}).get("nodeSpec", [{}])
        kind = specs[0].get("node", {}).get("acceleratorType", "")
        if said in GONE or said != "ACTIVE":
            return Condition(kind="gone" if said in GONE else "waiting", said=said, slice=kind)
    node = describe(world, state, "tpu-vm")
    if node is None:  # of a queued resource that is active: it has been deleted by itself
        kind = "gone" if state.queued else "absent"
        return Condition(kind=kind, said="no node" if state.queued else "not there")
    said = node.get("state", "UNKNOWN")
    workers = tuple(str(i) for i in range(len(node.get("networkEndpoints", []))))
    return Condition(
        kind="gone" if said in GONE else "ready" if said == "READY" else "waiting",
        said=said,
        slice=node.get("acceleratorType", "").rpartition("/")[2],
        workers=workers,
        since=seconds_of(node.get("createTime", "")),
    )


def describe(world: World, state: State, what: str) -> dict[str, Any] | None:
    """What is known of the queued resource or the node, None if there is none."""
    return look(world, [*TPUS, what, "describe", state.name, "--format=json", *place(state)])


def remains(world: World, state: State) -> list[list[str]] | None:
    """The commands that delete what is left of the slice; empty while that is under way, None once
    nothing is left. Raises GcloudError."""
    queued = describe(world, state, "queued-resources") if state.queued else None
    if queued is not None:
        if queued.get("state", {}).get("state") == "DELETING":
            return []
        delete = ["queued-resources", "delete", state.name, "--force", "--quiet"]
        return [[*TPUS, *delete, *place(state)]]
    # A node may outlive the queued resource that brought it.
    node = describe(world, state, "tpu-vm")
    if node is None:
        return None
    if node.get("state") == "DELETING":
        return []
    return [[*TPUS, "tpu-vm", "delete", state.name, "--quiet", *place(state)]]


def ssh(state: State, workers: tuple[str, ...], command: str) -> list[list[str]]:
    """The calls that run `command`, a string for a shell, on `workers`."""
    which = "all" if workers == state.workers else ",".join(workers)
    call = ["tpu-vm", "ssh", state.name, f"--worker={which}", f"--command={command}", "--quiet"]
    return [[*TPUS, *call, *place(state)]]


def copy(state: State, files: list[str]) -> list[list[str]]:
    """The calls that copy `files`, of the current folder, to the home of every worker."""
    call = ["tpu-vm", "scp", *files, f"{state.name}:", "--worker=all", "--quiet"]
    return [[*TPUS, *call, *place(state)]]


def listing(project: str, zone: str) -> list[list[str]]:
    """The calls that list what is in a zone."""
    where = [f"--project={project}", f"--zone={zone}", "--format=json"]
    return [[*TPUS, what, "list", *where] for what in ("queued-resources", "tpu-vm")]


def place(state: State) -> list[str]:
    return [f"--project={state.project}", f"--zone={state.zone}"]
