"""trilemma: energy-based adversarial training. Classifiers that are accurate, robust and generative at once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trilemma._version import __version__ as __version__

if TYPE_CHECKING:
    from trilemma import attacks, energies, figures, methods, samplers
    from trilemma.classifier.classifier import Classifier
    from trilemma.classifier.load import load
    from trilemma.data.batch import Batch
    from trilemma.evaluation.evaluate import evaluate
    from trilemma.evaluation.predict import predict
    from trilemma.evaluation.score import score
    from trilemma.threat import Threat
    from trilemma.training.train import Run, train

# Public names by module, imported on first use, so that `trilemma --help` and configuration errors need no torch.
_LAZY = {
    "Batch": "trilemma.data.batch",
    "Classifier": "trilemma.classifier.classifier",
    "Run": "trilemma.training.train",
    "Threat": "trilemma.threat",
    "evaluate": "trilemma.evaluation.evaluate",
    "load": "trilemma.classifier.load",
    "predict": "trilemma.evaluation.predict",
    "score": "trilemma.evaluation.score",
    "train": "trilemma.training.train",
}
_SUBMODULES = ("attacks", "energies", "figures", "methods", "samplers")

__all__ = [
    "Batch",
    "Classifier",
    "Run",
    "Threat",
    "attacks",
    "energies",
    "evaluate",
    "figures",
    "load",
    "methods",
    "predict",
    "samplers",
    "score",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"trilemma.{name}")
    else:
        raise AttributeError(f"module 'trilemma' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
