"""Published results: the public leaderboards of RobustBench as data, and how a result row compares. Needs no torch."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from trilemma.units import parse_fraction

Row = Mapping[str, Any]

# Columns of the file, in which numbers are as the leaderboards print them.
COLUMNS = (
    "model", "data", "norm", "radius", "architecture", "parameters", "clean", "autoattack", "robust", "extra_data",
    "venue", "year", "link",
)  # fmt: skip
# A network is no larger than another one up to this factor: heads and variants of one architecture differ a little.
SAME_SIZE = 1.1
# A result is compared with at least so many entries; if fewer networks are no larger, with the smallest ones.
MIN_ENTRIES = 10


@dataclass(frozen=True)
class Published:
    """One entry of a leaderboard; shares are in [0, 1].

    Attributes:
        model: identifier in RobustBench.
        data: ``cifar10``, ``cifar100`` or ``imagenet``, official test images.
        norm: ``linf``, ``l2`` or ``corruptions``.
        radius: in pixel units, as written; "" for corruptions.
        architecture: as RobustBench names it.
        parameters: number of weights, which follows from the architecture; ``None`` if unknown.
        clean: accuracy without attack.
        autoattack: accuracy under AutoAttack; ``None`` for corruptions.
        robust: lowest known accuracy, by AutoAttack or a stronger attack; for corruptions the mean over types and
            severities.
        extra_data: whether more images than the training split were used; generated images do not count.
        venue, year: where and when it was published; the year is ``None`` if unknown.
        link: address of the paper.
    """

    model: str
    data: str
    norm: str
    radius: str
    architecture: str
    parameters: int | None
    clean: float
    autoattack: float | None
    robust: float
    extra_data: bool
    venue: str
    year: int | None
    link: str

    def record(self) -> dict[str, Any]:
        """The fields as a JSON-like dictionary."""
        return asdict(self)


@cache
def published() -> tuple[Published, ...]:
    """All entries, leaderboard by leaderboard, the most robust first."""
    return tuple(_entry(line) for line in csv.DictReader(_lines(comments=False)))


def source() -> str:
    """Where the entries come from: address, date and licence."""
    return _lines(comments=True)[0].removeprefix("# ")


def _lines(comments: bool) -> list[str]:
    text = files("trilemma.evaluation").joinpath("published.csv").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("#") == comments]


def _entry(line: dict[str, str]) -> Published:
    def share(key: str) -> float:
        return round(float(line[key]) / 100, 6)

    return Published(
        line["model"],
        line["data"],
        line["norm"],
        line["radius"],
        line["architecture"],
        round(float(line["parameters"]) * 1e6) if line["parameters"] else None,
        share("clean"),
        share("autoattack") if line["autoattack"] else None,
        share("robust"),
        line["extra_data"] == "yes",
        line["venue"],
        int(line["year"]) if line["year"] else None,
        line["link"],
    )


def leaderboard(data: str, norm: str) -> list[Published]:
    """The entries of one data set and norm (or ``corruptions``), the most robust first; empty if there is none."""
    return [entry for entry in published() if (entry.data, entry.norm) == (data, norm)]


def published_rows(
    data: str, threat: Mapping[str, Any] | None, parameters: int | None = None, count: int = 5
) -> list[Published]:
    """The entries to show beside a result row: of the same data and threat, the networks of the nearest size.

    Args:
        data: name of the row's data; only the official names have entries.
        threat: ``norm`` and ``radius`` of the row, or ``None`` for the leaderboard of common corruptions.
        parameters: number of weights of the row's network; ``None`` for the most robust entries of any size.
        count: largest number of entries.

    Returns:
        Entries, the most robust first; empty if the radius is not that of the leaderboard.
    """
    entries = leaderboard(data, "corruptions" if threat is None else threat["norm"])
    if threat is not None:
        # A few entries were measured with a radius of 0.031 for 8/255.
        entries = [entry for entry in entries if _ratio(threat["radius"], entry.radius) >= 1 - 1e-9]
        if not any(_ratio(threat["radius"], entry.radius) == 1 for entry in entries):
            return []
    if parameters is not None:
        entries.sort(key=lambda entry: abs(math.log((entry.parameters or math.inf) / parameters)))
    return sorted(entries[:count], key=lambda entry: -entry.robust)


def published_bound(
    data: str, threat: Mapping[str, Any], parameters: int, clean: float
) -> tuple[float, list[Published]]:
    """The accuracy under attack that published networks of a size reach at a clean accuracy.

    Published pairs of clean and robust accuracy are joined by straight lines, and with the point of perfect clean
    accuracy and no robustness; the highest line counts.

    Args:
        data, parameters: as of :func:`published_rows`.
        threat: ``norm`` and ``radius``; a larger radius than the leaderboard's is compared too.
        clean: accuracy without attack, in [0, 1].

    Returns:
        The bound, 1 if there is nothing to compare with; and the entries: those of networks that are no larger, or the
        smallest ones if there are fewer than :data:`MIN_ENTRIES`. Networks of unknown size count as small.
    """
    entries = [
        entry
        for entry in leaderboard(data, threat["norm"])
        if _ratio(threat["radius"], entry.radius) >= 1 - 1e-9
    ]
    if not entries:
        return 1.0, []
    sizes = sorted(entry.parameters or 0 for entry in entries)
    limit = max(SAME_SIZE * parameters, sizes[min(MIN_ENTRIES, len(sizes)) - 1])
    entries = [entry for entry in entries if (entry.parameters or 0) <= limit]
    points = [(entry.clean, entry.robust) for entry in entries] + [(1.0, 0.0)]
    below, beyond = ([point for point in points if (point[0] < clean) is side] for side in (True, False))
    lines = [y + (z - y) * (clean - x) / (w - x) for x, y in below for w, z in beyond]
    return max([robust for _, robust in beyond] + lines), entries


def _ratio(radius: object, published_radius: str) -> float:
    return float(parse_fraction(radius) / parse_fraction(published_radius))


def implausible(row: Row) -> str | None:
    """What is implausible about a row of ``autoattack-standard``; ``None`` if nothing is, or on other data.

    A row is implausible if even the lower end of its interval is above :func:`published_bound`.
    """
    if row["data"].get("split") != "test" or not row.get("parameters"):
        return None
    clean = row["facts"]["attacked"] / row["count"]
    bound, entries = published_bound(row["data"]["name"], row["threat"], row["parameters"], clean)
    if row["lower"] <= bound:
        return None
    best = max(entries, key=lambda entry: entry.robust)
    return (
        f"{clean:.1%} clean and {row['value']:.1%} (at least {row['lower']:.1%}) under AutoAttack with "
        f"{row['parameters'] / 1e6:.3g} M parameters; {len(entries)} published networks of this size or smaller "
        f"reach at most {bound:.1%} at that clean accuracy (the most robust: {best.model}, {best.architecture}, "
        f"{best.clean:.1%} and {best.robust:.1%})"
    )
