"""Checkpoints: Orbax behind a few functions, each checkpoint sealed by a manifest of digests.

Orbax does not notice a flipped bit; the digests do. Orbax writes `<step>.unfinished/`; when its
files are complete the manifest is added and the folder renamed to `<step>/`, so what a killed save
leaves never has a checkpoint's name. `sha256sum -c manifest.txt` in it checks one by hand.

A bucket renames nothing in one go. There Orbax writes `<step>/`, and what has no manifest is no
checkpoint: it is written last, and deleted first.
"""

import concurrent.futures
import contextlib
import itertools
import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from grpojax.hosts import is_first, told, wait_for_all
from grpojax.manifest import MANIFEST, damage_of, read_manifest, write_manifest
from grpojax.storage import Place, in_bucket, make_folder, place, remove_folder, sync
from grpojax.types import Params, State

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Checkpoints:
    """An open folder of checkpoints; `pending` is the save whose files are still being written."""

    folder: Place
    keep: int
    writer: ocp.AsyncCheckpointer
    thread: concurrent.futures.ThreadPoolExecutor
    pending: concurrent.futures.Future | None = None


def open_checkpoints(folder: str | Place, *, keep: int) -> Checkpoints:
    """Opens `folder` to save into: creates it, and deletes what killed saves left behind.

    Of the checkpoints saved, the newest `keep` (1 or more) stay, and the best by accuracy.
    ValueError if the folder cannot be created or written.
    """
    try:
        folder = _absolute(folder)
        make_folder(folder)
        for entry in _entries(folder) if is_first() else ():
            if _is_left_over(entry):
                remove_folder(entry)
        if not in_bucket(folder) and not os.access(folder, os.W_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        why = error.strerror or error
        raise ValueError(
            f"checkpoints need a folder that can be written, got {folder} ({why})"
        ) from error
    wait_for_all("checkpoints are tidied up")
    # Orbax logs its threads' errors with tracebacks; here the next save or close raises them.
    logging.getLogger("absl").addFilter(_not_from_orbax)
    writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
    thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    return Checkpoints(folder=folder, keep=keep, writer=writer, thread=thread)


def save(manager: Checkpoints, step: int, state: State, accuracy: float | None) -> None:
    """Saves `state` as checkpoint `step` (0 or more), and returns while the files are written.

    The arrays may be donated as soon as this returns. `accuracy` is the held-out accuracy in
    [0, 1], or None when this step was not evaluated. A step saved before stays as it is.

    Raises:
      ValueError: accuracy is out of range, or an earlier checkpoint of the same step is damaged.
      OSError: the previous save failed (a full disk, say).
    """
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy must be in [0, 1], or None if not evaluated, got {accuracy}")
    _wait(manager)
    wait_for_all("the checkpoint before is finished")
    path = manager.folder / str(step)
    unfinished = path if in_bucket(path) else path.with_name(f"{step}.unfinished")
    if path.exists() and not _is_left_over(path):
        if damage := damage_of(path):
            raise ValueError(f"checkpoint {path} exists and is damaged ({damage}); move it away")
        return
    # On CPU Orbax holds views of the arrays: JAX reuses no donated buffer that has a view.
    try:
        manager.writer.save(unfinished, args=ocp.args.PyTreeSave(_by_name(state)))
    except Exception as error:  # a bucket's come from many libraries
        raise _not_saved(path, error) from error
    manager.pending = manager.thread.submit(_finish, manager, unfinished, path, accuracy)


def close(manager: Checkpoints) -> None:
    """Waits until the last save is complete, manifest included; OSError if it failed."""
    try:
        _wait(manager)  # and for no other host: it may be gone
    finally:
        manager.thread.shutdown()
        manager.writer.close()


def restore(manager: Checkpoints, like: State, say: Say) -> tuple[State, int] | None:
    """Loads the newest checkpoint whose files all match its manifest; None if there are none.

    The state, returned with its step, has the tree, shapes, dtypes and shardings of `like` (arrays
    or `jax.ShapeDtypeStruct`s; without a sharding: on the first device). `say` is told of every
    damaged checkpoint: the file and what is wrong with it, the checkpoint used instead, and the new
    name `<step>.damaged`, which frees the old one for another save.

    Raises:
      ValueError: every checkpoint is damaged, or the chosen one does not fit `like`.
    """
    _wait(manager)
    chosen = told(lambda: _choose_newest(manager.folder, say))
    if chosen is None:
        return None
    return _load(manager.folder / str(chosen), like, prefix=""), chosen


def restore_params(
    folder: str | Place, like: Params, say: Say, which: int | Literal["newest", "best"] = "newest"
) -> tuple[Params, int]:
    """Loads the parameters alone, with their step, of an undamaged checkpoint.

    `which` is a step, or the newest, or the one of the highest accuracy (the newest among equals).
    Nothing in `folder` is changed, and a run may be saving there; `like` and `say` as in `restore`.

    Raises:
      ValueError: there is no such checkpoint, none is undamaged, or it does not fit `like`.
    """
    folder = _absolute(folder)
    accuracies = _accuracies(folder)
    steps = sorted(accuracies, reverse=True)
    if which == "best":
        evaluated = [step for step in steps if accuracies[step] is not None]
        steps = sorted(evaluated, key=lambda step: accuracies[step], reverse=True)
    elif which != "newest":
        steps = [step for step in steps if step == which]
    if not steps:
        raise ValueError(f"no checkpoint {which!r} in {folder}; its steps: {sorted(accuracies)}")
    chosen = _choose(folder, steps, say, rename=False)
    return _load(folder / str(chosen), {"params": like}, prefix="params/")["params"], chosen


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


def _wait(manager: Checkpoints) -> None:
    """Waits for the pending save and raises its error, once."""
    if manager.pending is not None:
        concurrent.futures.wait([manager.pending])
        done, manager.pending = manager.pending, None
        done.result()


def _finish(manager: Checkpoints, unfinished: Place, path: Place, accuracy: float | None) -> None:
    """Runs beside training: waits for Orbax's files, seals and names the checkpoint, tidies up."""
    try:
        manager.writer.wait_until_finished()  # and all other hosts have written what is theirs
        if not is_first():
            return
        write_manifest(unfinished, path.name, accuracy)
        if not in_bucket(path):
            unfinished.rename(path)
            sync(path.parent)
    except Exception as error:
        with contextlib.suppress(Exception):  # of the error that is raised
            for left in path.parent.glob(f"{unfinished.name}*"):
                if _is_left_over(left):
                    remove_folder(left)
        raise _not_saved(path, error) from error
    accuracies = _accuracies(path.parent)
    # Damaged ones are infinitely good: not counted, not removed, left for `restore` to name.
    good = sorted(step for step, accuracy in accuracies.items() if accuracy != math.inf)
    evaluated = [step for step in good if accuracies[step] is not None]
    best = max(evaluated, key=lambda step: (accuracies[step], step), default=None)
    for step in good[: -manager.keep]:
        if step != best:
            # A kill during the deletion leaves nothing that looks damaged.
            removed = path.parent / str(step)
            if in_bucket(removed):
                (removed / MANIFEST).unlink()
            else:
                removed = removed.rename(path.parent / f"{step}.removed")
            remove_folder(removed)


def _not_saved(path: Place, error: Exception) -> OSError:
    # TensorStore names the cause last, before many lines of settings.
    reason = re.split(r" \[tensorstore_spec|\n", str(error))[0][-160:]
    return OSError(f"checkpoint {path} was not saved ({reason})")


def saved_steps(folder: Place) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    found = (entry for entry in _entries(folder) if re.fullmatch(r"0|[1-9]\d*", entry.name))
    return sorted(int(entry.name) for entry in found if not _is_left_over(entry))


def _absolute(folder: str | Place) -> Place:
    folder = place(folder)
    return folder if in_bucket(folder) else folder.absolute()


def _entries(folder: Place) -> list[Place]:
    return list(folder.iterdir()) if folder.exists() else []


def _is_left_over(entry: Place) -> bool:
    """Whether it is what a killed save or a killed deletion leaves."""
    if in_bucket(entry):
        return not (entry / MANIFEST).exists()
    return re.match(r"\d+\.(unfinished|removed)", entry.name) is not None


def _accuracies(folder: Place) -> dict[int, float | None]:
    """Accuracy by step (None: not evaluated) of all checkpoints; inf where the manifest is bad."""
    accuracies = {}
    for step in saved_steps(folder):
        try:
            accuracies[step], _ = read_manifest(folder / str(step))
        except (OSError, ValueError):
            accuracies[step] = math.inf
    return accuracies


def _choose_newest(folder: Place, say: Say) -> int | None:
    """The newest good checkpoint; None if there are none."""
    steps = sorted(_accuracies(folder), reverse=True)
    return _choose(folder, steps, say, rename=True) if steps else None


def _choose(folder: Place, steps: list[int], say: Say, *, rename: bool) -> int:
    """The first good one of `steps`; those refused before it are named to `say`, and renamed."""
    damages = {}
    for step in steps:
        if (damage := damage_of(folder / str(step))) is None:
            break
        damages[step] = damage
    else:
        named = "; ".join(f"{step}: {damage}" for step, damage in damages.items())
        raise ValueError(f"no checkpoint in {folder} can be used ({named}); move damaged ones away")
    for bad, damage in damages.items():
        message = f"checkpoint {bad} in {folder} is damaged ({damage}); {step} is used instead"
        if rename:
            names = (f"{bad}.damaged{n or ''}" for n in itertools.count())
            aside = next(name for name in names if not (folder / name).exists())
            (folder / str(bad)).rename(folder / aside)
            message += f", and {bad} is now called {aside}"
        say(message)
    return step


def _load(path: Place, like: Any, prefix: str) -> Any:
    """Loads the leaves whose names begin with `prefix`, which must be exactly those of `like`."""
    wanted = _by_name(like)
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arguments = {
        name: ocp.ArrayRestoreArgs(sharding=leaf.sharding or first) for name, leaf in wanted.items()
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(path).item_metadata.tree
        saved = {name: tree[name] for name in tree if name.startswith(prefix)}
        for name in sorted(saved.keys() | wanted.keys()):
            was, wants = (
                f"{leaves[name].dtype}{list(leaves[name].shape)}" if name in leaves else "absent"
                for leaves in (saved, wanted)
            )
            if was != wants:
                raise ValueError(
                    f"checkpoint {path} does not fit: {name} is {was} in it and {wants} in this "
                    "run; use the model and optimizer settings it was saved with"
                )
        chosen = ocp.args.PyTreeRestore(wanted, restore_args=arguments, partial_restore=True)
        loaded = reader.restore(path, args=chosen)
    return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in wanted])


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by path, like "params/embed/embedding": flat, so that no struct or tuple matters."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
