"""The run folder: paths of its files, and functions that create, read and extend them without overwriting a run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from trilemma.config.config import Config
from trilemma.config.recipe import dump_config, flatten_config, load_config
from trilemma.errors import ConfigError, NotStoredError, RunError
from trilemma.files import parse_json, write_text
from trilemma.printing import print_message
from trilemma.storing import discard, storing, writable_folder

# Keys of ``environment.json`` whose values a sum of floating-point numbers depends on.
_ROUNDING = ("torch", "platform", "device", "cpu", "threads")
# The empty file of the lock (:mod:`trilemma.runs.lock`), which is no content of a folder.
LOCK_FILE = ".lock"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a JSON lines file; an incomplete line, left by a killed process, is skipped."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file without which a run is whole; of a damaged one nothing, after a warning."""
    if not path.exists():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        problem = "not a JSON object"
    except OSError as error:
        problem = error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    _warn_once(f"warning: {path}: cannot be read ({problem}); continuing without it")
    return {}


@cache
def _warn_once(text: str) -> None:
    print_message(text)


class RunDirectory:
    """The paths and files of one run folder.

    Args:
        path: the folder; it need not exist, and the constructor writes nothing.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.status_file = self.path / "status.json"
        self.state_file = self.path / "checkpoints" / "last" / "state.safetensors"
        self.last_classifier = self.path / "checkpoints" / "last" / "classifier.safetensors"
        self.best_classifier = self.path / "checkpoints" / "best" / "classifier.safetensors"

    @classmethod
    def open(cls, path: str | PathLike[str]) -> RunDirectory:
        """Returns an existing run.

        Raises:
            RunError: the folder does not exist, or is not a run folder.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise RunError(f"{path}: no such run folder; `trilemma train RECIPE --out {path}` creates one")
        if not run.config_file.is_file():
            raise RunError(
                f"{path}: not a run folder (no config.yaml); give the folder that `trilemma train` wrote"
            )
        return run

    @classmethod
    def create(cls, path: str | Path, config: Config, recipe: str = "") -> RunDirectory:
        """Creates a run folder with its configuration and environment.

        Args:
            path: the folder.
            config: the resolved configuration.
            recipe: name of the recipe, for reports.

        Raises:
            RunError: the folder already holds a run or other files.
            NotStoredError: it cannot be written.
        """
        cls.check_unused(path)
        run = cls(path)
        writable_folder(run.path)
        environment = run.path / "environment.json"
        try:
            write_text(environment, json.dumps({"recipe": recipe, **_environment()}, indent=2))
            # Written last: a folder with this file can be resumed.
            write_text(run.config_file, dump_config(config))
        except NotStoredError as error:
            # Else the folder would count as used.
            discard(environment)
            raise NotStoredError(str(path), error.reason, "choose another --out") from None
        return run

    @classmethod
    def check_unused(cls, path: str | Path) -> None:
        """Checks that a new run can be created at ``path``.

        Raises:
            RunError: ``path`` holds a run or other files, or is a file.
        """
        run = cls(path)
        if run.config_file.exists():
            raise RunError(
                f"{path}: holds a run already; add --resume (in Python resume='auto') to continue it, or choose "
                "another --out"
            )
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{path}: is a file, not a folder; choose another --out")
        if run.path.is_dir() and any(path.name != LOCK_FILE for path in run.path.iterdir()):
            raise RunError(f"{path}: is not empty and holds no run; choose another --out")

    def classifiers(self) -> dict[str, Path]:
        """Returns the paths of the finished classifiers by name, ``best`` before ``last``.

        If the run has selected a best classifier, its path is among them even if the file is lost, so that reading it
        is an error and the last classifier never takes its place.
        """
        candidates = {"best": self.best_classifier, "last": self.last_classifier}
        expected = {name for name, path in candidates.items() if path.exists()}
        if "best" not in expected and any(line.get("selected") for line in self.metrics()):
            expected.add("best")
        return {name: path for name, path in candidates.items() if name in expected}

    @property
    def first_stage(self) -> RunDirectory:
        """The run of the first stage, in a subfolder, whose classifier provides the initial weights of this run.

        It exists only if ``training.start`` is a recipe.
        """
        return RunDirectory(self.path / "stage-1")

    def earlier_states(self) -> dict[int, Path]:
        """Returns the paths of the stored training states by step, including the last one, for rollbacks."""
        files = self.state_file.parent.glob("state-*.safetensors")
        return {int(file.stem.removeprefix("state-")): file for file in sorted(files)}

    def earlier_state(self, step: int) -> Path:
        """Returns the path of the stored training state of a step."""
        return self.state_file.with_name(f"state-{step:09d}.safetensors")

    def states(self) -> list[Path]:
        """Returns the paths at which training states are expected, the newest first; the first need not exist."""
        earlier = self.earlier_states()
        return [self.state_file, *(earlier[step] for step in sorted(earlier, reverse=True))]

    def has_begun(self) -> bool:
        """Returns whether training has taken steps, as far as any file of the run shows it."""
        checkpoints = self.path / "checkpoints"
        return (
            any(path.is_file() for path in checkpoints.rglob("*.safetensors"))
            or bool(self.metrics())
            or bool(self.status().get("step"))
        )

    def config(self) -> Config:
        """Returns the validated configuration."""
        return load_config(str(self.config_file))

    def check_config(self, config: Config) -> None:
        """Checks that ``config`` is the configuration of this run, except for devices and time limit.

        Raises:
            ConfigError: they differ; the message has the first key that does, and both values.
        """
        saved, given = (flatten_config(c) for c in (self.config(), config))
        # Neither of these changes the result of a step.
        different = [
            key
            for key in sorted(saved.keys() | given.keys())
            if key not in ("devices", "training.max_minutes") and saved.get(key) != given.get(key)
        ]
        if not different:
            return
        # A name decides which keys its section has.
        key = next((key for key in different if key.endswith(".name")), different[0])
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise ConfigError(
            f"{self.path}: cannot resume with {key}={given.get(key)}: the run was started with "
            f"{key}={saved.get(key)}{more}; leave it as it was, or give another --out for a new run"
        )

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of ``metrics.jsonl``."""
        return _read_lines(self.metrics_file)

    def events(self) -> list[dict[str, Any]]:
        """Returns the lines of ``events.jsonl``."""
        return _read_lines(self.events_file)

    def status(self) -> dict[str, Any]:
        """Returns the contents of ``status.json``; empty before training has begun, or if it is damaged.

        The value of ``status`` is running, interrupted, stopped, failed or finished.
        """
        return _read_json(self.status_file)

    def summary(self) -> dict[str, Any]:
        """Returns the status of the run, and the held-out accuracies of its selected checkpoint."""
        best = selected_line(self.metrics())
        status = self.status()
        return {
            "run": str(self.path),
            "status": status.get("status"),
            "epochs": status.get("epochs"),
            "minutes": status.get("minutes"),
            "best_epoch": best.get("epoch"),
            "held_out_clean": best.get("held_out_clean"),
            "held_out_pgd10": best.get("held_out_pgd10"),
            "held_out_chance": best.get("held_out_chance"),
            "events": len(self.events()),
        }

    def environment(self) -> dict[str, Any]:
        """Returns the contents of ``environment.json``; empty if the file does not exist or is damaged."""
        return _read_json(self.path / "environment.json")

    def environment_changes(self) -> list[str]:
        """Returns what differs between this process and the one that created the run, and can change a rounding.

        Runs of earlier versions, and a damaged ``environment.json``, do not say everything.
        """
        recorded, current = self.environment(), _environment()
        return [
            f"{key} {current[key]} instead of {recorded[key]}"
            for key in _ROUNDING
            if key in recorded and recorded[key] != current[key]
        ]

    def write_status(self, **status: Any) -> None:
        """Replaces ``status.json``."""
        write_text(self.status_file, json.dumps(status, indent=2))

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``."""
        _append(self.metrics_file, record)

    def add_event(self, record: dict[str, Any]) -> None:
        """Appends a line to ``events.jsonl``."""
        _append(self.events_file, record)

    def drop_metrics_after(self, step: int, keep_best: bool = False) -> None:
        """Removes the metric lines of steps after ``step``, which will be run again.

        Args:
            step: the last step whose lines remain.
            keep_best: whether to keep the line of the best checkpoint, of which the run has a classifier, with kind
                ``best`` instead of ``epoch``.
        """
        lines = self.metrics()
        remaining = [line for line in lines if line["step"] <= step or line["kind"] == "best"]
        selected = [line for line in lines if line.get("selected")]
        if keep_best and selected and selected[-1] not in remaining:
            remaining.append({**selected[-1], "kind": "best"})
        write_text(self.metrics_file, "".join(json.dumps(record) + "\n" for record in remaining))

    def drop_metrics(self) -> None:
        """Removes all metric lines."""
        write_text(self.metrics_file, "")


