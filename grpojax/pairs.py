"""Pairs: completions of one prompt of which one is better, and which of them a step trains on.

In iterative GRPO (DeepSeekMath, 2402.03300, algorithm 1) they come from the groups that the policy
itself sampled: where the rewards of a group differ, its best completion against its worst. Which
pairs a step reads is a function of seed, step and the numbers of pairs alone.
"""

import zipfile
import zlib

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from grpojax.checks import require
from grpojax.storage import Place, make_folder, save_arrays
from grpojax.types import Completions, Pairs, Prompts

CURRENT, HISTORY = 0, 1  # streams of the order: the two must not shuffle alike


def make_pairs(
    prompts: Prompts,
    completions: Completions,
    rewards: Float[np.ndarray, "B G"],
    valid: Bool[np.ndarray, "B G"],
) -> Pairs:
    """The best and the worst valid completion of every group whose rewards differ, on the host.

    Of equal rewards the first counts. There may be no pair at all.
    """
    rows, members = best_and_worst(rewards, valid)
    chosen = rows[:, None], members
    prompts = jax.tree.map(lambda x: np.asarray(x)[rows], prompts)
    return Pairs(
        prompts, np.asarray(completions.tokens)[chosen], np.asarray(completions.mask)[chosen]
    )


def best_and_worst(
    rewards: Float[np.ndarray, "B G"], valid: Bool[np.ndarray, "B G"]
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n 2"]]:
    """The groups whose valid rewards differ, and in each the member of the highest and that of the
    lowest."""
    high, low = np.where(valid, rewards, -np.inf), np.where(valid, rewards, np.inf)
    rows = np.flatnonzero(high.max(-1) > low.min(-1))
    return rows, np.stack([high.argmax(-1), low.argmin(-1)], axis=-1)[rows]


def joined(parts: list[Pairs]) -> Pairs:
    """All pairs of one list."""
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def replay_rows(
    current: int, history: int, *, pairs_per_step: int, share: float, seed: int, step: int
) -> Int[np.ndarray, "B"]:
    """Which pairs a step trains on: rows below `current` are of this iteration, those from it on
    are of the `history` pairs of earlier ones.

    Of all rows up to any step, a `share` in [0, 1) (DeepSeekMath: 0.1) is of the history, to less
    than one row; none if there is no history. Either stream goes through its pairs in one
    permutation after another, so none is read twice before all are read once.

    Raises:
      ValueError: there is no pair of this iteration, or the share is out of range.
    """
    require(current > 0, "a reward model needs pairs, got none: no group's rewards differed")
    require(0 <= share < 1, f"the share of replayed pairs must be in [0, 1), got {share}")
    share = share if history else 0.0
    slots = np.arange(step * pairs_per_step, (step + 1) * pairs_per_step)
    before = np.floor(slots * share).astype(int)  # replayed rows ahead of each slot
    replayed = np.floor((slots + 1) * share).astype(int) > before
    rows = np.empty(pairs_per_step, int)
    rows[~replayed] = permuted(current, (slots - before)[~replayed], (seed, CURRENT))
    if replayed.any():
        rows[replayed] = current + permuted(history, before[replayed], (seed, HISTORY))
    return rows


def save_pairs(folder: Place, step: int, pairs: Pairs) -> None:
    """Writes the pairs of a step, on disk when this returns, so that a run that is started again
    has its history. What a killed run wrote of the same step is replaced."""
    make_folder(folder)
    arrays = {**vars(pairs.prompts), "answers": pairs.tokens, "counted": pairs.mask}
    save_arrays(pairs_file(folder, step), arrays)


def load_pairs(folder: Place, steps: range) -> list[Pairs]:
    """The pairs of `steps`, each in a file of its own.

    Raises:
      ValueError: those of a step are missing or damaged.
    """
    require_pairs(folder, steps)
    found = []
    for path in (pairs_file(folder, step) for step in steps):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                prompts = Prompts(saved["tokens"], saved["mask"], saved["ids"])
                found.append(Pairs(prompts, saved["answers"], saved["counted"]))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path} must hold the pairs of its step, but is damaged ({error}); start the run "
                "again in another folder"
            ) from None
    return found


def require_pairs(folder: Place, steps: range) -> None:
    """Raises ValueError naming the first of `steps` whose pairs are missing."""
    for path in (pairs_file(folder, step) for step in steps):
        require(
            path.is_file(),
            f"the reward model learns from {path}, which is not there; start the run again in "
            "another folder",
        )


def pairs_file(folder: Place, step: int) -> Place:
    """Where the pairs of a step are."""
    return folder / f"{step:08d}.npz"


def permuted(
    size: int, places: Int[np.ndarray, "n"], seed: tuple[int, ...]
) -> Int[np.ndarray, "n"]:
    """What stands at `places` of an endless row of permutations of 0 ... `size` - 1."""
    epochs = {epoch: np.random.default_rng((*seed, epoch)) for epoch in np.unique(places // size)}
    orders = {epoch: generator.permutation(size) for epoch, generator in epochs.items()}
    return np.array([orders[place // size][place % size] for place in places], int)
