"""Reads a run folder, or a folder of result rows; parts that do not exist are empty or ``None``. No torch, no numpy."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from trilemma.config.registry import STARTS
from trilemma.config.starts import start_names
from trilemma.errors import CheckpointError, DataError, RunError, UserError
from trilemma.files import CLASSIFIER, dark_path, file_sha256
from trilemma.limits import IMAGE_FILE
from trilemma.runs.digests import classes_digest, stored_weights_digest
from trilemma.runs.records import (
    LAST,
    STALE,
    file_stem,
    headline_stem,
    is_own,
    read_config,
    read_record,
    same_setting,
    stored_threat,
)
from trilemma.runs.run_directory import RunDirectory, warn_once
from trilemma.runs.schemas import Diagnosis, ResultRow, SampleRecord
from trilemma.text_files import present, read_bytes

if TYPE_CHECKING:
    from trilemma.config.config import Config

Record = dict[str, Any]

# Lines of steps that a figure of training shows, and more than its pixels.
STEP_LINES = 20_000
# First bytes of a PNG file.
_PNG = b"\x89PNG\r\n\x1a\n"
# Values of a row that earlier versions did not write.
_DEFAULTS: Record = {
    "better": "higher",
    "also": {},
    "seconds": None,
    "device": "",
    "checkpoint": {},
    "facts": {},
}


@dataclass(frozen=True)
class Contents:
    """The contents of one run folder, or of a folder that holds result rows only (``trilemma evaluate --out``).

    Attributes:
        path: the folder.
        method: name of the training method; set even if its plug-in is not installed. Of rows without a run, the method
            that they record, or an empty string.
        config_text: text of ``config.yaml``; empty if the folder is not a run.
        metrics: lines of ``metrics.jsonl``; of a run of more than 20,000 lines of steps about so many of them.
        events: lines of ``events.jsonl``.
        status: contents of ``status.json``; empty before training has begun.
        environment: contents of ``environment.json``.
        about: metadata of the best classifier, or of the last one; of rows without a run, what they record of their
            classifier. Empty if unknown.
        class_names: names of the classifier's classes in label order; empty if unknown.
        rows: headline rows by protocol name, those whose value is an accuracy: on the run's own test images, with its
            own threat, of as many images as were evaluated.
        measures: the other headline rows by protocol name: calibration, out-of-distribution detection, generation.
        last: headline rows of the last classifier, of either kind, if it was evaluated too; never of other data or
            another threat than the row of the best classifier under the same protocol.
        others: all further rows: of other data, another threat, or fewer images. A row, record or diagnosis of other
            weights or class names than the run holds now (:func:`trilemma.runs.records.is_stale`) is marked in its
            ``checkpoint``.
        diagnosis: results of ``trilemma diagnose``, or ``None``; ``energies_file`` holds the energies per image.
        samples: records of ``trilemma generate``.
    """

    path: Path
    method: str
    config_text: str
    metrics: list[Record]
    events: list[Record]
    status: Record
    environment: Record
    about: Record
    class_names: tuple[str, ...]
    rows: dict[str, Record]
    measures: dict[str, Record]
    last: dict[str, Record]
    others: list[Record]
    diagnosis: Record | None
    samples: list[Record]

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.path.resolve().name

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run; otherwise it holds result rows only."""
        return bool(self.config_text)

    @property
    def minutes(self) -> float | None:
        """Training time in minutes, or ``None`` before training has begun."""
        minutes = self.status.get("minutes")
        return None if minutes is None else float(minutes)

    @cached_property
    def config(self) -> Config:
        """The validated configuration, read on first use, because validation may import the method."""
        return RunDirectory(self.path).config()

    @property
    def energies_file(self) -> Path | None:
        """Path of ``energies.npz`` of ``trilemma diagnose``; ``None`` without one that belongs to the diagnosis.

        One of another diagnosis, which a killed process leaves, is named on standard error.
        """
        path = self.path / "figures" / "energies.npz"
        if self.diagnosis is None or not path.is_file():
            return None
        try:
            digest = file_sha256(path)
        except DataError:
            digest = ""
        if self.diagnosis.get("points_sha256") not in (None, digest):
            warn_once(
                f"left out: {path}: damaged, or of another diagnosis than energies.json; diagnose again"
            )
            return None
        return path

    def read_figure(self, relative: str) -> tuple[bytes, bytes] | None:
        """Returns the light and the dark version of a figure in the folder, or ``None`` if either is missing."""
        light = self.path / relative
        files = (light, dark_path(light))
        if not all(map(present, files)):
            return None
        try:
            images = read_bytes(files[0], IMAGE_FILE), read_bytes(files[1], IMAGE_FILE)
            for image in images:
                _check_png(image)
        except ValueError as error:
            warn_once(f"left out: {light}, light or dark version: {error}")
            return None
        return images


