"""A stand-in for Google Cloud: `gcloud` over slices kept in a folder, with failures by a script.

    python -E -S fake_gcloud.py ARGUMENTS ...

It stands where somebody else's systems begin. A worker is a folder, and what ssh is given really
runs there through `sh`. $FAKE_CLOUD is the folder of all: cloud.json (slices, rules, counts),
calls.jsonl (every call), homes/NAME/WORKER, gs/ (buckets), trainings.jsonl (how the training was
started).

A rule is [event, nth, action]: at the nth occurrence (from 1) of the event the action happens.
"""

import fcntl
import glob
import json
import shutil
import subprocess
import sys
import time

from fake_cloud import CLOUD, append, fail, home, kill, make_node, put, read, say, take, wipe

SAID = {
    "quota": "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptible' has been exceeded. Limit: 0",
    "stockout": "There is no more capacity in the zone",
    "denied": "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied (or it may not exist).",
    "exists": "ALREADY_EXISTS: Resource already exists",
    "error": "INTERNAL: An internal error has occurred",
}


def main(argv):
    with open(f"{CLOUD}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cloud = json.loads(read(f"{CLOUD}/cloud.json"))
        words = [word for word in argv if not word.startswith("-")]
        flags = dict(w[2:].partition("=")[::2] for w in argv if w.startswith("--"))
        event = event_of(words, flags)
        stdin = sys.stdin.read() if not sys.stdin.isatty() else ""
        append("calls.jsonl", {"event": event, "argv": argv, "stdin": stdin})
        nth = cloud["counts"][event] = cloud["counts"].get(event, 0) + 1
        actions = [do for on, at, do in cloud["rules"] if on == event and at in (nth, 0)]
        put(f"{CLOUD}/cloud.json", json.dumps(cloud))  # counted even if this call is killed
        try:
            code = act(cloud, actions[0] if actions else "", event, words, flags, argv, stdin)
        finally:
            put(f"{CLOUD}/cloud.json", json.dumps(cloud))
    return code


def event_of(words, flags):
    """What a call is about: `tpu-vm describe`, `ssh poll`."""
    if "ssh" in words:
        return f"ssh {flags['command'].split()[3]}" if "command" in flags else "ssh"
    verbs = {"create", "describe", "delete", "list", "scp", "ls", "list-instances"}
    at = next(i for i, word in enumerate(words) if word in verbs)
    return f"{words[at - 1]} {words[at]}"


def act(cloud, action, event, words, flags, argv, stdin):
    name, _, detail = action.partition(":")
    if name == "hang":
        time.sleep(600)
    if name in SAID:
        return fail(SAID[name])
    if name == "255":
        return fail("[/usr/bin/ssh] exited with return code [255].", 255)
    if name == "trouble":
        say({"grpojax": "worker", "error": "OSError: [Errno 28] No space left on device"})
        return 3
    if name == "preempt":
        take(cloud, "SUSPENDED", "PREEMPTED")
    if name == "vanish":
        take(cloud, "ACTIVE", None)
    if name == "queue":
        cloud["queued"][words[-1]]["state"] = detail
    if name == "kill":
        kill(cloud)
    handler = globals()["on_" + event.split()[0].replace("-", "_")]
    code = handler(
        cloud, event.split()[-1], words, flags, stdin, detail if name == "worker" else ""
    )
    return fail("the answer was lost", 255) if name == "lost" else code


def on_queued_resources(cloud, verb, words, flags, stdin, detail):
    name, queued = words[4] if len(words) > 4 else "", cloud["queued"]
    if verb == "list":
        return say(
            [
                {"name": f"projects/p/locations/z/queuedResources/{n}", "state": q}
                for n, q in queued.items()
            ]
        )
    if verb == "create":
        if name in queued:
            return fail(SAID["exists"])
        queued[name] = {"state": "WAITING_FOR_RESOURCES", "type": flags["accelerator-type"]}
        queued[name]["looks"] = cloud["waits"]
        return 0
    if name not in queued:
        return fail(f"NOT_FOUND: Resource '{name}' was not found")
    found = queued[name]
    if verb == "delete":
        if found["state"] == "ACTIVE" and "force" not in flags:
            return fail("FAILED_PRECONDITION: delete with --force")
        del queued[name]
        if not cloud["leave_node"]:
            wipe(cloud, name)
        return 0
    if found["state"] == "WAITING_FOR_RESOURCES" and found["looks"] == 0:
        found["state"] = "ACTIVE"
        make_node(cloud, name, found["type"])
    elif found["state"] == "WAITING_FOR_RESOURCES":
        found["looks"] -= 1
    node = {"node": {"acceleratorType": found["type"]}}
    return say({"state": {"state": found["state"]}, "tpu": {"nodeSpec": [node]}})


def on_tpu_vm(cloud, verb, words, flags, stdin, detail):
    name, nodes = words[4] if len(words) > 4 else "", cloud["nodes"]
    if verb == "list":
        rows = [
            {"name": f"projects/p/locations/z/nodes/{n}", "state": v["state"]}
            for n, v in nodes.items()
        ]
        return say(rows)
    if verb == "create":
        make_node(cloud, name, flags["accelerator-type"])
        return 0
    if verb == "scp":
        name = words[-1].rstrip(":")
    if name not in nodes:
        return fail(f"NOT_FOUND: Resource '{name}' was not found")
    if verb == "delete":
        wipe(cloud, name)
        return 0
    node = nodes[name]
    if verb == "scp":
        if node["state"] != "READY":
            return fail(f"the TPU is in state {node['state']} and cannot be reached")
        for worker in range(node["hosts"]):
            for source in words[4:-1]:
                shutil.copy(source, home(name, worker))
        return 0
    kind = f"projects/p/locations/z/acceleratorTypes/{node['type']}"
    return say(
        {
            "state": node["state"],
            "acceleratorType": kind,
            "createTime": node["since"],
            "networkEndpoints": [{}] * node["hosts"],
        }
    )


def on_ssh(cloud, verb, words, flags, stdin, detail):
    name = words[words.index("ssh") + 1]
    group, worker = name, flags.get("worker", "0")
    if "tpus" not in words and name not in cloud["nodes"]:
        group, _, worker = name.rpartition("-")
    node = cloud["nodes"].get(group)
    if node is None:
        return fail(f"NOT_FOUND: Resource '{name}' was not found")
    if node["state"] != "READY":
        return fail(f"the TPU is in state {node['state']} and cannot be reached")
    chosen = range(node["hosts"]) if worker == "all" else [int(n) for n in worker.split(",")]
    codes = []
    for number in chosen:
        if detail == str(number):  # this one does not answer
            codes.append(255)
            continue
        own = {"HOME": home(group, number), "PATH": f"{CLOUD}/worker_bin:/usr/bin:/bin"}
        own |= {"FAKE_CLOUD": CLOUD, "FAKE_WORKER": str(number), "LC_ALL": "C.UTF-8"}
        command = ["sh", "-c", flags["command"]]
        done = subprocess.run(
            command, cwd=own["HOME"], env=own, input=stdin.encode(), capture_output=True
        )
        sys.stdout.write(done.stdout.decode(errors="replace"))
        sys.stderr.write(done.stderr.decode(errors="replace"))
        codes.append(done.returncode)
    return next((code for code in codes if code), 0)


def on_storage(cloud, verb, words, flags, stdin, detail):
    found = sorted(glob.glob(f"{CLOUD}/gs/{words[-1].removeprefix('gs://')}"))
    if not found:
        return fail("One or more URLs matched no objects.")
    print("\n".join("gs://" + path.removeprefix(f"{CLOUD}/gs/") for path in found))
    return 0


def on_instances(cloud, verb, words, flags, stdin, detail):
    nodes = cloud["nodes"]
    if verb == "list":
        return say([{"name": n, "status": "RUNNING"} for n, v in nodes.items() if v["engine"]])
    name = words[3]
    if verb == "create":
        make_node(cloud, name, "tpu7x-8", engine=True)
        return 0
    if name not in nodes:
        return fail(f"The resource 'projects/p/zones/z/instances/{name}' was not found")
    if verb == "delete":
        wipe(cloud, name)
        return 0
    status = "RUNNING" if nodes[name]["state"] == "READY" else "TERMINATED"
    return say({"status": status, "creationTimestamp": nodes[name]["since"]})


def on_managed(cloud, verb, words, flags, stdin, detail):
    name = words[4]
    if verb == "create":
        make_node(cloud, name, f"tpu7x-{8 * int(flags['size'])}", engine=True)
        return 0
    if name not in cloud["nodes"]:
        return fail(f"The resource 'instanceGroupManagers/{name}' was not found")
    if verb == "delete":
        wipe(cloud, name)
        return 0
    node = cloud["nodes"][name]
    if verb == "list-instances":
        hosts = range(node["hosts"]) if node["state"] == "READY" else range(node["hosts"] - 1)
        return say(
            [
                {"instance": f"zones/z/instances/{name}-{i}", "instanceStatus": "RUNNING"}
                for i in hosts
            ]
        )
    return say({"name": name, "creationTimestamp": node["since"]})


def on_thing(cloud, verb, words, flags, stdin, detail):
    """A policy or a template: there, or not."""
    things, name = cloud["things"], f"{words[1]} {words[-1]}"
    if verb == "create":
        if name in things:
            return fail(SAID["exists"])
        things.append(name)
        return 0
    if name not in things:
        return fail(f"The resource '{name}' was not found")
    if verb == "delete":
        things.remove(name)
        return 0
    return say({"name": name})


on_resource_policies = on_instance_templates = on_workload_policy = on_thing


def on_compute(cloud, verb, words, flags, stdin, detail):  # compute scp FILES WORKER:
    name = words[-1].rstrip(":")
    group, worker = name, 0
    if name not in cloud["nodes"]:
        group, _, worker = name.rpartition("-")
    for source in words[2:-1]:
        shutil.copy(source, home(group, worker))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
