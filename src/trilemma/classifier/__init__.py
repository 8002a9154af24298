"""The classifier: a network with its normalisation, its file format, and context managers for its modes.

Importing this package does not import torch, so that :mod:`trilemma.classifier.source` is fast to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilemma.classifier.classifier import Classifier

__all__ = ["Classifier"]


def __getattr__(name: str) -> Any:
    if name == "Classifier":
        from trilemma.classifier.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
