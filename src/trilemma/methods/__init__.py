"""Training methods: one objective per file, created by name.

The names below are imported on first use: the option classes in ``trilemma.methods.options`` are read for every
recipe, and a mistake in one is answered without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilemma.methods.base import Method, MethodState, Points, Seen, Step
    from trilemma.methods.creation import create

_HOMES = {
    "Method": "base",
    "MethodState": "base",
    "Points": "base",
    "Seen": "base",
    "Step": "base",
    "create": "creation",
}

__all__ = ["Method", "MethodState", "Points", "Seen", "Step", "create"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
