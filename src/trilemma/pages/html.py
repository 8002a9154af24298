"""``report.html`` of one run: self-contained, with light and dark variants, readable on a phone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from trilemma.errors import NotStoredError
from trilemma.figures.confusion import confusion_key, draw_confusion
from trilemma.figures.labels import one_line
from trilemma.figures.reliability import draw_reliability, reliability_rows
from trilemma.figures.robustness import draw_robustness, robustness_curves
from trilemma.figures.style import render, write_pair
from trilemma.figures.training_curves import CURVES
from trilemma.pages.lint import lint_result
from trilemma.pages.page import Picture, picture, write_page
from trilemma.pages.published import published_beside
from trilemma.pages.words import class_words, facts, footer, interval, shown_path, stale_words, state_words
from trilemma.printing import print_message
from trilemma.runs.read import Contents, read_contents
from trilemma.runs.records import same_checkpoint

HISTOGRAMS = (
    "Energies of each image set: the more the three outlines overlap, the less the classifier's density can "
    "distinguish attacked or generated images from real ones."
)
QUIVER = (
    "Each arrow is one image, from clean to attacked. The nearer to the line, the smaller the loss; short arrows "
    "indicate a landscape that is flat around images."
)
RELIABILITY = (
    "On the line, accuracy equals confidence. Above it the classifier is underconfident, below it overconfident. "
    "The lower bars are the shares of images."
)
MOVES = (
    "An attack that increases the loss of the true class may lower E(x): the classifier then assigns its images a "
    "higher density than real ones. An attack that only aims at another class ends near a boundary, where E(x) is high."
)
DELTAS = "Clean minus attacked, per image; dashed: the mean. Left of the line, the attack raised the energy."
CURVE = (
    "A line that rises shows an attack that is too weak. Vertical lines are 95 % intervals; dashed: chance."
)
CONFUSION = "Rows are true classes, columns the answers; the diagonal is right. Colour: share of the images of a class."
GRID = "One row per class, without selection: start images on the left, their samples in the same order on the right."
# Suffix of the file, alternative text and caption of the figures beside the grid.
SAMPLE_FIGURES = (
    (
        "-chains",
        "chains",
        "The first chains of each class on their way, from the start on the left to the sample on the right.",
    ),
    (
        "-energies",
        "energies of the chains",
        "E(x, y) of these chains, as a distance from the training images of their class in standard deviations. Chains "
        "that end below the band have a lower energy than real images, which does not make them better ones.",
    ),
    (
        "-neighbours",
        "nearest training images of the samples",
        "Samples and, in the same order, the training image that is nearest to each in pixels. A sample that equals "
        "its neighbour is a copy of it.",
    ),
)
# The protocol with the accuracy of each class.
CLASSES = "classes"
ENERGY_FIGURES = (("energy-histograms", HISTOGRAMS), ("energy-quiver", QUIVER))
ATTACK_FIGURES = (("energy-attacks", MOVES), ("energy-deltas", DELTAS))


def write_report(run_path: str | PathLike[str], out: str | Path | None = None) -> Path:
    """Writes one page about a run from the results in its folder, and returns the page's path.

    For missing results, the page states the command that produces them. A folder of result rows without a run gets a
    page with the rows, their lint findings, and what was measured.

    Args:
        run_path: run folder, the run that :func:`trilemma.train` returns, or a folder of result rows
            (``trilemma evaluate --out``).
        out: output file, by default ``report.html`` in that folder.

    Raises:
        RunError: neither kind of folder.
        NotStoredError: the page cannot be written.
    """
    run = read_contents(run_path)
    return write_page(
        "report.html.j2",
        Path(out) if out is not None else run.path / "report.html",
        title=run.name,
        classes=class_words(run.class_names),
        run=run,
        run_name=shown_path(run),
        state=state_words(run),
        stale=stale_words(run),
        lint=lint_result(run),
        facts=facts(run),
        key_metrics=key_metrics(run),
        rows=[*ordered_rows(run), *last_rows(run)],
        measures=[row for name, row in run.measures.items() if name != CLASSES],
        classes_row=run.measures.get(CLASSES),
        class_names=classes_of_row(run),
        confusion=confusion_picture(run),
        published=published_beside(run),
        others=run.others,
        robustness=robustness_pictures(run),
        reliability=reliability_picture(run),
        curves=training_pictures(run),
        events=[event for event in run.events if event.get("kind") != "checkpoint"],
        energies=energy_pictures(run, ENERGY_FIGURES),
        attacks=energy_pictures(run, ATTACK_FIGURES),
        samples=[(record, sample_pictures(run, record)) for record in run.samples],
        environment=sorted((key, _plain(value)) for key, value in run.environment.items()),
        footer=footer(),
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def ordered_rows(run: Contents) -> list[dict[str, Any]]:
    """Returns the accuracy rows, clean first, then by decreasing accuracy; those of purified images at the end."""
    return sorted(
        run.rows.values(),
        key=lambda row: (bool(row.get("purification")), row["protocol"] != "clean", -row["value"]),
    )


def last_rows(run: Contents) -> list[dict[str, Any]]:
    """Returns the accuracy rows of the last checkpoint, if any, in the order of those of the best."""
    order = [row["protocol"] for row in ordered_rows(run)]
    return sorted(
        (row for row in run.last.values() if row["protocol"] in order),
        key=lambda row: order.index(row["protocol"]),
    )


def key_metrics(run: Contents) -> list[tuple[str, float, str, dict[str, Any] | None]]:
    """Returns label, value, note and result row of the two or three shares at the top of the page."""
    metrics: list[tuple[str, float, str, dict[str, Any] | None]] = [
        (
            "clean accuracy" if row["protocol"] == "clean" else f"under {row['protocol']}",
            row["value"],
            f"95 %: {interval(row)}",
            row,
        )
        for row in _key_rows(run)
    ]
    named = [record for record in run.samples if record["figures"]["sample"]["named"] is not None]
    if named:
        sets = named[0]["figures"]
        note = f"their starts: {100 * sets['start']['named']:.1f} %"
        metrics.append(("of samples named as their class", sets["sample"]["named"], note, None))
    return metrics


def reliability_picture(run: Contents) -> Picture | None:
    """Returns the reliability diagram of the rows of ``ece`` and ``ece-pgd-20``; also writes it to ``figures/``."""
    rows = reliability_rows(run.measures)
    if not rows:
        return None
    return _save_picture(run, "reliability", render(lambda theme: draw_reliability(rows, theme)), RELIABILITY)


def robustness_pictures(run: Contents) -> list[Picture]:
    """Returns a robustness curve per norm for which rows of several radii exist; also writes them to ``figures/``."""
    clean, pictures = run.rows.get("clean"), []
    for norm, curves in robustness_curves([*run.rows.values(), *run.others]).items():
        rows = [row for curve in curves.values() for row in curve]
        # The clean accuracy belongs to a curve only if it is of the same images and the same checkpoint.
        same = clean is not None and all(
            same_checkpoint(clean, row) and all(clean[key] == row[key] for key in ("data", "count"))
            for row in rows
        )
        start = clean if same else None
        images = render(lambda theme, curves=curves, start=start: draw_robustness(curves, start, theme))  # type: ignore[misc]
        pictures.append(_save_picture(run, f"robustness-{norm}", images, CURVE))
    return pictures


def _key_rows(run: Contents) -> list[dict[str, Any]]:
    """Returns the clean row and, of the attacks, the row of the lowest accuracy; those that exist.

    Rows of purified images are of another defence, and never among them.
    """
    attacked = [row for row in ordered_rows(run) if row["threat"] is not None and not row.get("purification")]
    return [*(row for row in run.rows.values() if row["protocol"] == "clean"), *attacked[-1:]]


def classes_of_row(run: Contents) -> list[str]:
    """Returns the class names of the row of ``classes``, each in one line; empty without this row."""
    names = run.measures.get(CLASSES, {}).get("facts", {}).get("class_names", ())
    return [one_line(name) for name in names]


def confusion_picture(run: Contents) -> Picture | None:
    """Returns the confusion matrix of the row of ``classes``, if it has one; also writes it to ``figures/``."""
    facts = run.measures.get(CLASSES, {}).get("facts", {})
    if "confusion" not in facts:
        return None
    names = facts["class_names"]
    images = render(lambda theme: draw_confusion(facts["confusion"], names, theme))
    shown = _save_picture(run, "confusion", images, CONFUSION)
    return replace(shown, width=640, key=tuple(confusion_key(names)))


def training_pictures(run: Contents) -> list[Picture]:
    """Returns the training curves whose metrics the run has logged; also writes them to ``figures/``."""
    pictures = []
    for name, draw, key, caption in CURVES:
        if not any(row.get(key) is not None for row in run.metrics):
            continue
        images = render(lambda theme, draw=draw: draw(run.metrics, run.events, theme))  # type: ignore[misc]
        pictures.append(_save_picture(run, name, images, caption))
    return pictures


def _save_picture(run: Contents, name: str, images: tuple[bytes, bytes], caption: str) -> Picture:
    """Returns a picture of the page; also writes it to ``figures/``, or prints a warning if that fails."""
    try:
        write_pair(run.path / "figures" / f"{name}.png", images)
    except NotStoredError as error:
        _warn_once(
            f"warning: {run.path / 'figures'}: cannot be written ({error.reason}); its pictures are on the page"
        )
    return picture(images, name.replace("-", " "), caption)


@cache
def _warn_once(text: str) -> None:
    print_message(text)


def energy_pictures(run: Contents, wanted: Sequence[tuple[str, str]]) -> list[Picture]:
    """Returns the pictures that ``trilemma diagnose`` has written.

    Args:
        wanted: file names and captions; missing files are skipped.
    """
    figures = [(run.read_figure(f"figures/{name}.png"), name, caption) for name, caption in wanted]
    return [
        picture(images, name.replace("-", " "), caption)
        for images, name, caption in figures
        if images is not None
    ]


def sample_picture(run: Contents, record: dict[str, Any]) -> Picture | None:
    """Returns the sample grid of a record of ``trilemma generate``, or ``None`` if the file is missing."""
    alt = f"samples of {run.name} next to their starts"
    return _of_samples(run, record, "", alt, GRID)


def sample_pictures(run: Contents, record: dict[str, Any]) -> list[Picture]:
    """Returns the figures that ``trilemma generate`` has written beside a record; earlier versions wrote the first."""
    further = [
        _of_samples(run, record, suffix, f"{alt} of {run.name}", caption)
        for suffix, alt, caption in SAMPLE_FIGURES
    ]
    return [found for found in (sample_picture(run, record), *further) if found is not None]


def _of_samples(run: Contents, record: dict[str, Any], suffix: str, alt: str, caption: str) -> Picture | None:
    images = run.read_figure(f"samples/{record['name']}{suffix}.png")
    return None if images is None else picture(images, alt, caption, 640, record.get("class_names", ()))
