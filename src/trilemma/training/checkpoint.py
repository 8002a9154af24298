"""The raw training state as one safetensors file: tensors by path, everything else as JSON. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trilemma.errors import CheckpointError

FORMAT = "trilemma-training-state"
# Until version 0.1.0 the project was called ebat.
FORMATS = (FORMAT, "ebat-training-state")
VERSION = 2


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT, "version": str(VERSION), "tree": json.dumps(tree)}
    try:
        save_file(
            {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()},
            temporary,
            metadata,
        )
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); free space or choose another --out"
        ) from None
    finally:
        with suppress(OSError):  # its folder may be what is missing
            temporary.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """What :func:`save_state` wrote.

    Raises:
        CheckpointError: missing, not a training state, cut short, or of another format version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such training state; the run has nothing to resume from")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in FORMATS:
                raise CheckpointError(f"{path}: not a training state of trilemma; resume from a run folder")
            if int(metadata["version"]) > VERSION:
                raise CheckpointError(
                    f"{path}: format version {metadata['version']}, but this trilemma reads up to {VERSION}; "
                    f"upgrade trilemma"
                )
            if int(metadata["version"]) < VERSION:
                raise CheckpointError(
                    f"{path}: format version {metadata['version']} of an earlier trilemma, which cannot be resumed; "
                    "start the run anew"
                )
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        raise CheckpointError(
            f"{path}: not a training state, or cut short; resume needs an intact one"
        ) from None
    state: dict[str, Any] = unflatten(json.loads(metadata["tree"]), tensors)
    return state
