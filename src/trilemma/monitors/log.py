"""Training logs of any program: rows, data frames, CSV and JSON files, and run folders, as epochs and accuracies."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from trilemma.errors import ConfigError, DataError
from trilemma.files import parse_json
from trilemma.limits import LOG_ROWS
from trilemma.monitors.evaluations import Evaluation
from trilemma.monitors.monitor import CHANCE
from trilemma.printing import print_message
from trilemma.runs.run_directory import RunDirectory, warn_once
from trilemma.text_files import present, read_json_lines, read_text

Row = Mapping[str, Any]
LogSource = str | os.PathLike[str] | Iterable[Row]

# Names of columns by their content, the preferred ones first, as column_key() has them.
COLUMNS: dict[str, tuple[str, ...]] = {
    "epoch": ("epoch", "epochs", "ep"),
    "clean": ("clean", "natural", "nat", "standard", ""),
    "fgsm": ("fgsm",),
    "pgd": ("pgd10", "pgd", "pgd20", "pgd50", "pgd5010", "robust", "adversarial", "adv"),
    "images": ("images",),
    "chance": ("chance",),
}
NEEDED = ("epoch", "pgd")
ACCURACIES = ("clean", "fgsm", "pgd", "chance")
# Words of a column name that say nothing about its content.
_WORDS = ("test", "val", "valid", "validation", "eval", "held", "out", "acc", "accuracy")
_SUFFIXES = ".csv, .tsv, .json or .jsonl"
_EMPTY = "is empty; give a log with a row per evaluation"


@dataclass(frozen=True)
class LoggedEvaluation(Evaluation):
    """One row of a log.

    Attributes:
        epoch: of the evaluation.
        clean: accuracy without an attack, in [0, 1]; ``None`` if the log has none.
    """

    epoch: float = 0.0
    clean: float | None = None


def column_key(name: object) -> str:
    """Returns the name of a column as :data:`COLUMNS` has it: ``pgd10`` for ``PGD-10``, ``test_pgd_10_acc``."""
    words = re.findall(r"[a-z0-9]+", str(name).lower())
    return "".join(word for word in words if word not in _WORDS)


def read_log(
    source: LogSource, held_out_images: int | None = None, classes: int | None = None
) -> list[LoggedEvaluation]:
    """Returns the evaluations of a log, in the order of epochs; rows without an accuracy under PGD are left out.

    Args:
        source: rows as mappings, a ``pandas.DataFrame``, a file (CSV, TSV, JSON or JSON lines), or a run folder.
        held_out_images: number of images of each evaluation; by default that of the log, or very many.
        classes: number of classes, which sets the accuracy of chance. By default chance is as in the log, or at most
            0.1 and at most the lowest clean accuracy.

    Raises:
        ConfigError: less than one image, or less than two classes.
        DataError: the source cannot be read, a column is missing or ambiguous, a value is not a number or lies outside
            its range, or epochs do not increase.
    """
    if held_out_images is not None and held_out_images < 1:
        raise ConfigError(
            f"held_out_images={held_out_images}: give a number of images, or None for very many"
        )
    if classes is not None and classes < 2:
        raise ConfigError(f"classes={classes}: give at least 2, or None")
    name, rows = _rows(source)
    columns = _columns(name, rows)
    evaluations: list[LoggedEvaluation] = []
    for number, row in enumerate(rows, 1):
        at = f"{name}, row {number}"
        values = {role: _number(at, column, row.get(column)) for role, column in columns.items()}
        if values["pgd"] is None:
            continue
        if values["epoch"] is None:
            raise DataError(f"{at}: no value of {columns['epoch']!r}; every evaluation needs its epoch")
        for role in ACCURACIES:
            _check_accuracy(at, columns.get(role), values.get(role))
        images, chance = values.get("images"), values.get("chance")
        evaluations.append(
            LoggedEvaluation(
                pgd10=values["pgd"],
                fgsm=values.get("fgsm"),
                images=held_out_images or (None if images is None else max(1, round(images))),
                chance=1 / classes if classes else CHANCE if chance is None else chance,
                chance_is_known=bool(classes) or chance is not None,
                epoch=values["epoch"],
                clean=values.get("clean"),
            )
        )
    if not evaluations:
        raise DataError(f"{name}: no row has a value of {columns['pgd']!r}; nothing can be judged")
    for first, second in pairwise(evaluations):
        if second.epoch <= first.epoch:
            raise DataError(
                f"{name}: epoch {second.epoch:g} follows epoch {first.epoch:g}; epochs must increase, so give one run "
                "per log"
            )
    return _with_bounded_chance(evaluations)


def _with_bounded_chance(evaluations: list[LoggedEvaluation]) -> list[LoggedEvaluation]:
    """Lowers an unknown chance to the lowest clean accuracy: a log of many classes begins below a tenth."""
    lowest = min((each.clean for each in evaluations if each.clean is not None), default=CHANCE)
    return [
        each if each.chance_is_known else replace(each, chance=min(each.chance, lowest))
        for each in evaluations
    ]


def _rows(source: LogSource) -> tuple[str, list[Row]]:
    """Returns a name for messages, and the rows of a source without the lines of training steps.

    Raises:
        DataError: see :func:`read_log`.
    """
    rows: list[Any]
    if isinstance(source, str | os.PathLike):
        name, rows = str(source), _file_rows(Path(source))
    elif hasattr(source, "to_dict") and hasattr(source, "notna"):
        frame: Any = source
        name, rows = "data frame", frame.astype(object).where(frame.notna(), None).to_dict("records")
    elif isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(
            f"log: {type(source).__name__}; give a list with one mapping per evaluation, or a file"
        )
    else:
        name, rows = "log", list(source)
    for row in rows:
        if not isinstance(row, Mapping):
            raise DataError(
                f"{name}: a row is {type(row).__name__} {str(row)[:40]!r}, not a mapping of columns"
            )
    # A run folder of trilemma has lines of steps between those of evaluations.
    rows = [_of_training_weights(row) for row in rows if row.get("kind", "epoch") == "epoch"]
    if not rows:
        raise DataError(f"{name}: {_EMPTY}")
    return name, rows


def _of_training_weights(row: Row) -> Row:
    """Returns a row of a run folder with the accuracies that the monitors read in the run.

    They are those of the training weights, beside which the row has those of their average; other rows are unchanged.
    """
    raw = {column: row[column] for column in row if str(column).startswith("held_out_raw_")}
    others = {column: value for column, value in row.items() if column not in raw}
    read = {column.replace("_raw_", "_"): value for column, value in raw.items() if value is not None}
    return {**others, **read}


def _file_rows(path: Path) -> list[Row]:
    """Returns the rows of a file, or of ``metrics.jsonl`` in a run folder."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    if not present(file):
        missing = (
            "holds no metrics.jsonl; give a run folder or a log file" if path.is_dir() else "no such file"
        )
        raise DataError(f"{path}: {missing}")
    suffix = file.suffix.lower()
    try:
        if suffix in (".jsonl", ".ndjson"):
            return _lines(file, RunDirectory(path) if path.is_dir() else None)
        text = read_text(file)
        rows: Any = parse_json(text) if suffix == ".json" and text.strip() else None
    except UnicodeError as error:
        raise DataError(f"{file}: not a text file in UTF-8 ({error}); give {_SUFFIXES}") from None
    except ValueError as error:
        raise DataError(f"{file}: {error if suffix != '.json' else f'not JSON ({error})'}") from None
    if not text.strip():
        raise DataError(f"{file}: {_EMPTY}")
    if suffix == ".json":
        if not isinstance(rows, list):
            raise DataError(f"{file}: not a list of rows; give a JSON list with one object per evaluation")
        LOG_ROWS.check(len(rows), str(file))
        return rows
    lines = text.splitlines()
    LOG_ROWS.check(len(lines), str(file))
    header = lines[0]
    delimiter = max(",;\t", key=header.count)
    try:
        return [dict(row) for row in csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)]
    except csv.Error as error:
        raise DataError(f"{file}: not a table of values ({error}); give {_SUFFIXES}") from None


