"""ebat: energy-based adversarial training. Classifiers that are accurate, robust and generative at once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ebat import attacks, energies, methods, samplers
    from ebat.classifier import Classifier
    from ebat.data.batch import Batch
    from ebat.evaluation.runner import evaluate
    from ebat.loading import load
    from ebat.threat import Threat
    from ebat.training.train import train

# Imported on first use, so that `ebat --help` and a configuration error need no torch.
_LAZY = {
    "Batch": "ebat.data.batch",
    "Classifier": "ebat.classifier",
    "Threat": "ebat.threat",
    "evaluate": "ebat.evaluation.runner",
    "load": "ebat.loading",
    "train": "ebat.training.train",
}
_ROOMS = ("attacks", "energies", "methods", "samplers")

__all__ = [
    "Batch",
    "Classifier",
    "Threat",
    "attacks",
    "energies",
    "evaluate",
    "load",
    "methods",
    "samplers",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif name in _ROOMS:
        value = import_module(f"ebat.{name}")
    else:
        raise AttributeError(f"module 'ebat' has no attribute {name!r}")
    globals()[name] = value
    return value
