"""Reward functions: what each one says of right, wrong and adversarial completions."""

import time

import pytest

from grpojax.rewards.accuracy import (
    boxed,
    exact_answer,
    first_integer,
    first_number_of,
    last_number,
    last_number_of,
    tagged_answer,
)
from grpojax.rewards.format import layout_followed
from grpojax.rewards.language import language_consistency
from grpojax.task import Example

HUGE = "9" * 100_000


def problem(answer="85", id=4738):
    return Example(id=id, prompt="47+38=", answer=answer)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>x</think><answer>85</answer>", 1.0),
        ("<answer>85</answer>", 1.0),
        ("<answer> 85\n</answer>", 1.0),
        ("<answer>85</answer> and on it goes", 1.0),
        ("", 0.0),
        ("85", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer>185</answer>", 0.0),
        ("<answer>8 5</answer>", 0.0),
        ("<answer>85", 0.0),
        ("85</answer>", 0.0),
        ("</answer>85<answer>", 0.0),
        ("<answer>84</answer><answer>85</answer>", 0.0),
        ("<answer>85</answer><answer>85</answer>", 0.0),
        ("<answer><answer>85</answer></answer>", 0.0),
        ("<answer><think>85</think></answer>", 0.0),
        ("<answer>\N{FULLWIDTH DIGIT EIGHT}\N{FULLWIDTH DIGIT FIVE}</answer>", 0.0),
        ("<answer>" + HUGE + "</answer>", 0.0),
    ],
)
def test_exact_answer_is_the_text_of_the_only_answer_tags(completion, expected):
    assert exact_answer(problem(), completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (" 85", 1.0),
        (" 85\n3 + 4 = 7", 1.0),
        (" 085", 1.0),
        (" is 85, or 86", 1.0),
        ("", 0.0),
        ("\n85", 0.0),
        (" 86 85", 0.0),
        (" -85", 0.0),
        (" 85.5", 0.0),
        (" 8,5", 0.0),
        (" 1,085", 0.0),
        (" \N{ARABIC-INDIC DIGIT EIGHT}\N{ARABIC-INDIC DIGIT FIVE}", 0.0),
        (HUGE, 0.0),
    ],
)
def test_first_integer_is_the_first_number_before_a_newline(completion, expected):
    assert first_integer(problem(), completion) == expected


@pytest.mark.parametrize(
    ("answer", "completion", "expected"),
    [
        ("5", "2 + 3 = 5\n#### 5", 1.0),
        ("5", "#### 4\nno:\n#### 5", 1.0),
        ("5", "#### 5\n#### 4", 0.0),
        ("5", "#### 5, which is not 7", 1.0),
        ("5", "####", 0.0),
        ("5", "he has 5 ####", 1.0),
        ("5", "<think>2 and 3</think><answer>5</answer>", 1.0),
        ("5", "5 apples and 4 pears", 0.0),
        ("5", "5.0", 1.0),
        ("5", "5.", 1.0),
        ("5", "5.01", 0.0),
        ("5", "$5", 1.0),
        ("5", "+5", 1.0),
        ("5", "10-5", 1.0),
        ("5", "10 + -5", 0.0),
        ("-5", "it is -5", 1.0),
        ("-5", "-$5.00", 1.0),
        ("0", "-0.0", 1.0),
        ("1085", "$1,085.00", 1.0),
        ("1085", "1,08,5", 0.0),
        ("1085", "2,1085", 1.0),
        ("1,085", "1085", 1.0),
        ("0.5", "0.50", 1.0),
        ("5", "\N{SUPERSCRIPT FIVE}", 0.0),
        ("5", "", 0.0),
        (HUGE, "#### " + HUGE, 1.0),
        (HUGE, "#### 1" + HUGE, 0.0),
        ("5", "1" + ",111" * 30_000, 0.0),
        ("5", "#" * 100_000, 0.0),
    ],
)
def test_last_number_is_the_marked_one_or_the_last(answer, completion, expected):
    assert last_number(problem(answer), completion) == expected


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ("6 * 7 = 42 #### $1,042.50 (7)", "1042.5"),
        (r"#### 1 is not \boxed{2}", "1"),
        (r"\boxed{1} or \boxed{42} apples, not 7", "42"),
        (r"\boxed{1{,}042}", "1042"),
        (r"\boxed{1,\!042\text{ apples}}", "1042"),
        (r"\boxed{\$42}", "42"),
        (r"\boxed{-42}", "-42"),
        (r"1 and \boxed{\frac{1}{2}}", None),
        (r"\boxed{x} is 42", "42"),
        ("<answer>$42 a day</answer> for 7 days", "42"),
        ("<answer>x</answer> 42", "42"),
        ("it is 042.0", "42"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_is_marked_or_boxed_or_tagged_or_last(completion, found):
    assert last_number_of(completion) == found


@pytest.mark.parametrize(
    ("find", "completion", "found"),
    [
        (first_number_of, " 042, 7\n8", "42"),
        (first_number_of, "\n42", None),
        (tagged_answer, "<answer> a b\n</answer>", "a b"),
        (tagged_answer, "<answer> </answer>", None),
        (tagged_answer, "<answer>a</answer><answer>a</answer>", None),
        (boxed, r"\boxed{1} \boxed{\frac{1}{2}} 3", r"\frac{1}{2}"),
        (boxed, r"\boxed{1} \boxed{2", None),
        (boxed, "1", None),
    ],
)
def test_what_answers_are_voted_over(find, completion, found):
    assert find(completion) == found


@pytest.mark.parametrize("reward", [exact_answer, first_integer, last_number])
@pytest.mark.parametrize("answer", [None, ""])
@pytest.mark.parametrize("completion", ["<answer>None</answer>", "<answer></answer>", ""])
def test_an_example_without_an_answer_is_never_right(reward, answer, completion):
    example = problem()
    object.__setattr__(example, "answer", answer)  # past the types that are checked in tests
    with pytest.raises(ValueError, match="answer"):
        reward(example, completion)


@pytest.mark.parametrize("reward", [first_integer, last_number])
def test_an_answer_that_is_no_number_is_never_right(reward):
    with pytest.raises(ValueError, match="must be a number, got 'many'"):
        reward(problem("many"), "many")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" <think>\na\n</think>\n\n<answer> b </answer>\n", 1.0),
        ("<think>a < b > c</think><answer>b</answer>", 1.0),
        ("", 0.0),
        ("a", 0.0),
        ("<think></think><answer></answer>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<think>a<answer>b</answer>", 0.0),
        ("<think>a</think>so<answer>b</answer>", 0.0),
        ("so <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> so", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<think><think>a</think></think><answer>b</answer>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think><answer>b<think>c</think></answer>", 0.0),
        ("<Think>a</Think><answer>b</answer>", 0.0),
        ("<think>" * 50_000, 0.0),
    ],
)
def test_layout_is_one_reasoning_then_one_answer_and_nothing_else(completion, expected):
    assert layout_followed(problem(), completion) == expected


