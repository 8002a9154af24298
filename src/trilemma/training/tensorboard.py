"""Writes metric lines for TensorBoard, if it is installed (extra ``tensorboard``)."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes the numbers of metric lines as TensorBoard scalars; does nothing if TensorBoard is not installed.

    Args:
        folder: folder of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._writer: Any = None
        # TensorBoard is optional: metrics.jsonl holds the same numbers.
        with suppress(ImportError):
            self._writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder))

    def add(self, line: dict[str, Any]) -> None:
        """Writes the numbers of one metric line; nested terms become ``terms/NAME``."""
        if self._writer is None:
            return
        flat = {name: value for name, value in line.items() if name not in ("kind", "step", "terms")}
        flat |= {f"terms/{name}": value for name, value in line.get("terms", {}).items()}
        for name, value in flat.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()
