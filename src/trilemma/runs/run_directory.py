"""The run folder: what lies where, and how it is written without ever losing what was there."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from trilemma.config.config import Config
from trilemma.errors import RunError
from trilemma.files import write_text
from trilemma.config.recipe import dump_config
from trilemma.config.recipe import load_config

def _read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a line cut by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class RunDirectory:
    """Paths and records of one run.

    Args:
        path: the folder; nothing is written by constructing this.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.status_file = self.path / "status.json"
        self.state_file = self.path / "checkpoints" / "last" / "state.safetensors"
        self.last_classifier = self.path / "checkpoints" / "last" / "classifier.safetensors"
        self.best_classifier = self.path / "checkpoints" / "best" / "classifier.safetensors"

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run.

        Raises:
            RunError: there is no such folder, or it is not a run.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise RunError(f"{path}: no such run folder; `trilemma train RECIPE --out {path}` makes one")
        if not run.config_file.is_file():
            raise RunError(
                f"{path}: not a run folder (no config.yaml); give the folder that `trilemma train` wrote"
            )
        return run

    @classmethod
    def create(cls, path: str | Path, config: Config, recipe: str = "") -> RunDirectory:
        """A new run with its configuration and environment written; ``recipe`` is its name in reports.

        Raises:
            RunError: the folder already holds a run or other files, or cannot be written.
        """
        cls.check_free(path)
        run = cls(path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            write_text(run.config_file, dump_config(config))  # first: from here on it can be resumed
            write_text(
                run.path / "environment.json", json.dumps({"recipe": recipe, **_environment()}, indent=2)
            )
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}); choose another --out"
            ) from None
        return run

    @classmethod
    def check_free(cls, path: str | Path) -> None:
        """Refuses a folder that a new run cannot have.

        Raises:
            RunError: it holds a run or other files, or is no folder.
        """
        run = cls(path)
        if run.config_file.exists():
            raise RunError(
                f"{path}: holds a run already; add --resume to go on with it, or choose another --out"
            )
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{path}: is a file, not a folder; choose another --out")
        if run.path.is_dir() and any(run.path.iterdir()):
            raise RunError(f"{path}: is not empty and holds no run; choose another --out")

    def classifiers(self) -> dict[str, Path]:
        """The finished classifiers that are there, ``best`` before ``last``: what evaluation may read."""
        both = {"best": self.best_classifier, "last": self.last_classifier}
        return {name: path for name, path in both.items() if path.is_file()}

    @property
    def first_stage(self) -> RunDirectory:
        """The run, in a folder inside this one, whose classifier this one begins with, where a recipe says so."""
        return RunDirectory(self.path / "stage-1")

    def earlier_states(self) -> dict[int, Path]:
        """Raw states to go back to, the last one among them, by their step."""
        files = self.state_file.parent.glob("state-*.safetensors")
        return {int(file.stem.removeprefix("state-")): file for file in sorted(files)}

    def earlier_state(self, step: int) -> Path:
        """Where the raw state of a step is kept."""
        return self.state_file.with_name(f"state-{step:09d}.safetensors")

    def config(self) -> Config:
        return load_config(str(self.config_file))

    def metrics(self) -> list[dict[str, Any]]:
        return _read_lines(self.metrics_file)

    def events(self) -> list[dict[str, Any]]:
        return _read_lines(self.events_file)

    def status(self) -> dict[str, Any]:
        """``status`` is running, interrupted, stopped, failed or finished; empty before the start."""
        status: dict[str, Any] = (
            json.loads(self.status_file.read_text()) if self.status_file.is_file() else {}
        )
        return status

    def environment(self) -> dict[str, Any]:
        file = self.path / "environment.json"
        environment: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return environment

    def write_status(self, **status: Any) -> None:
        write_text(self.status_file, json.dumps(status, indent=2))

    def add_metrics(self, row: dict[str, Any]) -> None:
        _append(self.metrics_file, row)

    def add_event(self, row: dict[str, Any]) -> None:
        _append(self.events_file, row)

    def cut_metrics(self, step: int) -> None:
        """Drops metric lines of steps after ``step``, which are about to be run again."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        cut = end > 0 and file.read(1) != b"\n"  # a kill left half a line: the new one must not join it
        file.write((b"\n" if cut else b"") + json.dumps(row).encode() + b"\n")


def _environment() -> dict[str, Any]:
    import torch

    from trilemma import __version__

    return {
        "trilemma": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["trilemma", *sys.argv[1:]])
        if Path(sys.argv[0]).name == "trilemma"
        else "python",
    }
