"""Manifest: what seals a checkpoint, a digest of every file in it and one of themselves.

Orbax does not notice a flipped bit; the digests do. `sha256sum -c manifest.txt` in a checkpoint
checks one by hand.
"""

import hashlib
import os
import re
from pathlib import Path

MANIFEST = "manifest.txt"


def write_manifest(path: Path, step: str, accuracy: float | None) -> None:
    """Seals `path`, the folder of checkpoint `step`, and puts all of it on disk."""
    lines = f"# grpojax checkpoint, step {step}, accuracy {accuracy}\n"
    lines += "".join(f"{digest}  {name}\n" for name, digest in digests_of(path).items())
    (path / MANIFEST).write_text(lines + seal(lines))
    for entry in (*path.rglob("*"), path):
        sync(entry)


def read_manifest(path: Path) -> tuple[float | None, dict[str, str]]:
    """The accuracy, and digests by file name; ValueError or OSError says what is wrong."""
    text = (path / MANIFEST).read_bytes().decode(errors="replace")
    lines = text.rpartition("# sha256 of")[0]
    if text != lines + seal(lines):
        raise ValueError(f"{MANIFEST}: changed since it was written")
    head, *rows = lines.splitlines()
    match = re.fullmatch(r"# grpojax checkpoint, step (\d+), accuracy (\S+)", head)
    if match is None or match[1] != path.name:
        raise ValueError(f"{MANIFEST}: belongs to another checkpoint ({head!r})")
    accuracy = None if match[2] == "None" else float(match[2])
    return accuracy, {row[66:]: row[:64] for row in rows}


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if every file is as it was saved."""
    try:
        _, saved = read_manifest(path)
        found = digests_of(path)
    except (OSError, ValueError) as error:
        return str(error)
    for name in sorted(saved.keys() | found.keys()):
        if saved.get(name) != found.get(name):
            here = "changed since it was written" if name in saved else "not in the manifest"
            return f"{name}: {here if name in found else 'missing'}"
    return None


def digests_of(path: Path) -> dict[str, str]:
    """sha256 of every file below `path` but the manifest, by relative name, in order."""
    digests = {}
    for file in sorted(path.rglob("*")):
        if file != path / MANIFEST and not file.is_dir():
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            digests[file.relative_to(path).as_posix()] = digest
    return digests


def seal(lines: str) -> str:
    """The last line of a manifest."""
    return f"# sha256 of the lines above: {hashlib.sha256(lines.encode()).hexdigest()}\n"


def sync(entry: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
