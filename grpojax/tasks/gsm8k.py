"""GSM8K: grade-school word problems (arXiv 2110.14168), read through TFDS without TensorFlow.

The user names a folder with `train.jsonl` and `test.jsonl` as published; TFDS turns them into
records with random access, kept under a digest of the files, so that changed files never meet old
records.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import NUMBER, canonical, last_number
from grpojax.rewards.format import layout_followed
from grpojax.rewards.language import language_consistency
from grpojax.task import Example, Task

FILES = {"train": "train.jsonl", "test": "test.jsonl"}
VALIDATION = 256  # examples cut from the front of train.jsonl, and at most an eighth of it
PROMPT = (
    "{question}\n"
    "Reason step by step between <think> and </think>, "
    "then give the number alone between <answer> and </answer>.\n"
)
SOLUTION = re.compile(r"(?P<reasoning>.*)####\s*(?P<number>" + NUMBER.pattern + r")\s*", re.DOTALL)
CALCULATOR = re.compile(r"<<[^<>]*>>")


def make(data: DataConfig) -> Task:
    """The task, from the two files in `data.dir`; its records are kept in `data.cache`.

    Raises:
      ValueError: a file is missing or empty, a line is not a problem with its solution, or the
        cache cannot be written.
    """
    records = prepare(data)
    train = read_examples(records, "train", first_id=0)
    held_out = min(VALIDATION, len(train) // 8)
    return Task(
        splits={
            "train": train[held_out:],
            "validation": train[:held_out],
            "test": read_examples(records, "test", first_id=len(train)),
        },
        rewards={
            "accuracy": last_number,
            "format": layout_followed,
            "language": language_consistency("latin"),
        },
    )


class ProblemRecords(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The published files as TFDS records, one for each line, in the lines' order."""

    name = "gsm8k"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "train.jsonl and test.jsonl, as published"
    # Nothing is downloaded, so there are no checksums; looking for them would import a package that
    # TFDS does not install.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({"question": text, "answer": text})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        folder = dl_manager.manual_dir
        return {split: self._generate_examples(folder / FILES[split]) for split in FILES}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
        return read_problems(path)


def prepare(data: DataConfig) -> ProblemRecords:
    """The records of the files in `data.dir`, written unless the cache holds those of these bytes.

    Raises:
      ValueError: see `make`.
    """
    folder, digest = Path(data.dir).expanduser(), hashlib.sha256()
    for file in FILES.values():
        given = data.dir and (folder / file).is_file()
        content = (folder / file).read_bytes() if given else b""
        if not content:
            raise ValueError(
                f"data.dir must be a folder with GSM8K's {' and '.join(FILES.values())}, as "
                f"published, got {data.dir!r}: put {file} there"
            )
        digest.update(hashlib.sha256(content).digest())
    place = Path(data.cache).expanduser() / f"gsm8k-{digest.hexdigest()[:16]}"
    try:
        return write_records(folder, place)
    except OSError as error:
        with contextlib.suppress(OSError):
            # Another process may have written the same records in the meantime.
            return write_records(folder, place)
        raise ValueError(
            f"data.cache must be a folder to write in, got {data.cache!r}: {error}"
        ) from error


def write_records(folder: Path, place: Path) -> ProblemRecords:
    """The records kept in `place`, made from the files in `folder` if there are none."""
    records = ProblemRecords(data_dir=place, file_format="array_record")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what it is about to do
        records.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)
        )
    return records


def read_problems(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The problems of a jsonl file, each with its line's index.

    Raises:
      ValueError: a line is not an object with the texts `question` and `answer`, the latter ending
        in `#### number`.
    """
    with path.open(encoding="utf-8") as lines:
        for index, line in enumerate(lines):
            try:
                problem = json.loads(line)
                question, answer = problem["question"].strip(), problem["answer"]
                if not SOLUTION.fullmatch(answer):
                    raise ValueError("the answer ends otherwise")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {index + 1} of {path} must hold a question and an answer that ends in "
                    f"'#### number', got {line.strip()[:60]!r} ({type(error).__name__}: {error})"
                ) from error
            yield index, {"question": question, "answer": answer}


def read_examples(records: ProblemRecords, split: str, first_id: int) -> list[Example]:
    """The examples of a split of the files, with ids counted from `first_id`."""
    source = records.as_data_source(split)
    return [example(first_id + index, **source[index]) for index in range(len(source))]


def example(id: int, question: bytes, answer: bytes) -> Example:
    """A record as an example, with the published solution as the reasoning to imitate."""
    match = SOLUTION.fullmatch(answer.decode())
    reasoning, number = CALCULATOR.sub("", match["reasoning"]).strip(), canonical(match["number"])
    return Example(
        id=id,
        prompt=PROMPT.format(question=question.decode()),
        answer=number,
        completion=f"<think>{reasoning}</think><answer>{number}</answer>",
    )
