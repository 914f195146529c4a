"""Records: the rows of a data set's files, with random access, through TFDS without TensorFlow.

The user names a folder with the files as published; nothing is downloaded. TFDS turns each row into
a record, kept under a digest of the files, so that changed files never meet old records. A row that
is no text becomes a record too, with its fault, so that it is counted also when the records are
read again.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import tensorflow_datasets as tfds

from grpojax.config import DataConfig

LONGEST = 10_000_000  # bytes of a row
TOO_LONG = f"is longer than {LONGEST:,} bytes"
LARGEST = 256_000_000  # bytes of a file that is one JSON list, which is read whole


class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The files at `paths` as TFDS records, one for each row, in their order; a split a file."""

    name = "rows"
    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded, so there are no checksums; looking for them would import a package that
    # TFDS does not install.
    url_infos = None

    def __init__(self, paths: Sequence[Path], place: Path):
        self.paths = paths
        super().__init__(data_dir=place, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({"text": text, "fault": text})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {f"file{i}": self._generate_examples(path) for i, path in enumerate(self.paths)}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
        for index, (text, fault) in enumerate(read_rows(path)):
            yield index, {"text": text, "fault": fault}


def read_records(
    data: DataConfig, name: str, files: Sequence[str]
) -> tuple[dict[str, list[tuple[str, str]]], dict[str, str]]:
    """The rows of each file in `data.dir`, as (text, fault), and each file's SHA-256.

    `name` is what the data set is called in a message and in `data.cache`, where records are kept.

    Raises:
      ValueError: a file is missing or empty, is not the one of `data.sha256`, or the cache cannot
        be written.
    """
    folder, digests = Path(data.dir).expanduser(), {}
    for file in files:
        path = folder / file
        if not (data.dir and path.is_file() and path.stat().st_size):
            raise ValueError(
                f"data.dir must be a folder with {name}'s {' and '.join(files)}, as published, "
                f"got {data.dir!r}: put {file} there"
            )
        with path.open("rb") as content:
            digests[file] = hashlib.file_digest(content, "sha256").hexdigest()
    for file, digest in data.sha256.items():
        if file not in digests:
            raise ValueError(
                f"data.sha256 must be of {name}'s files {', '.join(files)}, got {file!r}"
            )
        if digests[file] != digest.lower():
            raise ValueError(
                f"{folder / file} must have the SHA-256 {digest} of data.sha256, got "
                f"{digests[file]}: it is another file"
            )
    both = hashlib.sha256(" ".join(f"{Path(f).suffix} {digests[f]}" for f in files).encode())
    place = Path(data.cache).expanduser() / f"{name.lower()}-{both.hexdigest()[:16]}"
    paths = [folder / file for file in files]
    try:
        records = write_records(paths, place)
    except OSError as error:
        try:
            # Another process may have written the same records in the meantime.
            records = write_records(paths, place)
        except OSError:
            raise ValueError(
                f"data.cache must be a folder to write in, got {data.cache!r}: {error}"
            ) from error
    rows = {}
    for i, file in enumerate(files):
        source = records.as_data_source(f"file{i}")
        read = (source[index] for index in range(len(source)))
        rows[file] = [(record["text"].decode(), record["fault"].decode()) for record in read]
    return rows, digests


def write_records(paths: Sequence[Path], place: Path) -> Records:
    """The records kept in `place`, made from the files if there are none."""
    records = Records(paths, place)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what it is about to do
        records.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return records


def read_rows(path: Path) -> Iterator[tuple[str, str]]:
    """The rows of a file, each as its text and "", or as "" and what is wrong with it.

    Rows are lines; those of a `.json` file that begins with `[` are the elements of that list, each
    as JSON again. No more of a line than `LONGEST` bytes is ever held.

    Raises:
      ValueError: a JSON list is larger than `LARGEST`, or is not JSON.
    """
    with path.open("rb") as file:
        if path.suffix == ".json" and file.read(1) == b"[":
            for text in map(json.dumps, read_list(path)):
                yield (text, "") if len(text) <= LONGEST else ("", TOO_LONG)
            return
        file.seek(0)
        for line, whole in bounded_lines(file):
            if not whole:
                yield "", TOO_LONG
            elif not line.strip():
                yield "", "is empty"
            elif b"\0" in line:
                yield "", "holds a NUL"
            else:
                try:
                    yield line.decode(), ""
                except UnicodeDecodeError:
                    yield "", "is not UTF-8"


def read_list(path: Path) -> list:
    """The elements of a file that is one JSON list."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} must have at most {LARGEST:,} bytes to be read as one JSON list")
    try:
        elements = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} begins as a JSON list but is none: {error}") from error
    return elements


def bounded_lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """The lines of a file without their ends, and whether they are whole: those of more than
    `LONGEST` bytes are passed over, and given as nothing."""
    while line := file.readline(LONGEST + 2):
        # A line ends in "\n" or "\r\n", which the bytes above allow for.
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        whole = len(content) <= LONGEST
        while not line.endswith(b"\n") and (line := file.readline(65536)):
            whole = False
        yield (content if whole else b""), whole
