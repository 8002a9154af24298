"""The run folder: paths of its files, and functions that create, read and extend them without overwriting a run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trilemma.config.config import Config
from trilemma.config.recipe import dump_config, lasting_config, load_config
from trilemma.config.yaml_text import read_text
from trilemma.errors import ConfigError, NotStoredError, RunError
from trilemma.files import parse_json, write_text
from trilemma.printing import print_message
from trilemma.runs.schemas import Environment, Event, Status, check, ordered_metrics
from trilemma.runs.state_file import step_of, stored_step
from trilemma.storing import discard, storing, writable_folder
from trilemma.text_files import (
    Lines,
    count_lines,
    is_sealed,
    present,
    read_json,
    read_json_lines,
    sealed,
    sealed_text,
    unsealed_text,
)

# Keys of ``environment.json`` whose values a sum of floating-point numbers depends on.
_ROUNDING = ("torch", "platform", "device", "cpu", "threads")
# The empty file of the lock (:mod:`trilemma.runs.lock`), which is no content of a folder.
LOCK_FILE = ".lock"
# Statuses of a run whose training has ended well; ``stopped`` is one with a time limit.
ENDED = ("finished", "stopped")
# What a line of ``metrics.jsonl`` about steps contains.
STEP_LINE = b'"kind": "step"'
# Bytes at the end of a log in which its last line is looked for.
_LONGEST_LINE = 1 << 20


def _read_json(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """Returns the content of a JSON file without which a run is whole; of a damaged one nothing, after a warning."""
    if not present(path):
        return {}
    try:
        content = read_json(path)
        check(schema, content)
    except ValueError as error:
        warn_once(f"{path}: {error}; continuing without it")
        return {}
    return content


@cache
def warn_once(text: str) -> None:
    """Prints a warning to standard error; the same one once per process, since several readers find the same damage."""
    print_message(f"warning: {text}")


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
        self.environment_file = self.path / "environment.json"
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
            if run.exists():
                raise RunError(f"{run.config_file}: is not a file that can be read; copy it again")
            raise RunError(
                f"{path}: not a run folder (no config.yaml); give the folder that `trilemma train` wrote"
            )
        return run

    def exists(self) -> bool:
        """Returns whether the folder is a run: there is a ``config.yaml``, even if it cannot be read."""
        return present(self.config_file)

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
        try:
            # Written first: a folder with this file can be resumed.
            run.write_config(dump_config(config))
            run.write_environment({"recipe": recipe, **_environment()})
        except NotStoredError as error:
            # Else the folder would hold a run.
            discard(run.config_file)
            raise NotStoredError(str(path), error.reason, "choose another --out") from None
        return run

    @classmethod
    def check_unused(cls, path: str | Path) -> None:
        """Checks that a new run can be created at ``path``.

        Raises:
            RunError: ``path`` holds a run or other files, or is a file.
        """
        run = cls(path)
        if run.exists():
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
        expected = {name for name, path in candidates.items() if present(path)}
        if "best" not in expected and (
            self._stored_status().get("selected") or any(line.get("selected") for line in self.metrics())
        ):
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
        # Others are copies, such as "state-000000020 (1).safetensors".
        files = sorted(self.state_file.parent.glob("state-*"))
        return {step: file for file in files if (step := step_of(file)) is not None}

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
            or bool(self._stored_status().get("step"))
        )

    def config_text(self) -> str:
        """Returns the text of ``config.yaml``, without its digest.

        Raises:
            ConfigError: the file cannot be read, is not UTF-8, or does not match its digest.
        """
        text = read_text(self.config_file)
        try:
            return unsealed_text(text)
        except ValueError as error:
            raise ConfigError(
                f"{self.config_file}: {error}; copy it again or, if you changed it on purpose, delete that line"
            ) from None

    def config(self) -> Config:
        """Returns the validated configuration.

        Raises:
            ConfigError: as of :meth:`config_text`, or an invalid configuration.
        """
        self.config_text()
        return load_config(str(self.config_file))

    def check_config(self, config: Config) -> None:
        """Checks that ``config`` is the configuration of this run, except for devices and time limit.

        Raises:
            ConfigError: they differ; the message has the first key that does, and both values.
        """
        saved, given = lasting_config(self.config()), lasting_config(config)
        different = [key for key in sorted(saved.keys() | given.keys()) if saved.get(key) != given.get(key)]
        if not different:
            return
        key, more = _named_first(different)
        raise ConfigError(
            f"{self.path}: cannot resume with {key}={given.get(key)}: the run was started with "
            f"{key}={saved.get(key)}{more}; leave it as it was, or give another --out for a new run"
        )

    def check_state(self, file: Path, trained_with: Mapping[str, Any] | None) -> None:
        """Checks that a training state was made with the configuration of this run, and not copied from another.

        Args:
            file: the state.
            trained_with: :func:`lasting_config` of what it was made with; ``None`` in states of earlier versions. Keys
                that only one version has are not compared.

        Raises:
            RunError: it was made with another configuration, and ``config.yaml`` was not changed on purpose.
        """
        config = lasting_config(self.config())
        trained_with = trained_with or {}
        different = [
            key for key in sorted(trained_with.keys() & config.keys()) if trained_with[key] != config[key]
        ]
        if not different or not is_sealed(read_text(self.config_file)):
            return
        key, more = _named_first(different)
        raise RunError(
            f"{file}: not a state of this run: it was made with {key}={trained_with[key]} and not {config[key]}{more}; "
            "put the state of this run back, or remove this one and resume from an earlier one"
        )

    def metrics(self, steps: int | None = None) -> list[dict[str, Any]]:
        """Returns the lines of ``metrics.jsonl``; damaged and missing ones are reported on standard error.

        Args:
            steps: about how many lines of steps to return, evenly spread and with the last one, of a long run; ``None``
                for all. Lines in between are not read, and so not verified.
        """
        lines = self._lines(self.metrics_file, None if steps is None else self._thinned(steps))
        status = self._stored_status()
        step, last = status.get("step") or 0, max((line["step"] for line in lines), default=0)
        # Earlier versions recorded no number of lines. Written when a process ends, after all lines.
        if "lines" not in status and status.get("status") not in (None, "running") and last < step:
            warn_once(f"{self.metrics_file}: ends at step {last} of {step}; its other lines are lost")
        return lines

    def events(self) -> list[dict[str, Any]]:
        """Returns the lines of ``events.jsonl``; damaged and missing ones are reported on standard error."""
        return self._lines(self.events_file)

    def lost_logs(self) -> list[str]:
        """Returns what is lost of the logs, as clauses with their names, and reports it on standard error."""
        found = []
        for path in (self.metrics_file, self.events_file):
            recorded = self.recorded_lines(path)
            try:
                lines = self._read_lines(path) if present(path) else None
            # Reading the lines says why.
            except ValueError:
                continue
            if (lost := self.lost_lines(path, lines, recorded)) is not None:
                warn_once(f"{path}: {lost}")
                found.append(f"{path.name} {lost}")
        return found

    def recorded_lines(self, path: Path) -> int:
        """Returns the number of lines that a log has at least, by ``status.json``; 0 if that does not say it."""
        number: int = self._stored_status().get("lines", {}).get(path.name, 0)
        return number

    def lost_lines(self, path: Path, lines: Lines | None, recorded: int) -> str | None:
        """Returns how a log differs from the number of lines in ``status.json``, as a clause; ``None`` if it does not.

        Args:
            path: the log.
            lines: what was read of it; ``None`` if it does not exist.
            recorded: :meth:`recorded_lines` before it was read, since a process that trains writes both.
        """
        status, name = self._stored_status(), self.status_file.name
        now: int = status.get("lines", {}).get(path.name, 0)
        least = min(recorded, now)
        if lines is None:
            return f"is missing; lost lines: {least}" if least else None
        if lines.count + lines.incomplete < least:
            return f"has {lines.count} of the {least} lines that {name} records; the others are lost"
        # A run that goes on adds lines. The order of metric lines shows which of them are written twice.
        ended = "lines" in status and status["status"] != "running"
        if ended and path == self.events_file and lines.count > now:
            return f"has {lines.count} lines instead of the {now} that {name} records"
        return None

    def _thinned(self, steps: int) -> Callable[[bytes], bool] | None:
        """Returns a function that passes over most lines of steps; ``None`` if there are few."""
        try:
            found = count_lines(self.metrics_file, STEP_LINE) if present(self.metrics_file) else 0
        # Reading the lines says why.
        except ValueError:
            return None
        stride, number = -(-found // steps), 0

        def skip(line: bytes) -> bool:
            nonlocal number
            if STEP_LINE not in line:
                return False
            number += 1
            return number % stride != 0 and number != found

        return skip if stride > 1 else None

    def _read_lines(self, path: Path, skip: Callable[[bytes], bool] | None = None) -> Lines:
        """Returns the lines of a log; raises :class:`ValueError` if it cannot be read at all."""
        events = path == self.events_file
        return read_json_lines(path, partial(check, Event) if events else ordered_metrics(), skip)

    def _lines(self, path: Path, skip: Callable[[bytes], bool] | None = None) -> list[dict[str, Any]]:
        recorded = self.recorded_lines(path)
        try:
            lines = self._read_lines(path, skip) if present(path) else None
        except ValueError as error:
            warn_once(f"{path}: {error}; continuing without it")
            return []
        if (lost := self.lost_lines(path, lines, recorded)) is not None:
            warn_once(f"{path}: {lost}")
        if lines is None:
            return []
        problems = [*lines.problems, *(["its last line is incomplete"] if lines.incomplete else [])]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            warn_once(f"{path}: {problems[0]}{more}; left out")
        elif lost is None and not lines.records and path == self.events_file:
            # Created with its first line.
            warn_once(f"{path}: is empty; its lines are lost")
        return lines.records

    def status(self) -> dict[str, Any]:
        """Returns the contents of ``status.json``; empty before training has begun, or if it is damaged.

        The value of ``status`` is running, interrupted, stopped, failed or finished. If it says that the run has ended,
        but the newest training state is of an earlier step, the file is of another time or run: the status is
        interrupted, and a line on standard error says so, as it does for a missing file.
        """
        status = self._stored_status()
        ended, step = status.get("status"), status.get("step") or 0
        if ended not in ENDED:
            return status
        newest = next((found for path in self.states() if (found := stored_step(path)) is not None), step)
        if newest >= step:
            return status
        warn_once(
            f"{self.status_file}: says {ended} at step {step}, but the newest training state is of step {newest}, so "
            "the run has not ended; train --resume goes on from there"
        )
        return {**status, "status": "interrupted"}

    def _stored_status(self) -> dict[str, Any]:
        # Written before both of these.
        if not present(self.status_file) and (present(self.metrics_file) or present(self.state_file)):
            warn_once(
                f"{self.status_file}: is missing; whether the run has ended, and its logs are whole, is unknown"
            )
        return _read_json(self.status_file, Status)

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
        """Returns the contents of ``environment.json``; empty if the file is missing or damaged, which is reported."""
        if not present(self.environment_file) and self.exists():
            warn_once(f"{self.environment_file}: is missing; where the run was trained is unknown")
        return _read_json(self.environment_file, Environment)

    def write_config(self, text: str) -> None:
        """Writes ``config.yaml`` with its digest."""
        write_text(self.config_file, sealed_text(text))

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes ``environment.json``."""
        _write_json(self.environment_file, environment)

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
        """Replaces ``status.json``; the numbers of lines of the logs are added, by which lost ones are noticed."""
        logs = [path for path in (self.metrics_file, self.events_file) if present(path)]
        _write_json(self.status_file, {**status, "lines": {path.name: _count(path) for path in logs}})

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``."""
        _append(self.metrics_file, record)

    def add_event(self, record: dict[str, Any]) -> None:
        """Appends a line to ``events.jsonl``."""
        _append(self.events_file, record)

    def drop_metrics_after(self, step: int, evaluated_at: int, keep_best: bool = False) -> None:
        """Removes the metric lines of steps after ``step``, which will be run again.

        Args:
            step: the last step whose lines remain.
            evaluated_at: the last step whose line of an evaluation remains.
            keep_best: whether to keep the line of the best checkpoint, of which the run has a classifier, with kind
                ``best`` instead of ``epoch``.
        """
        lines = self.metrics()
        last = {"epoch": min(step, evaluated_at)}
        remaining = [
            line for line in lines if line["kind"] == "best" or line["step"] <= last.get(line["kind"], step)
        ]
        selected = [line for line in lines if line.get("selected")]
        if keep_best and selected and selected[-1] not in remaining:
            remaining.append({**selected[-1], "kind": "best"})
        self.write_metrics(remaining)

    def write_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Replaces all lines of ``metrics.jsonl``."""
        lines = list(lines)
        # First: a process that is killed in between leaves more lines than recorded, which are not lost.
        self._record_fewer_lines(self.metrics_file, len(lines))
        write_text(self.metrics_file, "".join(json.dumps(sealed(line)) + "\n" for line in lines))

    def _record_fewer_lines(self, path: Path, number: int) -> None:
        """Lowers the number of lines of a log in ``status.json`` to ``number``, since the others are removed."""
        status = self._stored_status()
        if status.get("lines", {}).get(path.name, 0) > number:
            _write_json(self.status_file, {**status, "lines": {**status["lines"], path.name: number}})

    def set_aside_damaged(self) -> None:
        """Renames the logs and the status that a run cannot go on writing, so that nothing of them is overwritten.

        The sound lines of the metrics, which are rewritten, are kept. A line on standard error names each renamed file.
        Called before a run is resumed.
        """
        for path in (self.metrics_file, self.events_file, self.status_file):
            lines = self._sound_lines(path) if present(path) else None
            if lines is None:
                continue
            names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
            aside = next(name for name in names if not present(name))
            with storing(path):
                path.rename(aside)
            warn_once(
                f"{path}: damaged; renamed to {aside.name}, and continued with {len(lines)} sound lines"
            )
            self._record_fewer_lines(path, len(lines))
            if lines:
                self.write_metrics(lines)

    def _sound_lines(self, path: Path) -> list[dict[str, Any]] | None:
        """Returns the lines with which a file is to be continued after renaming it; ``None`` if that is not needed."""
        if path == self.status_file:
            return [] if path.is_dir() else None
        try:
            lines = self._read_lines(path)
        except ValueError:
            return []
        # Events are only appended to, so nothing of them is lost.
        return lines.records if lines.problems and path == self.metrics_file else None


