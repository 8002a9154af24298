"""Everything that the rest of a run depends on: saved, resumed and rolled back as one thing."""

from __future__ import annotations

from typing import Any

import torch

from trilemma.classifier.classifier import Classifier
from trilemma.config.config import Config
from trilemma.data.image_set import ImageSet
from trilemma.data.loader import Loader
from trilemma.methods.base import Method
from trilemma.monitors.watch import Watch
from trilemma.training import build
from trilemma.updates.ema import EMA


class TrainingState:
    """Weights, optimiser, average, method state, monitors and position of one run.

    Every other random number comes from the configuration's seed and the position, so a resumed run
    repeats the uninterrupted one bit for bit on CPU.

    Args:
        config: the whole run.
        clf: on its device.
        method: makes its own state.
        train: training images.
        loader: for the length of an epoch.
        seed: of the method's random numbers in this process.
    """

    def __init__(
        self, config: Config, clf: Classifier, method: Method, train: ImageSet, loader: Loader, seed: int
    ) -> None:
        decay = config.training.ema
        self.clf = clf
        self.method_state = method.init_state(clf, train, seed)
        self.method_state.to(clf.device)
        self.optimiser = build.build_optimiser(config, clf, self.method_state.parameters())
        self.ema = EMA(clf, decay) if decay is not None else None
        self.watch = Watch(config, loader.steps_per_epoch)
        self.steps_per_epoch = loader.steps_per_epoch
        self.step = self.rollbacks = 0
        self.evaluated_at = -1
        self.rate_factor, self.minutes = 1.0, 0.0
        self.best: list[float] = []
        self.ended = False  # a remedy ended the run in good order
        self.options: dict[str, Any] = {}  # what remedies have set, by dotted key
        self.sounded: dict[str, int] = {}  # how often each alarm did

    @property
    def epoch(self) -> float:
        """Epochs done, with fraction."""
        return round(self.step / self.steps_per_epoch, 4)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, nested."""
        return {
            "weights": self.clf.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "method": self.method_state.state_dict(),
            "rng": torch.get_rng_state(),
            "watch": self.watch.state_dict(),
            "position": {name: getattr(self, name) for name in _POSITION},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        self.clf.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        for weight, kept in self.optimiser.state.items():  # in the weight's own layout, as they grew
            for name, value in kept.items():
                if value.shape == weight.shape:
                    kept[name] = torch.empty_like(weight).copy_(value)
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.method_state.load_state_dict(state["method"])
        torch.set_rng_state(state["rng"])
        self.watch.load_state_dict(state["watch"])
        for name in _POSITION:
            setattr(self, name, state["position"][name])


_POSITION = (
    "step", "minutes", "best", "rollbacks", "rate_factor", "evaluated_at", "ended", "options", "sounded",
)  # fmt: skip
