"""Writes evaluation results into a run folder: atomically, and without overwriting the result of other settings.

A row is identified by its protocol, data and threat. ``PROTOCOL.json`` holds the *headline*: the row on the run's own
test images with the run's own threat. Rows of other data or threats are stored beside it, as
``PROTOCOL@DATA-SPLIT@NORM-RADIUS.json``, and so is a row of fewer images than the stored one, with ``@N-images``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trilemma.config.yaml_text import parse_yaml
from trilemma.errors import ConfigError, NotStoredError, RunError
from trilemma.files import replacing, write_text
from trilemma.printing import print_message
from trilemma.runs.run_directory import RunDirectory
from trilemma.runs.schemas import ResultRow, Threat, check
from trilemma.storing import go_on_without, storing
from trilemma.text_files import present, read_json, sealed
from trilemma.units import parse_fraction

Row = Mapping[str, Any]

# Keys that identify a measurement: a new row replaces an older one without a trace only if all of these values are
# equal.
IDENTITY = ("protocol", "version", "count", "data", "threat", "seed", "checkpoint", "purification")

# Key of a row's ``checkpoint``, set when it is read: measured on another classifier than the run holds.
STALE = "stale"

# Subfolder of ``evaluation`` with the rows of the last classifier; the rows of the best are in ``evaluation`` itself.
LAST = "last"

# Longest name of a row's file in bytes; file systems allow 255, and temporary files have longer names.
LONGEST_NAME = 180


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a record as JSON with its digest.

    Raises:
        NotStoredError: the file cannot be written.
    """
    with storing(path):
        _make_way(path)
    write_text(path, _text(content))


def _text(content: Mapping[str, Any]) -> str:
    """Returns the JSON text of a record, with a digest of everything else in it."""
    return json.dumps(sealed(content), indent=2) + "\n"


def read_record(path: Path, schema: type[BaseModel] | None = None) -> dict[str, Any]:
    """Returns a record that was written as JSON, without its digest.

    Args:
        path: its file.
        schema: what the record has to hold.

    Raises:
        RunError: the file cannot be read, is not JSON, or does not match its digest or the schema. Records without a
            digest, which earlier versions write, are not checked for it.
    """
    try:
        content = read_json(path)
        if schema is not None:
            check(schema, content)
    except ValueError as error:
        raise RunError(f"{path}: {error}; delete it and measure again") from None
    return content


def write_row(run: Path, row: dict[str, Any], subfolder: str = "") -> None:
    """Writes a result row to the ``evaluation`` folder of a run; goes on without it if that fails.

    The row of the run's own test images and threat is written to ``PROTOCOL.json``, other rows beside it (see the head
    of this module). A stored row of the same protocol, data and threat is replaced; if it was measured with other
    settings, it is moved to the folder ``earlier``. A row of fewer images does not replace one of more images of the
    same checkpoint: it is written beside it, and a line on standard error says so.

    Args:
        run: the run folder, or another folder for rows.
        row: the result row.
        subfolder: subfolder of ``evaluation`` to write to.
    """
    folder = run / "evaluation" / subfolder
    try:
        with storing(folder / f"{headline_stem(row['protocol'])}.json"):
            path, kept = _row_path(folder, row, stored_threat(run))
            note = _write_row(path, row) or kept
    except NotStoredError as error:
        go_on_without(error)
        return
    if note is not None:
        _note(note)


def _write_row(path: Path, row: dict[str, Any]) -> str | None:
    """Writes a row to ``path``; an older one of other settings or weights is moved to ``earlier``.

    Returns:
        What to say about the older row, if anything.
    """
    existing = _read_row(path)
    moved = None
    # The older row is moved only when the new one is on the disk.
    with replacing(path) as temporary:
        temporary.write_text(_text(row), encoding="utf-8")
        if existing is not None and not _same_measurement(existing, row):
            moved = _move_to_earlier(path)
    if existing is None or moved is None:
        return None
    replaced = f"{path}: replaces a row of {existing['count']} images of"
    if not same_checkpoint(existing, row):
        return f"{replaced} another classifier, now in {moved}"
    return f"{replaced} other settings, now in {moved}" if existing["count"] > row["count"] else None


