"""Writes the records of a run for TensorBoard, if it is installed (extra ``tensorboard``)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from trilemma.printing import print_message
from trilemma.training.loggers import Log, Record, event, numbers, pictures


def tensorboard(folder: Path) -> Log | None:
    """A logger that writes numbers as scalars, images as pictures and events as texts; ``None`` without TensorBoard.

    ``None`` also if the folder cannot be written, after a warning.

    Args:
        folder: folder of the event files.
    """
    # TensorBoard is optional: metrics.jsonl and events.jsonl hold the same numbers and events.
    try:
        writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    except ImportError:
        return None
    except OSError as error:
        print_message(f"warning: {folder}: cannot be written ({error.strerror or error})")
        return None

    def log(record: Record, step: int) -> None:
        for name, value in numbers(record).items():
            writer.add_scalar(name, value, step)
        for name, array in pictures(record).items():
            writer.add_image(f"images/{name}", array, step, dataformats="HWC")
        if (happened := event(record)) is not None:
            writer.add_text(*happened, step)
        writer.flush()

    return log
