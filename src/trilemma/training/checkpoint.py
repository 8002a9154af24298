"""Saves and loads the training state as one safetensors file: tensors by path, other values as JSON, no pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trilemma.errors import DamagedError, describe
from trilemma.runs.state_file import STATE, step_of


def flatten(state: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Splits a nested state into its tensors by path and a JSON tree with ``{"$tensor": path}`` in their places.

    Mappings become ``{"$dict": [[key, value], ...]}``, and tuples become lists.

    Args:
        state: tensors, mappings, lists, tuples and JSON values, nested.
        path: path of ``state`` itself.
    """
    if isinstance(state, Tensor):
        return {path: state}, {"$tensor": path}
    if isinstance(state, Mapping):
        tensors: dict[str, Tensor] = {}
        items = []
        for key, value in state.items():
            # ``repr``, because 1 and "1" are different keys.
            inner, tree = flatten(value, f"{path}/{key!r}")
            tensors |= inner
            # Pairs, because JSON would turn integer keys (optimiser states) into strings.
            items.append([key, tree])
        return tensors, {"$dict": items}
    if isinstance(state, list | tuple):
        tensors, trees = {}, []
        for index, value in enumerate(state):
            inner, tree = flatten(value, f"{path}/{index}")
            tensors |= inner
            trees.append(tree)
        return tensors, trees
    return {}, state


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns the nested state that :func:`flatten` split (with lists instead of tuples)."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        return {key: unflatten(value, tensors) for key, value in tree["$dict"]}
    return tree


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes the state atomically: if the process is killed, the file is either the old one or the new one.

    Raises:
        NotStoredError: the file cannot be written.
    """
    tensors, tree = flatten(state)
    STATE.write(path, tensors, tree, sync=True)


def load_state(path: Path) -> dict[str, Any]:
    """Returns the state that :func:`save_state` wrote.

    Raises:
        DamagedError: the file is missing, truncated, or does not match its digest.
        CheckpointError: not a training state, of another format version, or of an invalid structure.
    """
    if not path.is_file():
        raise DamagedError(f"{path}: no such training state, so there is nothing to resume from")
    tree, tensors = STATE.read(path)
    try:
        state: dict[str, Any] = unflatten(tree, tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise STATE.invalid(path, describe(error)) from None
    return state


@dataclass(frozen=True)
class SoundState:
    """A training state that was read, and what was passed over for it.

    Attributes:
        path: its file.
        state: its content.
        damaged: messages about the newer files that are missing or damaged, newest first.
    """

    path: Path
    state: dict[str, Any]
    damaged: tuple[str, ...]


def newest_sound_state(files: Iterable[Path]) -> SoundState | None:
    """Returns the first of ``files`` that is neither missing nor damaged; ``None`` if there is none.

    A file with the name of another step counts as damaged: it would be restored for that step.

    Args:
        files: paths of training states, newest first.

    Raises:
        CheckpointError: a file is not a training state, or of another format version.
    """
    damaged: list[str] = []
    for path in files:
        try:
            state = load_state(path)
            position, named = state.get("position"), step_of(path)
            step = position.get("step", named) if isinstance(position, dict) else named
            if named not in (None, step):
                raise DamagedError(f"{path}: holds the state of step {step}; remove it or copy the right one")
            return SoundState(path, state, tuple(damaged))
        except DamagedError as error:
            damaged.append(str(error))
    return None