def _row_path(folder: Path, row: Row, threat: Row | None) -> tuple[Path, str | None]:
    """Returns the file to write a row to, after an older headline of other data or threat was given its own name.

    The second value is what to say about a row of more images that is kept, if there is one.
    """
    plain = folder / f"{headline_stem(row['protocol'])}.json"
    headline = _read_row(plain)
    if headline is not None and not is_own(headline, threat):
        # Earlier versions kept one row per protocol, whatever its data.
        plain.replace(folder / f"{file_stem(headline)}.json")
        headline = None
    own = is_own(row, threat) and (headline is None or same_setting(headline, row))
    path = plain if own else folder / f"{file_stem(row)}.json"
    existing = _read_row(path)
    if existing is None or existing["count"] <= row["count"]:
        return path, None
    if existing.get("version") != row["version"] or not same_checkpoint(existing, row):
        return path, None
    smaller = folder / f"{file_stem(row)}@{row['count']}-images.json"
    return smaller, (
        f"{path}: keeps its row of {existing['count']} images; the one of {row['count']} is in {smaller.name}; "
        "delete the former and measure again to replace it"
    )


def _same_measurement(first: Row, second: Row) -> bool:
    others = [key for key in IDENTITY if key != "checkpoint"]
    return all(first.get(key) == second.get(key) for key in others) and same_checkpoint(first, second)


def same_checkpoint(first: Row, second: Row) -> bool:
    """Returns whether two rows or records are of one classifier: of equal weights and classes, if both record them."""
    one, other = (dict(row.get("checkpoint") or {}) for row in (first, second))
    # Earlier versions recorded no digests.
    for key in (one.keys() ^ other.keys()) & {"weights", "classes"}:
        one.pop(key, None), other.pop(key, None)
    return one == other


def _move_to_earlier(path: Path) -> Path:
    """Moves the file of a row to the folder ``earlier`` beside it, and returns its new path."""
    earlier = path.parent / "earlier"
    earlier.mkdir(exist_ok=True)
    count = sum(1 for _ in earlier.glob(f"{path.stem}-*.json"))
    return path.replace(earlier / f"{path.stem}-{count + 1}.json")


def is_own(row: Row, threat: Row | None) -> bool:
    """Returns whether a row was measured on the classifier's own test images, with the threat ``threat`` if it attacks.

    Rows that do not record the classifier's training data, and all threats if ``threat`` is ``None``, count as own.
    """
    data, trained_on = row["data"], row.get("checkpoint", {}).get("data")
    # Of "digits[:300]", trained on the first 300 images, the test images are those of "digits".
    own_data = trained_on is None or (data["name"], data["split"]) == (
        str(trained_on).partition("[")[0],
        "test",
    )
    # Samples are compared with training images, which the name of their row contains.
    own_data = own_data or "extractor" in data
    return own_data and (threat is None or row["threat"] is None or same_threat(row["threat"], threat))


def same_setting(first: Row, second: Row) -> bool:
    """Returns whether two rows of one protocol were measured on one part of one data set with the same threat."""
    return all(first["data"][key] == second["data"][key] for key in ("name", "split")) and same_threat(
        first["threat"], second["threat"]
    )


def same_threat(first: Row | None, second: Row | None) -> bool:
    """Returns whether two threats have the same norm and radius, in whatever form the radius is written."""
    if first is None or second is None:
        return first is second
    first_radius, second_radius = (parse_fraction(threat["radius"]) for threat in (first, second))
    return bool(first["norm"] == second["norm"] and first_radius == second_radius)


def stored_threat(run: Path) -> dict[str, Any] | None:
    """Returns ``threat`` of the run's ``config.yaml``; ``None`` if the run has none, or there is no such file.

    Raises:
        ConfigError: as of :func:`read_config`, or what it holds is not a threat model.
    """
    folder = RunDirectory(run)
    threat = read_config(run).get("threat") if folder.exists() else None
    if threat is None:
        return None
    try:
        check(Threat, threat)
    except ValueError as error:
        raise ConfigError(f"{folder.config_file}: threat: {error}; copy the file again") from None
    return dict(threat)


