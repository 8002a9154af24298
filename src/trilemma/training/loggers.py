"""Loggers for ``trilemma.train(..., log=...)``: Weights & Biases, MLflow and Trackio.

A logger is any function ``log(record, step)``. The records are those of ``metrics.jsonl`` and ``events.jsonl``, and at
every evaluation on held-out images one of ``kind`` ``images``: ``clean``, ``adversarial`` and ``generated``, the first
images of the last batch, float32 ``[n, C, H, W]`` in [0, 1]; only those that the method makes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trilemma.errors import ConfigError, MissingExtraError

Record = dict[str, Any]
Log = Callable[[Record, int], None]

# Images of each set in a record.
IMAGES = 8
# Keys that say what a record is; the other numbers of a record are metrics.
_ABOUT = ("kind", "step", "terms")


def numbers(record: Record) -> dict[str, float]:
    """The numbers of a metric record by name; those of ``terms`` are called ``terms/NAME``. Empty for other kinds."""
    if record["kind"] not in ("step", "epoch"):
        return {}
    flat = {name: value for name, value in record.items() if name not in _ABOUT}
    flat |= {f"terms/{name}": value for name, value in record.get("terms", {}).items()}
    return {name: float(value) for name, value in flat.items() if isinstance(value, int | float)}


def pictures(record: Record) -> dict[str, NDArray[np.uint8]]:
    """The images of a record side by side, uint8 ``[H, n W, 3]`` by name; empty for other kinds."""
    return {name: _side_by_side(value) for name, value in record.items() if isinstance(value, Tensor)}


def _side_by_side(images: Tensor) -> NDArray[np.uint8]:
    colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
    row = (255 * colour.clamp(0.0, 1.0)).round().byte().permute(2, 0, 3, 1).flatten(1, 2)
    array: NDArray[np.uint8] = row.contiguous().numpy()
    return array


def event(record: Record) -> tuple[str, str] | None:
    """Title and message of an alarm, remedy or other event; ``None`` for metrics and images."""
    return (f"{record['kind']}: {record['name']}", record["message"]) if "message" in record else None


def wandb(run: Any = None) -> Log:
    """A logger for Weights & Biases.

    Numbers are logged against the training step, which a rollback sets back; alarms are alerts.

    Args:
        run: what ``wandb.init`` returned; by default the active run.

    Raises:
        MissingExtraError: wandb is not installed.
        ConfigError: no run is active.
    """
    package = _package("wandb")
    active = run or package.run
    if active is None:
        raise ConfigError("loggers.wandb: no run is active; call wandb.init(project=...) first")
    active.define_metric("*", step_metric="step")

    def log(record: Record, step: int) -> None:
        if values := _values(record, package.Image):
            active.log({"step": step, **values})
        if (happened := event(record)) is not None:
            active.summary[happened[0]] = f"step {step}: {happened[1]}"
            if record["kind"] == "alarm":
                active.alert(*happened)

    return log


def mlflow() -> Log:
    """A logger for the active run of MLflow; one is started if there is none. Events are tags.

    Raises:
        MissingExtraError: mlflow is not installed.
    """
    package = _package("mlflow")

    def log(record: Record, step: int) -> None:
        package.log_metrics(numbers(record), step=step)
        for name, array in pictures(record).items():
            # By default images are written in the background, and the end of the program could lose the last ones.
            package.log_image(array, key=f"images/{name}", step=step, synchronous=True)
        if (happened := event(record)) is not None:
            package.set_tag(happened[0].replace(": ", "."), f"step {step}: {happened[1]}")

    return log


def trackio() -> Log:
    """A logger for the run that ``trackio.init`` started. Events are alerts.

    Raises:
        MissingExtraError: trackio is not installed.
    """
    package = _package("trackio")

    def log(record: Record, step: int) -> None:
        if values := _values(record, package.Image):
            package.log(values, step=step)
        if (happened := event(record)) is not None:
            level = package.AlertLevel.WARN if record["kind"] == "alarm" else package.AlertLevel.INFO
            package.alert(happened[0], f"step {step}: {happened[1]}", level)

    return log


def _values(record: Record, image: Callable[[Any], Any]) -> Record:
    """The numbers of a record and its images, each converted by ``image``."""
    images = {f"images/{name}": image(array) for name, array in pictures(record).items()}
    return {**numbers(record), **images}


def _package(name: str) -> Any:
    """Imports a tracker; raises :class:`MissingExtraError` if it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"loggers.{name}: {name} is not installed; pip install {name}") from error