def default_folder(recipe: str) -> Path:
    """Returns ``runs/digits-eb-jdat`` for ``digits/eb-jdat``, and ``runs/mine`` for ``recipes/mine.yaml``."""
    path = Path(recipe)
    return Path("runs") / (path.stem if path.suffix in (".yaml", ".yml") else recipe.replace("/", "-"))


def selected_line(metrics: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the line of the evaluation on held-out images whose checkpoint was selected; empty without any."""
    epochs = [row for row in metrics if row["kind"] in ("epoch", "best")]
    selected = [row for row in epochs if row.get("selected")] or epochs
    return selected[-1] if selected else {}


def _named_first(different: Sequence[str]) -> tuple[str, str]:
    """The key that a message about different keys names, and in words how many more there are."""
    # A name decides which keys its section has.
    key = next((key for key in different if key.endswith(".name")), different[0])
    return key, f" (and {len(different) - 1} more)" if len(different) > 1 else ""


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(sealed(content), indent=2))


def _append(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a JSON line; an incomplete last line, left by a killed process, is removed.

    Raises:
        NotStoredError: it cannot be written; no part of it stays in the file.
    """
    line = json.dumps(sealed(record)).encode() + b"\n"
    with storing(path), path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, end - _LONGEST_LINE))
        tail = file.read().rpartition(b"\n")[2]
        if tail and (_is_json(tail) or len(tail) == end - start < end):
            line = b"\n" + line
        elif tail:
            end = file.truncate(end - len(tail))
        try:
            # On a disk that is almost full a part is written, and only the next attempt is an error.
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(end)
            raise


def _count(path: Path) -> int:
    """Returns the number of lines of a log; none of one that cannot be read."""
    try:
        return count_lines(path, b"")
    # Where it is read or written, the reason is reported.
    except ValueError:
        return 0


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line.decode())
    except ValueError:
        return False
    return True


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
