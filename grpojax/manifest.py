"""Manifest: what seals a checkpoint, a digest of every file in it and one of themselves.

Orbax does not notice a flipped bit; the digests do. `sha256sum -c manifest.txt` in a checkpoint
checks one by hand. In a bucket they are the MD5s that it keeps of its objects, so that none is
read again; in a copy elsewhere `md5sum -c` checks those.
"""

import hashlib
import re
from typing import Literal

from grpojax.storage import Place, files_in, in_bucket, replace, sync

MANIFEST = "manifest.txt"


def write_manifest(path: Place, step: str, accuracy: float | None) -> None:
    """Seals `path`, the folder of checkpoint `step`, and puts all of it on disk."""
    lines = f"# grpojax checkpoint, step {step}, accuracy {accuracy}\n"
    digests = digests_of(path, "md5" if in_bucket(path) else "sha256")
    lines += "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    replace(path / MANIFEST, (lines + seal(lines)).encode())
    if not in_bucket(path):
        for entry in (*path.rglob("*"), path):
            sync(entry)


def read_manifest(path: Place) -> tuple[float | None, dict[str, str]]:
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
    return accuracy, {name: digest for digest, _, name in (row.partition("  ") for row in rows)}


def damage_of(path: Place) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if every file is as it was saved."""
    try:
        _, saved = read_manifest(path)
        kind = "md5" if all(len(digest) == 32 for digest in saved.values()) else "sha256"
        found = digests_of(path, kind)
    except (OSError, ValueError) as error:
        return str(error)
    for name in sorted(saved.keys() | found.keys()):
        if saved.get(name) != found.get(name):
            here = "changed since it was written" if name in saved else "not in the manifest"
            return f"{name}: {here if name in found else 'missing'}"
    return None


def digests_of(path: Place, kind: Literal["sha256", "md5"]) -> dict[str, str]:
    """Digest of every file below `path` but the manifest, by relative name, in order."""
    digests = {}
    for name, md5 in files_in(path).items():
        if name != MANIFEST:
            digests[name] = md5 if md5 and kind == "md5" else digest_of(path / name, kind)
    return digests


def digest_of(file: Place, kind: str) -> str:
    """Digest of a file's content, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, kind).hexdigest()


def seal(lines: str) -> str:
    """The last line of a manifest."""
    return f"# sha256 of the lines above: {hashlib.sha256(lines.encode()).hexdigest()}\n"
