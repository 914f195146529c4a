"""Stand-ins for what a worker of the fake Google Cloud calls: pip, uv and grpojax.

    python -E -S fake_worker.py pip|uv|grpojax ARGUMENTS ...

fake_gcloud.py says what lies in $FAKE_CLOUD.
"""

import glob
import json
import os
import signal
import sys

from fake_cloud import CLOUD, append, put, read

HERE = os.path.abspath(__file__)


def fake_pip(argv):
    """`python3 -m pip install --target DIR uv==...`"""
    tool(f"{argv[argv.index('--target') + 1]}/bin/uv", "uv")
    return 0


def fake_uv(argv):
    append("installs.jsonl", argv)
    if argv[0] == "venv":
        tool(f"{argv[-1]}/bin/python", "python")
        return 0
    cloud = json.loads(read(f"{CLOUD}/cloud.json"))
    if cloud["broken_install"]:
        print("error: No solution found when resolving dependencies", file=sys.stderr)
        return 1
    source = argv[-1].partition("[")[0]
    assert os.path.exists(f"{source}/pyproject.toml"), "the archive is not unpacked"
    tool(os.path.join(os.path.dirname(argv[argv.index("--python") + 1]), "grpojax"), "grpojax")
    return 0


def tool(path, kind):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    put(path, f'#!/bin/sh\nexec "{sys.executable}" -E -S "{HERE}" {kind} "$@"\n')
    os.chmod(path, 0o755)


def fake_training(argv):
    """Leaves checkpoints and ends as cloud.json says: {"steps": n, "exit": code} of each start."""
    worker, there = os.environ["FAKE_WORKER"], os.environ["HOME"] + "/grpojax/attempts"
    append(
        "trainings.jsonl",
        {
            "worker": worker,
            "argv": argv,
            "cwd": os.getcwd(),
            "env": {k: v for k, v in os.environ.items() if k[:4] != "FAKE"},
        },
    )
    counter = f"{CLOUD}/starts-{worker}"
    nth = int(read(counter)) if os.path.exists(counter) else 0
    put(counter, str(nth + 1))
    plans = json.loads(read(f"{CLOUD}/cloud.json"))["trainings"]
    plan = plans[min(nth, len(plans) - 1)]
    plan = plan | plan.get("workers", {}).get(worker, {})
    workdir = argv[argv.index("--workdir") + 1]
    folder = f"{CLOUD}/gs/{workdir[5:]}" if workdir.startswith("gs://") else workdir
    print(f"training {nth + 1} on worker {worker}\x1b[2J", flush=True)
    if worker == "0":
        checkpoint(folder, plan.get("steps", 0))
    if plan.get("hang"):
        signal.signal(signal.SIGTERM, lambda *_: None if plan["hang"] == "deaf" else sys.exit(75))
        put(f"{there}/{max(map(int, os.listdir(there)))}/hangs", "")
        while True:
            signal.pause()
    return plan["exit"]


def checkpoint(folder, steps):
    if not steps:
        return
    seals = glob.glob(f"{folder}/checkpoints/*/manifest.txt")
    newest = max((int(path.split("/")[-2]) for path in seals), default=0)
    os.makedirs(f"{folder}/checkpoints/{newest + steps}")
    put(f"{folder}/checkpoints/{newest + steps}/manifest.txt", "sealed")


if __name__ == "__main__":
    kinds = {"pip": fake_pip, "uv": fake_uv, "grpojax": fake_training}
    sys.exit(kinds[sys.argv[1]](sys.argv[2:]))
