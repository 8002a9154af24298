"""Texts of report pages: formatted numbers, and descriptions of a run's method, network, data and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trilemma import __version__
from trilemma.config.registry import METHODS
from trilemma.errors import UserError
from trilemma.figures.labels import shortened
from trilemma.runs.read import Contents
from trilemma.runs.records import is_stale
from trilemma.runs.run_directory import warn_once

# Mark of an accuracy that one answer for every image reaches too.
NOT_ABOVE = "not above chance"
# Number of class names that a page lists.
SHOWN_CLASSES = 8
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def percent(value: float | None) -> str:
    """Returns ``81.2 %`` for 0.8125, a dash for ``None``."""
    return DASH if value is None else f"{100 * value:.1f} %"


def chance_words(row: Mapping[str, Any]) -> str:
    """Returns ``chance: 33.3 %`` or ``not above chance: 33.3 %``; an empty string for a row without a chance level.

    The chance level is the accuracy of one answer for every image; rows of early versions do not have it.
    """
    if row.get("chance") is None:
        return ""
    return f"{NOT_ABOVE if not_above_chance(row) else 'chance'}: {percent(row['chance'])}"


def not_above_chance(row: Mapping[str, Any]) -> bool:
    """Returns whether one answer for every image is at least as accurate as the classifier of this row."""
    return row.get("chance") is not None and bool(row["value"] <= row["chance"])


def interval(row: Mapping[str, Any]) -> str:
    """Returns ``77.9 to 84.2`` (per cent) from ``lower`` and ``upper``, a dash if they are ``None``."""
    if row["lower"] is None:
        return DASH
    return f"{100 * row['lower']:.1f} to {100 * row['upper']:.1f}"


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number with a fixed number of decimals, a dash for ``None``."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def duration(minutes: float | None) -> str:
    """Returns ``45 s``, ``3.2 min`` or ``2.5 h``; a dash for ``None``."""
    if minutes is None:
        return DASH
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def threat_words(threat: Mapping[str, Any] | None) -> str:
    """Returns ``L∞, radius 8/255``; an empty string for ``None``."""
    if threat is None:
        return ""
    return f"{norm_words(threat['norm'])}, radius {threat['radius']}"


def norm_words(norm: str) -> str:
    """Returns ``L∞`` or ``L2``."""
    return {"linf": "L∞", "l2": "L2"}.get(norm, norm)


STATES = {
    "running": "is still running, or was killed",
    "interrupted": "was interrupted; `trilemma train --resume` continues it",
    "failed": "failed after all remedies; the best checkpoint was kept",
    "stopped": "stopped at its time limit",
}


def method_words(run: Contents) -> str:
    """Returns the method's summary, its options that differ from the defaults, and the regulariser.

    For a folder without a run: the classifier that its rows record.
    """
    if not run.is_run:
        return f"result rows without a run; classifier: {classifier_words(run.about)}"
    try:
        options = run.config.method
    except UserError as error:
        warn_once(str(error))
        return "its config.yaml is not valid"
    defaults = type(options).model_fields
    changed = [
        f"{key} {value}" for key, value in options.model_dump().items()
        if key != "name" and value != defaults[key].default
    ]  # fmt: skip
    rows = METHODS.rows()
    summary = rows[options.name].summary if options.name in rows else "a method from outside the package"
    text = summary + (f" ({', '.join(changed)})" if changed else "")
    if run.config.regulariser is not None:
        text += f", with the delta energy regulariser (beta {run.config.regulariser.beta})"
    return text


def network_words(run: Contents) -> str:
    """Returns the network's name and its options."""
    options = run.config.network.model_dump()
    name = options.pop("name")
    settings = [f"{key} {value}" for key, value in options.items() if value is not None]
    return f"{name} ({', '.join(settings)})" if settings else str(name)


def classifier_words(about: Mapping[str, Any]) -> str:
    """Returns what a row records of a classifier, such as ``digits/pgd-at, best by pgd-10 on held-out images``."""
    origin = about.get("recipe") or about.get("name") or about.get("method")
    if origin is None:
        return "made elsewhere"
    return f"{origin}, {checkpoint_words(about)}" if "checkpoint" in about else str(origin)