@pytest.mark.parametrize(
    ("script", "reasoning", "expected"),
    [
        ("latin", "units 7+8=15 carry 1", 1.0),
        ("latin", "units плюс carry один", 0.5),
        ("latin", "x\N{COMBINING DOT BELOW}y плюс", 0.5),
        ("latin", "\N{FULLWIDTH LATIN SMALL LETTER X}", 1.0),
        ("latin", "one一二三", 0.25),
        ("latin", "7+8=15", 0.0),
        ("latin", "\N{ARABIC-INDIC DIGIT FIVE} ½ ∑ 🙂", 0.0),
        ("latin", "", 0.0),
        ("han", "一二三 one", 0.75),
        ("japanese", "三たすカ one", 0.8),
        ("cyrillic", "семь plus", 0.5),
        ("devanagari", "हिन्दी one", 0.5),
        ("arabic", "سبعة زائد one", 2 / 3),
        ("greek", "επτά και one δύο", 0.75),
        ("hangul", "일곱 더하기", 1.0),
        ("hebrew", "שבע seven", 0.5),
    ],
)
def test_language_is_the_share_of_the_reasoning_in_the_script(script, reasoning, expected):
    completion = f"one <think>{reasoning}</think><answer>слово</answer>"
    assert language_consistency(script)(problem(), completion) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("completion", ["all in English", "<think>open", "shut</think>", ""])
def test_language_without_reasoning_tags_is_zero(completion):
    assert language_consistency("latin")(problem(), completion) == 0.0


def test_an_unknown_script_is_refused():
    with pytest.raises(ValueError, match=r"script must be one of arabic, .*, got 'klingon'"):
        language_consistency("klingon")


def test_rewards_of_a_hundred_thousand_characters_take_no_time():
    rewards = [exact_answer, first_integer, last_number, layout_followed]
    rewards.append(language_consistency("latin"))
    texts = [HUGE, "a" * 100_000, "<answer>" * 12_000, "1," * 50_000, "-$" * 50_000, "# " * 50_000]
    texts += ["<think>" + " 1" * 50_000 + "</think>", "####" + " " * 100_000, "1,111" * 20_000]
    start = time.process_time()
    for text in texts:
        for reward in rewards:
            reward(problem(), text)
    # 45 calls; quadratic work on a single one of them would take longer than this.
    assert time.process_time() - start < 5.0
