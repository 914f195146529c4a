"""Hostile answers: thousands of strings through every reward, which neither hang, run nor grow.

Where a limit ends the judge, the completion is invalid, never wrong.
"""

import random
import re
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from grpojax.config import JudgingConfig
from grpojax.rewards import compute_rewards
from grpojax.rewards.accuracy import exact_answer, first_integer, last_number
from grpojax.rewards.calls import open_workers
from grpojax.rewards.code import code_passes_tests
from grpojax.rewards.countdown import countdown
from grpojax.rewards.format import layout_followed
from grpojax.rewards.language import language_consistency, language_detected
from grpojax.rewards.length import cosine_length
from grpojax.rewards.math import math_answer
from grpojax.rewards.repetition import repetition_penalty
from grpojax.task import Example

LIMIT, MEMORY = 0.3, 512
JUDGING = JudgingConfig(time_limit=LIMIT, workers=2, worker_memory=MEMORY)
REWARDS = {
    "exact": exact_answer,
    "first": first_integer,
    "last": last_number,
    "format": layout_followed,
    "script": language_consistency("latin"),
    "detected": language_detected("en"),
    "length": cosine_length(exact_answer, most_words=1000),
    "repetition": repetition_penalty(3),
}
NUMBER = Example(id=1, prompt="", answer="42")
PIECES = [
    *("\\frac{", "\\sqrt[", "\\boxed{", "\\left(", "\\begin{pmatrix}", "\\text{", "\\over", "_{"),
    *("{", "}", "[", "]", "(", ")", "$", "$$", "\\(", "\\]", "\\\\", "&", "^", "^{", "!", "%", "#"),
    *("####", "<answer>", "</answer>", "<think>", "</think>", "```python\n", "```", "1", "42", "9"),
    *("-", "+", "*", "/", "**", "=", "<", ",", ";", ".", "e", "x", "I", "oo", "1e999", "NaN"),
    *(
        "\x00",
        "\x1b[2J",
        "\ud800",
        "\u202e",
        "\u200b",
        "\r\n",
        "\N{FULLWIDTH DIGIT FOUR}",
        "٤",
        "½",
    ),
    *(
        "__import__",
        "('os')",
        ".system",
        "lambda:",
        "eval",
        "{{",
        "}}",
        "%s",
        "{0.__class__}",
        "字",
    ),
]
CODE = [
    "__import__('os').system('touch {0}')",
    "open('{0}','w').write('1')",
    "exec(\"open('{0}','w')\")",
    "(lambda: open('{0}','w'))()",
    "[c for c in ().__class__.__base__.__subclasses__()][0]",
    "Symbol('x', open('{0}','w'))",
    "f(open('{0}','w'), 2)",
    "\\operatorname{{open}}('{0}','w')",
    "\\text{{__import__('pathlib').Path('{0}').touch()}}",
    "$(touch {0})",
    "`touch {0}`",
    "; touch {0} ;",
    "'); open('{0}','w'); ('",
    "{{{{ ''.__class__.__mro__ }}}}",
    "\\input{{|touch {0}}}",
    "\\write18{{touch {0}}}",
]


def soup(number: int) -> list[str]:
    """Short texts of random pieces, half of them in a box or tags."""
    draw, texts = random.Random(0), []
    for i in range(number):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 12)))
        texts.append([text, f"\\boxed{{{text}}}", f"<answer>{text}</answer>", f"${text}$"][i % 4])
    return texts


def large() -> list[str]:
    """Texts long or deep in one way each."""
    texts = []
    for piece in PIECES:
        texts += [piece * 500, piece * 50 + "1" + "}" * 50, "\\boxed{" + piece * 40 + "}"]
    for digits in (30, 300, 500, 5000, 100_000):
        texts += ["9" * digits, "\\boxed{" + "9" * digits + "}", "<answer>" + "1," * digits]
    return texts


