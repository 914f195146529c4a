"""Storage: where a run directory is, on a file system or in a bucket of Google Cloud Storage.

A bucket holds objects, each written whole or not at all. It has no folders, only names that begin
alike, and nothing in it is appended to or renamed in one go.
"""

import base64
import contextlib
import importlib.util
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from etils import epath

from grpojax.checks import require

Place = Path | epath.Path  # of a file or a folder, on a file system or in a bucket


def place(name: str | Place) -> Place:
    """The path that `name` gives, as on a file system or as gs://BUCKET/FOLDER.

    Raises:
      ValueError: it is an address of another kind, or the extra `gcs` is not installed.
    """
    text = os.fspath(name)
    if "://" not in text:
        return Path(text)
    require(
        re.match(r"gs://[^/]+/+[^/]", text) is not None,
        f"a run directory must be on a file system or at gs://BUCKET/FOLDER, got {text}",
    )
    require(
        importlib.util.find_spec("gcsfs") is not None,
        f"{text} needs the extra gcs; install it: pip install 'grpojax[gcs]'",
    )
    import fsspec

    # Other hosts write there too: every listing is asked for anew.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def in_bucket(path: Place) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith("gs://")


def check_reachable(folder: Place) -> None:
    """Raises ValueError if `folder` is in a bucket that does not answer, or not to this user."""
    if in_bucket(folder):
        with reaching(folder):
            folder.exists()


def require_folder(folder: Place) -> None:
    """Raises ValueError unless `folder` is there."""
    check_reachable(folder)
    require(
        folder.is_dir(), f"folder {folder} does not exist; name a run directory, such as runs/NAME"
    )


@contextlib.contextmanager
def reaching(folder: Place) -> Iterator[None]:
    """Makes a bucket's errors a ValueError of one line."""
    try:
        yield
    except Exception as error:  # of many libraries, with no class in common
        if not in_bucket(folder):
            raise
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(
            f"{folder} cannot be used ({why}); create its bucket, and let this user read and write "
            "there (gcloud auth application-default login, roles/storage.objectUser)"
        ) from error


def make_folder(folder: Place) -> None:
    """Makes a folder and those around it; in a bucket there is nothing to make."""
    if not in_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: Place) -> None:
    """Deletes a folder and all in it."""
    folder.rmtree() if in_bucket(folder) else shutil.rmtree(folder)


def files_in(folder: Place) -> dict[str, str | None]:
    """Every file below `folder`, by relative name, in order, with the MD5 that the bucket has of it
    (in hexadecimal; None where it has none, and on a file system)."""
    if not in_bucket(folder):
        files = (file for file in folder.rglob("*") if not file.is_dir())
        return dict.fromkeys(sorted(file.relative_to(folder).as_posix() for file in files))
    import fsspec

    found = fsspec.filesystem("gcs").find(os.fspath(folder), detail=True)
    start = len(os.fspath(folder).removeprefix("gs://").rstrip("/")) + 1

    def md5(about: dict) -> str | None:
        known = about.get("md5Hash")
        return base64.b64decode(known).hex() if known else None

    return {name[start:]: md5(about) for name, about in sorted(found.items())}


def replace(path: Place, content: bytes) -> None:
    """Writes a file so that a kill at any moment leaves the old one or the new one."""
    if in_bucket(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_arrays(path: Place, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file, which is there when this returns."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    replace(path, content.getvalue())


def sync(entry: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_to_append(path: Place, content: bytes) -> io.BufferedIOBase:
    """A file that begins with `content` and can be added to; it is there after each `flush`."""
    replace(path, content)
    return _Object(path, content) if in_bucket(path) else path.open("ab")


class _Object(io.BytesIO):
    """An object that grows: each flush writes all of it again."""

    def __init__(self, path: Place, content: bytes):
        super().__init__()
        self.path = path
        self.write(content)

    def flush(self) -> None:
        replace(self.path, self.getvalue())


@contextlib.contextmanager
def written_locally(folder: Place) -> Iterator[Path]:
    """A folder for what writes to a file system only; in the end its files are in `folder`."""
    if not in_bucket(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            yield Path(scratch)
        finally:
            mirror(Path(scratch), folder)


def mirror(local: Path, folder: Place) -> None:
    """Copies all files in `local` to `folder`, if that is another."""
    if local != folder:
        for name in files_in(local):
            replace(folder / name, (local / name).read_bytes())
