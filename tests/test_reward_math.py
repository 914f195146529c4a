"""The reward of mathematical answers: what is equal, what is wrong, and that nothing is run."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from grpojax.config import JudgingConfig
from grpojax.rewards import compute_rewards
from grpojax.rewards.math import final_answer, guard, math_answer
from grpojax.task import Example

JUDGING = JudgingConfig(time_limit=5.0)


def judge(pairs, texts=None):
    """Judges each pair of an example's answer and a completion in the workers."""
    examples = [Example(id=i, prompt="", answer=answer) for i, (answer, _) in enumerate(pairs)]
    completions = [[completion] for _, completion in pairs]
    return compute_rewards({"math": math_answer}, [1.0], examples, completions, JUDGING)


RIGHT = [
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac12", r"\dfrac{2}{4}"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\{1,2\}", "2, 1"),
    ("(1,2]", "(1, 2]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    ("1{,}000", "1000"),
    ("x=3", "3"),
    (r"90^\circ", "90"),
    (r"\text{Tuesday}", "Tuesday"),
    (r"\frac{\pi}{4}", r"\arctan 1"),
    (r"2^{100}", "1267650600228229401496703205376"),
]
WRONG = [
    ("3", "-3"),
    ("3", ""),
    (r"\frac{1}{2}", "2"),
    ("(1,2]", "[1,2]"),
    (r"\sqrt{2}", "1.41"),
    ("x^2", "x^3"),
    ("3", "3" * 600),
    ("3", "3" + "+0" * 300),
    ("3", "3\x00"),
    ("a b", "a\u2028b"),
    ("3", "\N{RIGHT-TO-LEFT OVERRIDE}3"),
    ("3", "}{3"),
    ("3", r"\frac{"),
]


def test_answers_are_compared_as_mathematics():
    boxes = [(gold, f"So it is $\\boxed{{{answer}}}$.") for gold, answer in RIGHT + WRONG]
    judged = judge(boxes)
    assert judged.valid.all(), judged.failure
    said = dict(zip(RIGHT + WRONG, judged.total[:, 0]))
    assert said == dict.fromkeys(RIGHT, 1.0) | dict.fromkeys(WRONG, 0.0)


@pytest.mark.parametrize("gold", ["", " ", r"\frac{", "{{{", "\\"])
def test_an_answer_that_cannot_be_read_makes_its_completions_invalid(gold):
    judged = judge([(gold, f"\\boxed{{{gold}}}"), ("1", r"\boxed{1}")])
    np.testing.assert_array_equal(judged.valid[:, 0], [False, True])
    assert "must be mathematics" in judged.failure


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        (r"\boxed{1} no, \boxed{ 2 }", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"<answer>3</answer> \boxed{2} $4$", "2"),
        ("<answer> 3 </answer> and $4$", "3"),
        ("$1$ then $2$", "2"),
        (r"\(1\), \[x = 5\]", "x = 5"),
        ("$$6$$", "6"),
        (r"\boxed{1} and \boxed{2", None),
        (r"$4$ and \boxed{}", None),
        ("<answer>3", None),
        ("the answer is 42", None),
        ("costs $5", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_box_or_the_tags_or_the_last_formula(completion, found):
    assert final_answer(completion) == found


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("compile", (b"__import__('os')", "<string>")),
        ("compile", ("().__class__", "<string>")),
        ("compile", (b"Integer (2 ).x", "<string>")),
        ("compile", (b"Symbol ('x' )+f()", "<string>")),
        ("compile", (None, "<string>")),
        ("open", ("x", "w", 0o1101)),
        ("open", ("x", None, 2)),
        ("os.system", (b"true",)),
        ("os.remove", ("x", -1)),
        ("os.exec", ("true", [], None)),
        ("subprocess.Popen", ("true", [], None, None)),
        ("socket.connect", (None, None)),
        ("ctypes.dlopen", ("libc",)),
    ],
)
def test_the_guard_refuses_code_files_processes_and_connections(event, arguments):
    with pytest.raises(PermissionError, match=f"{event} is refused"):
        guard(event, arguments)


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("compile", (b"from sympy import *", "<string>")),
        ("compile", (b"Integer (2 )", "<string>")),
        ("compile", (b"Float ('1.5e3' )", "<string>")),
        ("compile", (b"import anything", "sympy/core/power.py")),
        ("open", ("sympy/core/power.py", "r", 0o2000000)),
        ("os.listdir", ("sympy",)),
        ("object.__getattr__", ()),
    ],
)
def test_the_guard_lets_numbers_and_imports_through(event, arguments):
    guard(event, arguments)


def test_under_the_guard_text_that_reaches_the_evaluator_runs_nothing(tmp_path):
    script = f"""
        import grpojax.rewards.math, sys
        import sympy
        sys.modules["grpojax.rewards.math"].open_parser()
        left = {str(tmp_path / "left")!r}
        for text in [f"open({{left!r}}, 'w')", "__import__('os').getcwd()", "[].clear()"]:
            try:
                sympy.sympify(text)
            except (PermissionError, sympy.SympifyError):
                print("refused")
        print(sympy.sympify("2"))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["refused"] * 3 + ["2"]
    assert not list(tmp_path.iterdir())