def check_results(path: str | PathLike[str]) -> Path:
    """Returns ``path`` if it is a run folder, or a folder with result rows in ``evaluation``.

    Raises:
        RunError: it is neither.
    """
    run = RunDirectory(path)
    rows = run.path / "evaluation"
    if run.exists():
        return run.path
    if run.path.is_dir():
        if present(run.status_file) or present(run.metrics_file):
            warn_once(f"{run.config_file}: is missing, so this run is read as a folder of result rows")
        if any(_read(file, ResultRow) is not None for file in rows.glob("*.json")):
            return run.path
        raise RunError(
            f"{path}: not a run folder (no config.yaml), nor a folder of result rows (no evaluation/*.json); give one "
            "that `trilemma train` or `trilemma evaluate --out` wrote"
        )
    return RunDirectory.open(path).path


def read_all(paths: Iterable[str | PathLike[str]]) -> list[Contents]:
    """Reads the contents of several folders; a run that cannot be read is left out, and a line says so.

    Raises:
        RunError: a folder is neither a run nor one of result rows.
        UserError: none of the folders can be read; the error is that of the last one.
    """
    contents: list[Contents] = []
    errors: list[UserError] = []
    for path in [check_results(path) for path in paths]:
        try:
            contents.append(read_contents(path))
        except UserError as error:
            errors.append(error)
    if errors and not contents:
        raise errors.pop()
    for left_out in errors:
        warn_once(f"left out: {left_out}")
    return contents


def read_contents(path: str | PathLike[str]) -> Contents:
    """Reads the contents of a run folder, or of a folder of result rows.

    Raises:
        RunError: ``path`` is neither.
        ConfigError: the run's ``config.yaml`` is damaged.
    """
    run = RunDirectory(check_results(path))
    folder, threat = run.path / "evaluation", stored_threat(run.path)
    best, others = _headlines(folder, threat)
    last, others_of_last = _headlines(folder / LAST, threat)
    differing = [name for name, row in last.items() if name in best and not _comparable(row, best[name])]
    others += [*others_of_last, *(last.pop(name) for name in differing)]
    text = run.config_text() if run.exists() else ""
    headers = _headers(run)
    header = next(iter(headers.values()), None) or {}
    about: Record = header.get("about") or next((row["checkpoint"] for row in (*best.values(), *others)), {})
    energies = run.path / "figures" / "energies.json"
    diagnosis = _read(energies, Diagnosis) if present(energies) else None
    samples = sorted((record for _, record in _samples(run.path / "samples")), key=start_order)
    results = [*best.values(), *last.values(), *others, *samples, *([diagnosis] if diagnosis else [])]
    recorded = [result.get("checkpoint") or {} for result in results]
    if any(checkpoint.get("weights") for checkpoint in recorded):
        _complete(run, headers)
    # Rows without a run are compared with each other.
    references = headers or {"": {"about": about, "weights": about.get("weights")}}
    for result, checkpoint in zip(results, recorded, strict=True):
        if _is_of_another_classifier(checkpoint, references):
            result["checkpoint"] = {**checkpoint, STALE: True}
    return Contents(
        path=run.path,
        method=str(read_config(run.path)["method"]["name"] if text else about.get("method", "")),
        config_text=text,
        metrics=run.metrics(STEP_LINES),
        events=run.events(),
        status=run.status(),
        environment=run.environment(),
        about=dict(about),
        class_names=tuple(header.get("class_names") or _class_names(best)),
        rows={name: row for name, row in best.items() if _is_accuracy(row)},
        measures={name: row for name, row in best.items() if not _is_accuracy(row)},
        last=last,
        others=others,
        diagnosis=diagnosis,
        samples=samples,
    )


def read_rows(folder: Path) -> list[tuple[Path, Record]]:
    """Returns all result rows in a folder and its subfolders by file; damaged ones are left out, and a line says so."""
    return [
        (file, row) for file in sorted(folder.rglob("*.json")) if (row := _read(file, ResultRow)) is not None
    ]


