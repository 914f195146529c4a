"""CoLeG: does a policy that solves a problem also solve its longer tellings?

Context length generalizability of "Can LLMs Solve Longer Math Word Problems Better?" (arXiv
2405.14804). Round Q0 of E-GSM is GSM8K itself; round Qr tells the questions of round Q(r-1) at
greater length. A round is {question: 1.0 if right, 0.0 if not, NaN if it could not be judged}, a
question called the same in every round; only questions that all the rounds hold are compared.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from grpojax.estimates import Measure, mean_of

Round = Mapping[str, float]


def efficacy(rounds: Sequence[Round]) -> Measure:
    """CoLeG-E: the share of questions that are right in every one of the `rounds`.

    As reviewers quote the paper's formula, its conjunction runs over the extended rounds, r = 1..R;
    with Q0 among `rounds` the original must be right as well.
    """
    names = shared(rounds)
    return mean_of(np.array([[r[name] for r in rounds] for name in names]).min(axis=1))


def robustness(first: Round, last: Round) -> Measure:
    """CoLeG-R: accuracy in the last round by that in the first, 1 - (Acc_0 - Acc_R) / Acc_0.

    1 is no loss to length, and it may exceed 1. NaN if nothing is right in the first round.
    """
    names = shared([first, last])
    before, after = (np.array([each[name] for name in names]) for each in (first, last))
    known = ~np.isnan(before + after)
    return Measure(part=np.where(known, after, 0.0), over=np.where(known, before, 0.0))


def coleg(
    right: Sequence[float], categories: Sequence[str], origins: Sequence[str]
) -> dict[str, Measure]:
    """Both measures over the rounds that are there, by names that say which were used.

    `coleg_e/Q1+Q2` is CoLeG-E over Q1 and Q2, `coleg_e/Q0+Q1+Q2` asks for the original too, and
    `coleg_r/Q0+Q2` is CoLeG-R from Q0 to Q2; all over the questions that every round holds.

    Args:
      right: for each problem 1.0, 0.0, or NaN if it could not be judged.
      categories: of each problem; Q0, Q1 and so on name a round, and others are not looked at.
      origins: of each problem, what its question is called in every round.
    """
    rounds: dict[str, dict[str, float]] = {}
    for value, category, origin in zip(right, categories, origins):
        if origin and re.fullmatch(r"Q\d+", category):
            rounds.setdefault(category, {})[origin] = value
    names = sorted(rounds, key=lambda name: int(name[1:]))
    longer = [name for name in names if name != "Q0"]
    questions = shared(list(rounds.values())) if longer else []
    if not questions:
        return {}
    known = {name: {q: rounds[name][q] for q in questions} for name in names}
    found = {f"coleg_e/{'+'.join(longer)}": efficacy([known[name] for name in longer])}
    if "Q0" in known:
        found[f"coleg_e/{'+'.join(names)}"] = efficacy([known[name] for name in names])
        found[f"coleg_r/Q0+{names[-1]}"] = robustness(known["Q0"], known[names[-1]])
    return found


def shared(rounds: Sequence[Round]) -> list[str]:
    """The questions that all the rounds hold."""
    return sorted(set.intersection(*(set(each) for each in rounds)))