def _lines(file: Path, run: RunDirectory | None) -> list[Row]:
    """Returns the objects of a file with one per line; a run that goes on may have an incomplete last line."""
    recorded = 0 if run is None else run.recorded_lines(file)
    lines = read_json_lines(file)
    if lines.problems:
        raise ValueError(lines.problems[0])
    if run is not None and (lost := run.lost_lines(file, lines, recorded)) is not None:
        warn_once(f"{file}: {lost}")
    if lines.incomplete:
        print_message(f"note: {file}: its last line is incomplete, and is left out")
    if not lines.records:
        raise ValueError(_EMPTY)
    return list(lines.records)


def _columns(name: str, rows: Iterable[Row]) -> dict[str, str]:
    """Returns the column of each content that a log has.

    Raises:
        DataError: a needed column is missing, or two columns have the same content.
    """
    names = list(dict.fromkeys(column for row in rows for column in row if column is not None))
    found: dict[str, str] = {}
    for role, spellings in COLUMNS.items():
        for spelling in spellings:
            # A name of nothing but filler words, such as test_acc, is clean accuracy; an empty name is an index.
            same = [column for column in names if column_key(column) == spelling and str(column).strip()]
            if len(same) > 1:
                raise DataError(
                    f"{name}: two columns of {role}, {same[0]!r} and {same[1]!r}; keep one of them"
                )
            if same:
                found[role] = same[0]
                break
    for role in NEEDED:
        if role not in found:
            has, accepted = ", ".join(map(str, names[:12])), ", ".join(COLUMNS[role])
            raise DataError(
                f"{name}: no column {role!r} (accepted names: {accepted}); it has {has or 'none'}"
            )
    return found


def _number(at: str, column: str, value: object) -> float | None:
    """Returns a value as a number; ``None`` for a missing one: empty, null or NaN."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null", "na", "-")):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        percent = "; percentages must be divided by 100" if str(value).strip().endswith("%") else ""
        raise DataError(f"{at}: {column} is {str(value)[:40]!r}, not a number{percent}") from None
    if math.isinf(number):
        raise DataError(f"{at}: {column} is {number}; give a finite number or leave it empty")
    return None if math.isnan(number) else number


def _check_accuracy(at: str, column: str | None, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        percent = "; percentages must be divided by 100" if 1 < value <= 100 else ""
        raise DataError(f"{at}: {column} is {value:g}, but an accuracy lies in [0, 1]{percent}")