def _check_png(content: bytes) -> None:
    """Raises :class:`ValueError` unless ``content`` is a whole PNG file, whose parts each have their CRC-32."""
    position, kind = len(_PNG), b""
    sound = content.startswith(_PNG)
    while sound and kind != b"IEND":
        length, kind = (
            int.from_bytes(content[position : position + 4], "big"),
            content[position + 4 : position + 8],
        )
        end = position + 8 + length
        sound = content[end : end + 4] == zlib.crc32(content[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    if not sound or position != len(content):
        raise ValueError("is damaged, or not a PNG file; repeat the command that made it")


def start_order(record: Record) -> int:
    """Returns the sort key of a sample record: the position of its start in the registry, least informed start first.

    The less a start contains of the training images, the more the samples show of the classifier. A mixture contains
    what the most informed of its starts does.
    """
    names = list(STARTS.rows())
    return max(names.index(name) if name in names else len(names) for name in start_names(record["start"]))


def _headlines(folder: Path, threat: Record | None) -> tuple[dict[str, Record], list[Record]]:
    """Returns the headline row of each protocol in a folder, and all other rows.

    Of several rows with the run's own data and threat, that in ``PROTOCOL.json`` is the headline, which is the one of
    most images (:func:`trilemma.runs.records.write_row`).
    """
    found = [(file, {**_DEFAULTS, **row}) for file, row in _records(folder, ResultRow)]
    found.sort(
        key=lambda item: (item[0].stem != headline_stem(item[1]["protocol"]), -item[1]["count"], item[0].name)
    )
    headlines: dict[str, Record] = {}
    others = []
    for _, row in found:
        if row["protocol"] not in headlines and is_own(row, threat):
            headlines[row["protocol"]] = row
        else:
            others.append(row)
    return dict(sorted(headlines.items())), sorted(others, key=file_stem)


def _comparable(first: Record, second: Record) -> bool:
    """Returns whether two rows of one protocol have the same images, threat and version."""
    if not same_setting(first, second):
        return False
    return bool(first["data"]["images"] == second["data"]["images"] and first["version"] == second["version"])


def _is_accuracy(row: Record) -> bool:
    # Rows of early versions have no quantity; all of them are accuracies.
    return bool(row.get("quantity", "accuracy") == "accuracy")


def _records(folder: Path, schema: type[BaseModel]) -> list[tuple[Path, Record]]:
    """Returns the records of a folder by file; a damaged one is left out, and a line on standard error says so."""
    files = sorted(folder.glob("*.json"))
    return [(file, record) for file in files if (record := _read(file, schema)) is not None]


def _samples(folder: Path) -> list[tuple[Path, Record]]:
    """Returns the records of samples whose name is that of their file, by which their figures are found."""
    found = _records(folder, SampleRecord)
    for file, record in found:
        if record["name"] != file.stem:
            warn_once(f"left out: {file}: describes {record['name']!r}; copy it again")
    return [(file, record) for file, record in found if record["name"] == file.stem]


def _read(file: Path, schema: type[BaseModel]) -> Record | None:
    """Returns a record; ``None`` for a damaged one, after a line on standard error."""
    try:
        return read_record(file, schema)
    except RunError as error:
        warn_once(f"left out: {error}")
        return None


def _headers(run: RunDirectory) -> dict[str, Record | None]:
    """Returns the headers of the classifiers by name, ``best`` before ``last``; ``None`` for one that is damaged.

    A line on standard error names a damaged one: evaluation raises this error, a page shows what can be read.
    """
    headers: dict[str, Record | None] = {}
    for name, file in run.classifiers().items():
        try:
            headers[name] = CLASSIFIER.read_header(file).content()
        except CheckpointError as error:
            warn_once(f"{error}; its results are marked as stale")
            headers[name] = None
    return headers


def _complete(run: RunDirectory, headers: Mapping[str, Record | None]) -> None:
    """Adds the digest of the weights to headers of earlier versions, which have none, by reading the weights."""
    for name, file in run.classifiers().items():
        header = headers[name]
        if header is not None and not header.get("weights"):
            header["weights"] = stored_weights_digest(file, header)


def _is_of_another_classifier(recorded: Mapping[str, Any], headers: Mapping[str, Record | None]) -> bool:
    """Returns whether a result is of other weights or class names than the classifier of its checkpoint has.

    Args:
        recorded: what the result records of its classifier.
        headers: of the classifiers, see :func:`_headers`; a result that names no checkpoint is of the first. The name
            of a header that all results are compared with is empty.
    """
    name = "" if "" in headers else recorded.get("checkpoint", next(iter(headers)))
    if not recorded or name not in headers:
        return False
    header = headers[name]
    if header is None:
        return True
    classes, weights = recorded.get("classes"), recorded.get("weights")
    if classes and header.get("class_names") and classes != classes_digest(header["class_names"]):
        return True
    if weights and header.get("weights"):
        return bool(weights != header["weights"])
    # Earlier versions recorded no digest.
    about = header["about"]
    return any(
        key in recorded and key in about and recorded[key] != about[key]
        for key in ("checkpoint", "step", "epoch")
    )


def _class_names(rows: Mapping[str, Record]) -> list[str]:
    """Returns the class names that a row records; empty if none does."""
    return next((row["facts"]["class_names"] for row in rows.values() if row["facts"].get("class_names")), [])