def injections(file: Path) -> list[str]:
    """Code of several languages, in each place where an answer may stand."""
    code = [line.format(file) for line in CODE]
    return [
        w.replace("@", line)
        for line in code
        for w in ("@", "\\boxed{@}", "<answer>@</answer>", "$@$")
    ]


# Each takes sympy far longer than the limit, or more memory than a worker has.
TOWERS = ["9^{9^{9^{9^9}}}", "10^{10^{10}}!", "2^{2^{2^{100}}}-1", "\\sum_{k=1}^{10^{9}} k^{k^k}"]
TOWERS += ["((((9!)!)!)!)!", "\\binom{10^{12}}{10^{11}}", "\\int_0^1 x^{x^{x^{x^x}}} \\sin(x^x) dx"]


@pytest.fixture
def left(tmp_path, monkeypatch):
    """The file that injected code makes, in the current folder or by its path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "left"


def judge(rewards, example, texts, judging=JUDGING):
    return compute_rewards(rewards, [1.0] * len(rewards), [example], [texts], judging)


def test_five_thousand_strings_pass_every_plain_reward(left):
    texts = soup(5000) + large() + injections(left) + TOWERS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    judged = judge(REWARDS, NUMBER, texts)
    # No reward does more than read a text a few times.
    assert time.process_time() - start < 15
    assert judged.valid.all(), judged.failure
    assert np.isfinite(judged.total).all()
    assert judged.by_name["exact"].sum() == sum(t == "<answer>42</answer>" for t in texts)
    assert judged.counts["judging/threads_stuck"] == judged.counts["judging/timed_out"] == 0
    made = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert made < 300  # MiB
    problem = Example(id=2, prompt="", answer="24 from 4 6 8 2")
    assert judge({"countdown": countdown}, problem, texts).total.sum() == 0
    assert list(left.parent.iterdir()) == []


def test_as_many_in_the_judge_of_mathematics_end_at_the_limit_and_run_nothing(left):
    towers = [f"\\boxed{{{tower}}}" for tower in TOWERS]
    right = ["\\boxed{42}", "$x = 6 \\cdot 7$", "<answer>42.0</answer>"]
    texts = soup(5000) + large() + injections(left) + towers + right
    start = time.monotonic()
    judged = judge({"math": math_answer}, NUMBER, texts)
    valid, total = judged.valid[0], judged.total[0]
    late, replaced = judged.counts["judging/timed_out"], judged.counts["judging/workers_replaced"]
    ends = slice(-len(towers + right), -len(right))
    assert not valid[ends].any() and late >= len(towers)  # never merely wrong
    assert (~valid).sum() == replaced < len(texts) / 50
    assert total[-len(right) :].tolist() == [1.0] * len(right)  # by workers that replaced others
    # Every text may take the limit, and these are the ones that do.
    assert time.monotonic() - start < 30 + late * (LIMIT + 0.3)
    for worker in open_workers(math_answer.imported, count=2, memory=MEMORY).crew:
        worker.wait_until_ready()
        peak = re.search(r"VmPeak:\s+(\d+) kB", Path(f"/proc/{worker.child}/status").read_text())
        assert int(peak[1]) <= MEMORY * 1024
    assert list(left.parent.iterdir()) == []


def test_programs_that_attack_run_in_the_sandbox_or_nowhere(left):
    tests = Example(id=3, prompt="", answer="assert answer == 42")
    texts = [text for text in injections(left) if "```" in text]
    texts += ["```python\nanswer = 42\n```"]
    judged = judge({"code": code_passes_tests}, tests, texts, JudgingConfig())
    if shutil.which("bwrap"):
        assert judged.valid.all(), judged.failure
        assert judged.total[0].tolist() == [0.0] * (len(texts) - 1) + [1.0]
    else:
        assert not judged.valid.any() and "there is no bwrap" in judged.failure
    assert list(left.parent.iterdir()) == []