def read_config(run: Path) -> dict[str, Any]:
    """Returns the sections of a run's ``config.yaml`` without validating more of them than that method has a name.

    Raises:
        ConfigError: as of :meth:`trilemma.runs.run_directory.RunDirectory.config_text`; or not YAML, a key given twice,
            or not the configuration of a run.
    """
    folder = RunDirectory(run)
    file = folder.config_file
    tree = parse_yaml(folder.config_text(), str(file))
    method = tree.get("method") if isinstance(tree, dict) else None
    if not isinstance(method, dict) or not isinstance(method.get("name"), str):
        raise ConfigError(f"{file}: not the configuration of a run; copy it again")
    return dict(tree)


def headline_stem(protocol: str) -> str:
    """Returns the file name, without suffix, of a protocol's headline; ``ood:SET`` becomes ``ood-SET``."""
    return _file_name(protocol)


def file_stem(row: Row) -> str:
    """Returns the file name, without suffix, of a row that is no headline: ``pgd-20@svhn-test@linf-4-255``."""
    parts = [row["protocol"], "-".join(text for text in (row["data"]["name"], row["data"]["split"]) if text)]
    if row["threat"] is not None:
        parts.append(f"{row['threat']['norm']}-{row['threat']['radius']}")
    return _file_name("@".join(parts))


def _file_name(text: str) -> str:
    """Returns ``text`` with hyphens for what is not valid in file names, and a digest for the end of a long one."""
    name = re.sub(r"[^\w.@+-]+", "-", text)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    return name.encode()[: LONGEST_NAME - 13].decode(errors="ignore") + "-" + digest


def _read_row(path: Path) -> dict[str, Any] | None:
    """Returns the row of a file; ``None`` if there is none, or a damaged one, which is moved to ``earlier``."""
    if not present(path):
        return None
    try:
        return read_record(path, ResultRow)
    except RunError as error:
        _note(f"{error}; moved to {_move_to_earlier(path)}")
        return None


def _make_way(path: Path) -> None:
    """Moves a folder, which no file replaces, from the path of a record to the folder ``earlier``."""
    if path.is_dir():
        _note(f"{path}: is a folder, not a file; moved to {_move_to_earlier(path)}")


def keeps(path: Path, record: Mapping[str, Any], size: str) -> bool:
    """Returns whether a stored record should not be replaced: it is of the same classifier and of more images.

    Args:
        path: file of the stored record; need not exist.
        record: the new record.
        size: key of the number of images.
    """
    try:
        existing = read_record(path) if present(path) else {}
    except RunError as error:
        _note(f"{error}; it is replaced now")
        return False
    stored = existing.get(size)
    return isinstance(stored, int) and same_checkpoint(existing, record) and stored > record[size]


def note_kept(path: Path, kept: str, other: Path) -> None:
    """Prints that ``path`` keeps its content, that the new one is in ``other``, and how to replace it."""
    _note(f"{path}: keeps {kept}; the new one is in {other}; delete the former and repeat to replace it")


def _note(text: str) -> None:
    print_message(f"note: {text}")


def checkpoint_name(about: Mapping[str, Any]) -> str | None:
    """Returns a text such as ``best, epoch 40`` from a row's ``checkpoint``; ``None`` if no run made the classifier.

    Of a row of another classifier than the run holds, the text ends in ``(stale)``.
    """
    if "checkpoint" not in about:
        return None
    epoch = about.get("epoch")
    name = str(about["checkpoint"]) + ("" if epoch is None else f", epoch {epoch:g}")
    return f"{name} (stale)" if about.get(STALE) else name


def is_stale(row: Row) -> bool:
    """Returns whether a row or record that was read from a folder is of another classifier than the folder holds."""
    return bool((row.get("checkpoint") or {}).get(STALE))
