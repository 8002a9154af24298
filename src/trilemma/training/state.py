"""The training state: everything that is saved in a checkpoint and restored by a resume or a rollback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, ValidationError
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.config.config import Config
from trilemma.config.recipe import lasting_config
from trilemma.data.image_set import ImageSet
from trilemma.data.loader import Loader
from trilemma.errors import CheckpointError, describe
from trilemma.headers import Header, problem
from trilemma.methods.base import Method, check_state
from trilemma.monitors.watch import Watch
from trilemma.training import build
from trilemma.updates.ema import EMA


class TrainingState:
    """Weights, optimiser, weight average, method state, monitors, random numbers and position of one run.

    All other random numbers depend only on the seed of the configuration and the position, so on a CPU a resumed run
    equals the uninterrupted one bit for bit.

    Args:
        config: configuration of the run.
        clf: the classifier, on its device.
        method: the method; its ``init_state`` makes the method state.
        train: training images.
        loader: the loader; its number of steps per epoch is used.
        seed: seed of the method's random numbers in this process.

    Attributes:
        step: number of steps done.
        rollbacks: number of rollbacks.
        restored: step that the last rollback restored; ``None`` once a regular checkpoint was written after it.
        evaluated_at: step of the last evaluation; -1 before the first.
        rate_factor: factor of the learning rate, set by remedies.
        minutes: training time so far.
        best: score of the best checkpoint (:func:`trilemma.training.selection.score`); empty before the first
            evaluation.
        best_step: step of the best checkpoint; ``None`` before the first, and in states of earlier versions. Later than
            ``step`` after a rollback.
        ended: whether a remedy ended the run early.
        options: configuration values set by remedies, by dotted key.
        sounded: number of alarms so far, by name of the alarm.
        data: name of the training images, which identifies their content.
        config: the configuration of the run, by which a state of another run is noticed.
    """

    def __init__(
        self, config: Config, clf: Classifier, method: Method, train: ImageSet, loader: Loader, seed: int
    ) -> None:
        decay = config.training.ema
        self.clf, self.data, self.config = clf, train.name, lasting_config(config)
        self.method_state = check_state(config.method.name, method.init_state(clf, train, seed))
        self.method_state.to(clf.device)
        self.optimiser = build.build_optimiser(config, clf, self.method_state.parameters())
        self.ema = EMA(clf, decay) if decay is not None else None
        self.watch = Watch(config, loader.steps_per_epoch)
        self.steps_per_epoch = loader.steps_per_epoch
        self.step = self.rollbacks = 0
        self.restored: int | None = None
        self.evaluated_at = -1
        self.rate_factor, self.minutes = 1.0, 0.0
        self.best: list[float] = []
        self.best_step: int | None = None
        self.ended = False
        self.options: dict[str, Any] = {}
        self.sounded: dict[str, int] = {}

    @property
    def epoch(self) -> float:
        """Number of epochs done, with a fractional part."""
        return round(self.step / self.steps_per_epoch, 4)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as nested dictionaries of tensors and plain values."""
        return {
            "weights": self.clf.state_dict(),
            "normalisation": [self.clf.mean, self.clf.std],
            "optimiser": self.optimiser.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "method": self.method_state.state_dict(),
            "rng": torch.get_rng_state(),
            "watch": self.watch.state_dict(),
            "position": {name: getattr(self, name) for name in Position.model_fields},
            "data": self.data,
            "config": self.config,
        }

    def load_state_dict(self, state: dict[str, Any], where: object = "training state") -> None:
        """Restores the state that :meth:`state_dict` returned.

        Args:
            state: as read from a file, so that it may be of another run or hold anything.
            where: the file, for messages.

        Raises:
            CheckpointError: the state does not fit this run.
        """
        try:
            self._load(state)
        # What torch and the parts of a state raise for values of another type, shape or number.
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            reason = problem(error) if isinstance(error, ValidationError) else describe(error)
            raise CheckpointError(
                f"{where}: does not fit this run ({reason}); resume it with its own recipe and version, or train again"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        _check_alike("weights", state["weights"], self.clf.state_dict())
        self.clf.load_state_dict(state["weights"])
        # Of the initial weights, which a resumed run does not read again; earlier versions had one normalisation.
        if "normalisation" in state:
            for name, value in zip(("mean", "std"), state["normalisation"], strict=True):
                setattr(self.clf, name, None if value is None else value.to(self.clf.device))
        self.optimiser.load_state_dict(state["optimiser"])
        # Optimiser buffers get the memory format of their weights, which they had when they were created.
        for weight, buffers in self.optimiser.state.items():
            for name, value in buffers.items():
                if value is not None and value.ndim:
                    _check_alike("optimiser", {name: value}, {name: weight})
                    buffers[name] = torch.empty_like(weight).copy_(value)
        if self.ema is not None:
            _check_alike("ema", state["ema"]["average"], self.ema.average)
            self.ema.load_state_dict(state["ema"])
        if self.method_state.buffer is not None:
            _check_alike("buffer", state["method"]["buffer"], self.method_state.buffer.state_dict())
        self.method_state.load_state_dict(state["method"])
        torch.set_rng_state(state["rng"])
        self.watch.load_state_dict(state["watch"])
        # Earlier versions did not store ``restored``.
        for name, value in Position.model_validate(state["position"]).model_dump().items():
            setattr(self, name, value)
        # Earlier versions stored the two accuracies alone.
        if len(self.best) == ACCURACIES:
            self.best = [1.0, *self.best]


def _check_alike(part: str, saved: Mapping[str, Any], fresh: Mapping[str, Tensor]) -> None:
    """Raises ``ValueError`` unless saved tensors have the names, shapes and kinds of those they replace."""
    if saved.keys() != fresh.keys():
        raise ValueError(
            f"{part}: other tensors: {', '.join(sorted(map(str, saved.keys() ^ fresh.keys()))[:3])}"
        )
    for name, value in saved.items():
        expected = fresh[name]
        # A weight in half precision was trained so.
        alike = value.dtype == expected.dtype or (value.is_floating_point() and expected.is_floating_point())
        if value.shape != expected.shape or not alike:
            raise ValueError(
                f"{part}: {name} is {value.dtype} {list(value.shape)}, not {expected.dtype} {list(expected.shape)}"
            )


class Position(Header):
    """Position and counters of a run: the attributes of :class:`TrainingState` that are saved as ``position``."""

    step: NonNegativeInt
    minutes: NonNegativeFloat
    best: list[float]
    rollbacks: NonNegativeInt
    rate_factor: PositiveFloat
    evaluated_at: Annotated[int, Field(ge=-1)]
    ended: bool
    options: dict[str, Any]
    sounded: dict[str, NonNegativeInt]
    restored: NonNegativeInt | None = None
    best_step: NonNegativeInt | None = None


ACCURACIES = 2