def class_words(names: Sequence[str]) -> str:
    """Returns the number of classes and the first names: ``3 classes: cat, dog, owl``; empty without names."""
    if not names:
        return ""
    first = ", ".join(shortened(name, 40) for name in names[:SHOWN_CLASSES])
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return f"{len(names)} classes: {first}{more}"


def state_words(run: Contents) -> str | None:
    """Returns a sentence about a run that is not finished, else ``None``."""
    state = run.status.get("status")
    if state == "finished" or not run.is_run:
        return None
    unknown = (
        "has no readable status.json, so its state is unknown" if run.metrics else "has not started training"
    )
    return f"This run {STATES.get(str(state), unknown)}."


def stale_words(run: Contents) -> str | None:
    """Returns a sentence about results of another classifier than the folder holds; ``None`` if there are none."""
    rows = [*run.rows.values(), *run.measures.values(), *run.last.values(), *run.others]
    named = [(row["protocol"], row) for row in rows]
    named += [(f"samples {record['name']}", record) for record in run.samples]
    named += [("the energies", run.diagnosis)] if run.diagnosis else []
    stale = ", ".join(dict.fromkeys(name for name, record in named if is_stale(record)))
    if not stale:
        return None
    return f"Stale, measured on another classifier than the folder holds: {stale}. Repeat the commands that made them."


def checkpoint_words(about: Mapping[str, Any]) -> str:
    """Returns a text such as ``best by pgd-10 on held-out images, epoch 40``."""
    if not about:
        return "none yet"
    text = f"{about.get('checkpoint', 'last')}"
    if about.get("select") not in (None, "last"):
        text += f" by {about['select']} on held-out images"
    if about.get("epoch") is not None:
        text += f", epoch {about['epoch']:g}"
    return text


def facts(run: Contents) -> list[tuple[str, str]]:
    """Returns names and texts of the section "What was run", or "What was measured" for rows without a run."""
    if not run.is_run:
        return _row_facts(run)
    config = run.config
    data = run.about.get("data") or config.data.name
    training = f"batch {config.training.batch_size}, {config.optimiser.name} at {config.training.lr:g}"
    if config.training.ema is not None:
        training += f", weight average {config.training.ema:g}"
    epochs = run.status.get("epochs")
    done = (
        f"{epochs:g} of {config.training.epochs} epochs"
        if epochs is not None
        else f"{config.training.epochs} epochs"
    )
    if run.minutes is not None:
        done += f" in {duration(run.minutes)}"
    threat = config.threat
    return [
        ("Recipe", str(run.about.get("recipe") or run.name)),
        ("Method", f"{config.method.name}: {method_words(run)}"),
        ("Data", str(data)),
        ("Network", network_words(run)),
        ("Threat", "none" if threat is None else f"{threat_words(threat.model_dump())} (pixels in [0, 1])"),
        ("Training", f"{done}; {training}"),
        ("Seed", str(config.training.seed)),
        ("Classifier shown", checkpoint_words(run.about)),
    ]


def _row_facts(run: Contents) -> list[tuple[str, str]]:
    rows = [*run.rows.values(), *run.measures.values(), *run.others]

    def values(text: Callable[[Mapping[str, Any]], str]) -> str:
        return "; ".join(dict.fromkeys(value for row in rows if (value := text(row)))) or "none"

    named = [
        ("Classifier", values(lambda row: classifier_words(row["checkpoint"]))),
        (
            "Data",
            values(lambda row: f"{row['data']['name']} {row['data']['split']}, {row['data']['images']}"),
        ),
        ("Classes", class_words(run.class_names)),
        ("Threat", values(lambda row: threat_words(row["threat"]))),
        ("Seed", values(lambda row: str(row["seed"]))),
        ("Device", values(lambda row: row.get("device", ""))),
        (
            "Versions",
            values(lambda row: f"trilemma {row['trilemma']}, torch {row['torch']}" if "torch" in row else ""),
        ),
    ]
    return [(name, text) for name, text in named if text]


def footer() -> str:
    """Returns the line that states the program and its version."""
    return f"Made by trilemma {__version__}."


def shown_path(run: Contents) -> str:
    """Returns the run's path for commands on a page; for an absolute path only the folder name, as pages are shared."""
    return run.name if run.path.is_absolute() else str(run.path)
