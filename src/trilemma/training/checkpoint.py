"""The raw training state as one safetensors file: tensors by path, everything else as JSON. No pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trilemma.errors import CheckpointError
from trilemma.files import TensorFormat

FORMAT = TensorFormat(
    name="training-state",
    version=2,
    foreign="not a training state of trilemma; resume from a run folder",
    damaged="not a training state, or cut short; resume needs an intact one",
    advice="free space or choose another --out",
    key="tree",
    older="of an earlier trilemma, which cannot be resumed; start the run anew",
)


def flatten(state: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Splits a nested state into tensors by path and a JSON tree where ``{"$tensor": path}`` stands for them."""
    if isinstance(state, Tensor):
        return {path: state}, {"$tensor": path}
    if isinstance(state, Mapping):
        tensors: dict[str, Tensor] = {}
        items = []
        for key, value in state.items():
            inner, tree = flatten(value, f"{path}/{key!r}")  # repr: 1 and "1" are two keys
            tensors |= inner
            items.append([key, tree])  # pairs: JSON would turn integer keys (optimiser states) into strings
        return tensors, {"$dict": items}
    if isinstance(state, list | tuple):
        tensors, trees = {}, []
        for place, value in enumerate(state):
            inner, tree = flatten(value, f"{path}/{place}")
            tensors |= inner
            trees.append(tree)
        return tensors, trees
    return {}, state


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`flatten` (tuples come back as lists)."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        return {key: unflatten(value, tensors) for key, value in tree["$dict"]}
    return tree


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes atomically: after a kill at any moment the file is the old one or the new one."""
    tensors, tree = flatten(state)
    FORMAT.write(path, tensors, tree, sync=True)


def load_state(path: Path) -> dict[str, Any]:
    """What :func:`save_state` wrote.

    Raises:
        CheckpointError: missing, not a training state, cut short, or of another format version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such training state; the run has nothing to resume from")
    tree, tensors = FORMAT.read(path)
    state: dict[str, Any] = unflatten(tree, tensors)
    return state
