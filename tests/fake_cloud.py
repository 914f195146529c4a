"""What the parts of the fake Google Cloud share: its folder, its slices, how it answers."""

import contextlib
import glob
import json
import os
import shutil
import signal
import sys
import time

CLOUD = os.environ["FAKE_CLOUD"]


def make_node(cloud, name, kind, engine=False):
    prefix, _, number = kind.partition("-")
    chips = int(number) // (1 if prefix in ("v5litepod", "v6e") else 2)
    hosts = 1 if chips <= (8 if prefix in ("v5litepod", "v6e") else 4) else chips // 4
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(read(f"{CLOUD}/clock"))))
    cloud["nodes"][name] = {"state": "READY", "type": kind, "hosts": hosts, "since": since}
    cloud["nodes"][name]["engine"] = engine
    for worker in range(hosts):
        os.makedirs(home(name, worker), exist_ok=True)


def take(cloud, queued, node):
    """Google Cloud takes every slice away, with its disks."""
    kill(cloud)
    for found in cloud["queued"].values():
        found["state"] = queued if found["state"] == "ACTIVE" else "FAILED"
    for name in list(cloud["nodes"]):
        shutil.rmtree(f"{CLOUD}/homes/{name}", ignore_errors=True)
        if node is None:
            del cloud["nodes"][name]
        else:
            cloud["nodes"][name]["state"] = node


def wipe(cloud, name):
    kill(cloud)
    cloud["nodes"].pop(name, None)
    shutil.rmtree(f"{CLOUD}/homes/{name}", ignore_errors=True)


def kill(cloud):
    """Every training dies without a word, as does its supervisor."""
    for path in glob.glob(f"{CLOUD}/homes/*/*/grpojax/attempts/*/pid"):
        if not os.path.exists(os.path.join(os.path.dirname(path), "exit")):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(int(read(path))), signal.SIGKILL)


def home(name, worker):
    return f"{CLOUD}/homes/{name}/{worker}"


def say(value):
    print(json.dumps(value))
    return 0


def fail(said, code=1):
    print(f"ERROR: (gcloud) {said}", file=sys.stderr)
    return code


def read(path):
    with open(path) as file:
        return file.read()


def put(path, text):
    with open(f"{path}.tmp{os.getpid()}", "w") as file:
        file.write(text)
    os.replace(file.name, path)


def append(name, value):
    with open(f"{CLOUD}/{name}", "a") as file:
        file.write(json.dumps(value) + "\n")
