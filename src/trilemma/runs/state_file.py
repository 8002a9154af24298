"""The format of training states, and the step of a stored one by its header alone. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trilemma.errors import CheckpointError
from trilemma.files import TensorFormat

# Names of the states that are stored for rollbacks.
_NAME = re.compile(r"state-([0-9]{9,18})\.safetensors")


def _check_tree(tree: Any) -> Any:
    if not isinstance(tree, dict) or not isinstance(tree.get("$dict"), list):
        raise ValueError("a training state is a mapping")
    return tree


STATE = TensorFormat(
    name="training-state",
    version=2,
    foreign="not a training state of trilemma; resume from a run folder",
    damaged="not a training state, or a truncated one",
    remedy="copy it again or resume from an earlier one",
    advice="free disk space and resume the run",
    validate=_check_tree,
    key="tree",
    older="written by an earlier trilemma, which cannot be resumed; start a new run",
)


def step_of(path: Path) -> int | None:
    """Returns the step in the name of a stored state; ``None`` for other names, such as that of the last state."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def stored_step(path: Path) -> int | None:
    """Returns the step of a training state; ``None`` if the file is missing, is none, or its header is damaged."""
    try:
        value = STATE.read_header(path)
        for key in ("position", "step"):
            value = dict(value["$dict"])[key]
    except (CheckpointError, LookupError, TypeError, ValueError):
        return None
    return value if isinstance(value, int) else None
