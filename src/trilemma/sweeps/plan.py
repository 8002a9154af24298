"""The plan of a sweep: its runs and their folders, checked before the first run begins, and the record of them.

The record, ``sweep.json``, names the recipe, the shared values and the varying keys, and the values of every run. It
makes the same command find its runs again, and lets another sweep of the same keys add runs to the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.config.config import Config
from trilemma.config.grid import SEED, SEED_KEY, Grid
from trilemma.config.overrides import check_sections
from trilemma.config.recipe import load_config, same_recipe
from trilemma.errors import ConfigError, RunError
from trilemma.files import write_text
from trilemma.runs.run_directory import LOCK_FILE, RunDirectory
from trilemma.storing import storing
from trilemma.text_files import present, read_json, read_text, sealed

RECORD, LOGS = "sweep.json", "logs"
VERSION = 1
# Characters of the name of a run folder.
LONGEST_NAME = 100
# A sweep of more runs is a slip of the values, unless it is asked for.
MAX_RUNS = 256


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: of its folder in the folder of the sweep.
        values: its values of the varying keys.
        config: its resolved configuration.
    """

    name: str
    values: Mapping[str, Any]
    config: Config


@dataclass(frozen=True)
class Plan:
    """The runs of one call, and the record of all runs of the folder.

    Attributes:
        folder: of the sweep.
        recipe: name or path.
        fixed: values that all runs share.
        runs: those of this call.
        names: folder name to values, of all runs that the folder has been planned for.
    """

    folder: Path
    recipe: str
    fixed: Mapping[str, Any]
    runs: tuple[PlannedRun, ...]
    names: Mapping[str, Mapping[str, Any]]

    def write_record(self) -> None:
        """Writes ``sweep.json`` if it changes, and makes the folder of the logs.

        Raises:
            NotStoredError: the folder cannot be written.
        """
        record = {
            "version": VERSION,
            "recipe": self.recipe,
            "fixed": self.fixed,
            "varying": list(self.runs[0].values),
            "runs": self.names,
        }
        with storing(self.folder, "choose another --out"):
            (self.folder / LOGS).mkdir(parents=True, exist_ok=True)
        file, text = self.folder / RECORD, json.dumps(sealed(record), indent=1) + "\n"
        # A complete sweep on a read-only disk still shows its table.
        if not present(file) or read_text(file) != text:
            write_text(file, text)


def make_plan(recipe: str, grid: Grid, folder: Path, max_runs: int = MAX_RUNS) -> Plan:
    """Returns the plan of a sweep; writes nothing.

    Args:
        recipe: name or path.
        grid: values of this call.
        folder: of the sweep; new, empty, or of an earlier sweep of the same recipe and the same keys.
        max_runs: a larger number of runs is refused.

    Raises:
        ConfigError: no varying key, too many runs, a combination that is no valid configuration, or one that a run in
            the folder was not started with.
        RunError: the folder holds something else, or a sweep of another recipe, other keys or other shared values.
    """
    record = _read_record(folder)
    if record:
        grid = grid.varied_by(record["varying"])
    if not grid.varying:
        raise ConfigError(
            "no key has several values; write seed=0..4 or method.beta=0.1,1, or use `trilemma train` for one run"
        )
    if record:
        _check_record(folder, record, recipe, grid)
    if grid.count > max_runs:
        raise ConfigError(
            f"{grid.count:,} runs ({' x '.join(f'{len(v)} {k}' for k, v in grid.varying.items())}), which is more than "
            f"{max_runs}; give fewer values, or allow them with --max-runs {grid.count}"
        )
    names = {name: dict(values) for name, values in record.get("runs", {}).items()}
    runs: dict[str, PlannedRun] = {}
    configs = set()
    for values in grid.combinations():
        overrides = {**grid.fixed, **values}
        check_sections(overrides)
        config = load_config(recipe, overrides)
        if config.devices > 1:
            raise ConfigError(
                f"devices={config.devices}: each run of a sweep is one process; use devices=1 and --jobs, or `trilemma "
                "train` for a run on several devices"
            )
        # Values that are written differently, such as 1 and 1.0, may be one configuration.
        if (text := config.model_dump_json()) in configs:
            continue
        configs.add(text)
        name = next((name for name, known in names.items() if known == values), None)
        name = name or _unused(run_name(values), names, values)
        names[name] = values
        runs[name] = PlannedRun(name, values, config)
        if (run := RunDirectory(folder / name)).exists():
            run.check_config(config)
    return Plan(folder, recipe, grid.fixed, tuple(runs.values()), names)


def run_name(values: Mapping[str, Any]) -> str:
    """Returns the name of a run's folder, such as ``method.beta=0.1_seed=0``: letters, digits and ``.=_-+`` only."""
    parts = [
        f"{SEED if key == SEED_KEY else key.removesuffix('.name')}={_text(value)}"
        for key, value in values.items()
    ]
    name = re.sub(r"[^\w.=+-]+", "-", "_".join(parts), flags=re.ASCII)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{_digest(values)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _unused(name: str, names: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]) -> str:
    """Returns ``name``, with a digest of the values if another run has it; some disks do not distinguish case."""
    taken = {other.casefold() for other in names}
    return f"{name}-{_digest(values)}" if name.casefold() in taken else name


def _read_record(folder: Path) -> dict[str, Any]:
    """Returns the content of ``sweep.json``; empty if the folder is new or empty.

    Raises:
        RunError: the folder is a file or holds something else, or its record cannot be read.
    """
    file = folder / RECORD
    if not present(file):
        if RunDirectory(folder).exists():
            raise RunError(f"{folder}: holds a run, not a sweep; choose another --out")
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder}: is a file, not a folder; choose another --out")
        if folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir()):
            raise RunError(f"{folder}: is not empty and holds no sweep (no {RECORD}); choose another --out")
        return {}
    try:
        record = read_json(file)
        shape = {"recipe": str, "fixed": dict, "varying": list, "runs": dict}
        if not all(isinstance(record.get(k), v) for k, v in shape.items()):
            raise ValueError("not the record of a sweep")
        if not all(isinstance(key, str) for key in record["varying"]) or not all(
            isinstance(values, dict) for values in record["runs"].values()
        ):
            raise ValueError("not the record of a sweep")
        if record.get("version") != VERSION:
            raise ValueError(f"version {record.get('version')!r} instead of {VERSION}")
    except ValueError as error:
        raise RunError(f"{file}: cannot be read ({error}); choose another --out") from None
    return record


def _check_record(folder: Path, record: Mapping[str, Any], recipe: str, grid: Grid) -> None:
    """Checks that a further sweep in the same folder has the same recipe, shared values and varying keys.

    Raises:
        RunError: it has not; what differs is named.
    """
    advice = "repeat them, or choose another --out"
    if not same_recipe(recipe, record["recipe"]):
        raise RunError(
            f"{folder}: holds a sweep of {record['recipe']}, not of {recipe}; choose another --out"
        )
    if (known := record["varying"]) != list(grid.varying):
        raise RunError(f"{folder}: its sweep varies {_list(known)}, not {_list(grid.varying)}; {advice}")
    if (fixed := record["fixed"]) != grid.fixed:
        raise RunError(
            f"{folder}: the runs of its sweep share {_pairs(fixed)}, not {_pairs(grid.fixed)}; {advice}"
        )


def _list(keys: Iterable[str]) -> str:
    return ", ".join(keys)


def _pairs(values: Mapping[str, Any]) -> str:
    return (
        " ".join(f"{key}={_text(value)}" for key, value in values.items()) or "the values of the recipe only"
    )