def default_folder(recipe: str) -> Path:
    """Returns ``runs/digits-eb-jdat`` for ``digits/eb-jdat``, and ``runs/mine`` for ``recipes/mine.yaml``."""
    path = Path(recipe)
    return Path("runs") / (path.stem if path.suffix in (".yaml", ".yml") else recipe.replace("/", "-"))


def selected_line(metrics: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the line of the evaluation on held-out images whose checkpoint was selected; empty without any."""
    epochs = [row for row in metrics if row["kind"] in ("epoch", "best")]
    selected = [row for row in epochs if row.get("selected")] or epochs
    return selected[-1] if selected else {}


def _append(path: Path, record: dict[str, Any]) -> None:
    """Appends a JSON line, on a new line even if a killed process left an incomplete one.

    Raises:
        NotStoredError: it cannot be written; no part of it stays in the file.
    """
    line = json.dumps(record).encode() + b"\n"
    with storing(path), path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        incomplete = end > 0 and file.read(1) != b"\n"
        content = (b"\n" if incomplete else b"") + line
        try:
            # On a disk that is almost full a part is written, and only the next attempt is an error.
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(end)
            raise


def _environment() -> dict[str, Any]:
    """Returns versions, processor, device, number of threads, time and command of this process."""
    import torch

    from trilemma import __version__

    return {
        "trilemma": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["trilemma", *sys.argv[1:]])
        if Path(sys.argv[0]).name == "trilemma"
        else "python",
    }
