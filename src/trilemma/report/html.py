"""``report.html`` of one run: self-contained, light and dark, readable on a phone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trilemma.figures.reliability import draw_reliability, reliability_rows
from trilemma.figures.style import render, write_pair
from trilemma.figures.training_curves import CURVES
from trilemma.report.lint import suspicions
from trilemma.report.page import Picture, picture, write_page
from trilemma.report.words import facts, footer, shown_path, state_words
from trilemma.runs.read import Contents, read_contents

HISTOGRAMS = (
    "Where each set of images lies: the more the three outlines overlap, the less the classifier's density can "
    "tell attacked or generated images from real ones."
)
QUIVER = (
    "Each arrow is one image, from clean to attacked; the nearer to the line, the smaller the loss, and short arrows "
    "mean a landscape that is flat around images."
)
RELIABILITY = (
    "On the line the classifier is right as often as it is sure. Above it, it is better than it believes; below, it is "
    "overconfident. The lower bars are the shares of images."
)
MOVES = (
    "An attack that climbs the loss of the true class may lower E(x): the classifier believes in its images more than "
    "in real ones. One that only wants another class ends near a boundary, where E(x) is high."
)
DELTAS = (
    "Clean minus attacked, image by image; dashed the mean. Left of the line the attack raised the energy."
)
GRID = "One row per class, unpicked: starts on the left, at the same place on the right what the sampler made of them."
ENERGY_FIGURES = (("energy-histograms", HISTOGRAMS), ("energy-quiver", QUIVER))
ATTACK_FIGURES = (("energy-attacks", MOVES), ("energy-deltas", DELTAS))


def write_report(run_path: str | Path, out: str | Path | None = None) -> Path:
    """Writes one page about a run, from whatever its folder holds; what is missing names its command.

    Args:
        run_path: a run folder.
        out: another file than ``report.html`` in the run folder.

    Returns:
        The page's path.

    Raises:
        RunError: not a run folder, or the page cannot be written.
    """
    run = read_contents(run_path)
    return write_page(
        "report.html.j2",
        Path(out) if out is not None else run.path / "report.html",
        title=str(run.about.get("recipe") or run.name),
        run=run,
        run_name=shown_path(run),
        state=state_words(run),
        lint=suspicions(run),
        facts=facts(run),
        key_figures=key_figures(run),
        rows=[*ordered_rows(run), *last_rows(run)],
        measures=list(run.measures.values()),
        reliability=reliability_picture(run),
        curves=training_pictures(run),
        events=[event for event in run.events if event.get("kind") != "checkpoint"],
        energies=energy_pictures(run, ENERGY_FIGURES),
        attacks=energy_pictures(run, ATTACK_FIGURES),
        samples=[(record, sample_picture(run, record)) for record in run.samples],
        environment=sorted((key, _plain(value)) for key, value in run.environment.items()),
        footer=footer(),
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def ordered_rows(run: Contents) -> list[dict[str, Any]]:
    """Result rows, clean first, then by falling accuracy."""
    return sorted(run.rows.values(), key=lambda row: (row["protocol"] != "clean", -row["value"]))


def last_rows(run: Contents) -> list[dict[str, Any]]:
    """Result rows of the last classifier, where it was evaluated beside the best, in the order of those."""
    order = [row["protocol"] for row in ordered_rows(run)]
    return sorted(
        (row for row in run.last.values() if row["protocol"] in order),
        key=lambda row: order.index(row["protocol"]),
    )


def key_figures(run: Contents) -> list[tuple[str, float, str]]:
    """The two or three shares at the head of the page: label, value, note."""
    found = [
        (
            "clean accuracy" if row["protocol"] == "clean" else f"under {row['protocol']}",
            row["value"],
            f"95 %: {100 * row['lower']:.1f} to {100 * row['upper']:.1f}",
        )
        for row in ordered_rows(run)[:2]
    ]
    named = [record for record in run.samples if record["figures"]["sample"]["named"] is not None]
    if named:
        figures = named[0]["figures"]
        note = f"their starts: {100 * figures['start']['named']:.1f} %"
        found.append(("of samples named as their class", figures["sample"]["named"], note))
    return found


def reliability_picture(run: Contents) -> Picture | None:
    """The reliability diagram of the rows that ``ece`` and ``ece-pgd-20`` left; also written to ``figures/``."""
    rows = reliability_rows(run.measures)
    if not rows:
        return None
    return _kept(run, "reliability", render(lambda theme: draw_reliability(rows, theme)), RELIABILITY)


def training_pictures(run: Contents) -> list[Picture]:
    """The training curves that the run has values for; also written to ``figures/``."""
    pictures = []
    for name, draw, key, caption in CURVES:
        if not any(row.get(key) is not None for row in run.metrics):
            continue
        images = render(lambda theme, draw=draw: draw(run.metrics, run.events, theme))  # type: ignore[misc]
        pictures.append(_kept(run, name, images, caption))
    return pictures


def _kept(run: Contents, name: str, images: tuple[bytes, bytes], caption: str) -> Picture:
    """A picture of the page that also lies in ``figures/``, where that can be written."""
    try:
        write_pair(run.path / "figures" / f"{name}.png", images)
    except OSError as error:
        print(f"warning: {run.path}/figures: cannot be written ({error.strerror or error})", file=sys.stderr)
    return picture(images, name.replace("-", " "), caption)


def energy_pictures(run: Contents, wanted: Sequence[tuple[str, str]]) -> list[Picture]:
    """Figures that ``trilemma diagnose`` wrote, by name and caption; those that are there."""
    found = [(run.read_figure(f"figures/{name}.png"), name, caption) for name, caption in wanted]
    return [
        picture(images, name.replace("-", " "), caption)
        for images, name, caption in found
        if images is not None
    ]


def sample_picture(run: Contents, record: dict[str, Any]) -> Picture | None:
    """The grid that belongs to a record of samples."""
    images = run.read_figure(f"samples/{record['name']}.png")
    return (
        None if images is None else picture(images, f"samples of {run.name} beside their starts", GRID, 640)
    )
