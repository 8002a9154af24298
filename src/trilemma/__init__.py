"""trilemma: energy-based adversarial training. Classifiers that are accurate, robust and generative at once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trilemma._version import __version__ as __version__

if TYPE_CHECKING:
    from trilemma import attacks, defences, energies, figures, methods, monitors, samplers
    from trilemma.classifier.classifier import Classifier
    from trilemma.classifier.load import load
    from trilemma.data.batch import Batch
    from trilemma.evaluation.counterfactual import counterfactual
    from trilemma.evaluation.diagnose import diagnose
    from trilemma.evaluation.evaluate import evaluate
    from trilemma.evaluation.export import export
    from trilemma.evaluation.findings import lint
    from trilemma.evaluation.predict import predict
    from trilemma.evaluation.samples import generate
    from trilemma.evaluation.score import score
    from trilemma.pages.compare import compare
    from trilemma.pages.html import write_report as report
    from trilemma.pages.hub import pull, push
    from trilemma.sweeps.sweep import sweep
    from trilemma.threat import Threat
    from trilemma.training import loggers
    from trilemma.training.run import Run
    from trilemma.training.train import train

# Public names by module, or by "module:name" of an object with another name; imported on first use, so that
# `trilemma --help` and configuration errors need no torch.
_LAZY = {
    "Batch": "trilemma.data.batch",
    "Classifier": "trilemma.classifier.classifier",
    "Run": "trilemma.training.run",
    "Threat": "trilemma.threat",
    "compare": "trilemma.pages.compare",
    "counterfactual": "trilemma.evaluation.counterfactual",
    "diagnose": "trilemma.evaluation.diagnose",
    "evaluate": "trilemma.evaluation.evaluate",
    "export": "trilemma.evaluation.export",
    "generate": "trilemma.evaluation.samples",
    "lint": "trilemma.evaluation.findings",
    "load": "trilemma.classifier.load",
    "predict": "trilemma.evaluation.predict",
    "pull": "trilemma.pages.hub",
    "push": "trilemma.pages.hub",
    "report": "trilemma.pages.html:write_report",
    "score": "trilemma.evaluation.score",
    "sweep": "trilemma.sweeps.sweep",
    "train": "trilemma.training.train",
}
_SUBMODULES = {
    "attacks": "trilemma.attacks",
    "defences": "trilemma.defences",
    "energies": "trilemma.energies",
    "figures": "trilemma.figures",
    "loggers": "trilemma.training.loggers",
    "methods": "trilemma.methods",
    "monitors": "trilemma.monitors",
    "samplers": "trilemma.samplers",
}

__all__ = [
    "Batch",
    "Classifier",
    "Run",
    "Threat",
    "attacks",
    "compare",
    "counterfactual",
    "defences",
    "diagnose",
    "energies",
    "evaluate",
    "export",
    "figures",
    "generate",
    "lint",
    "load",
    "loggers",
    "methods",
    "monitors",
    "predict",
    "pull",
    "push",
    "report",
    "samplers",
    "score",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, _, other_name = _LAZY[name].partition(":")
        value = getattr(import_module(module), other_name or name)
    elif name in _SUBMODULES:
        value = import_module(_SUBMODULES[name])
    else:
        raise AttributeError(f"module 'trilemma' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
