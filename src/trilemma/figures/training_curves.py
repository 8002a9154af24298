"""Training curves: loss, accuracies, mean energies and delta energies, with marks at alarms and remedies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trilemma.figures.style import LIGHT, Theme, in_theme, legend_above, new_figure

Rows = list[dict[str, Any]]

WIDTH, HEIGHT = 5.2, 3.0
# Up to this number of evaluations, each one is a point on its line.
FEW = 40
# Kinds of events that are marked.
MARKED = ("alarm", "remedy", "restart")
# Names of stops that are marked; other stops were requested by the user.
MARKED_STOPS = ("early-stop", "failed")


def _series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    """Returns epochs and values of the rows with a finite value of ``key``; others are shown as alarms."""
    finite = [row for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    return [row["epoch"] for row in finite], [row[key] for row in finite]


def _smooth(values: list[float], window: int) -> list[float]:
    """Returns the running mean over the last ``window`` values, fewer at the beginning."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means


def _line(axes: Axes, rows: Rows, key: str, label: str, colour: str, style: str = "-") -> None:
    """Draws a faint line of the logged values and a strong line of their running mean over 1/40 of the run."""
    epochs, values = _series(rows, key)
    if not values:
        return
    axes.plot(epochs, values, color=colour, linewidth=0.8, alpha=0.25)
    axes.plot(epochs, _smooth(values, max(1, len(values) // 40)), style, color=colour, label=label)


def _groups(events: Iterable[Mapping[str, Any]], span: float) -> list[tuple[bool, list[float], list[str]]]:
    """Groups events whose marks would overlap: consecutive alarms, or remedies, within 2 % of the run.

    Args:
        span: length of the x axis, in epochs.

    Returns:
        For each group, whether it holds alarms, and the epochs and names of its events.
    """
    groups: list[tuple[bool, list[float], list[str]]] = []
    marked = [
        event
        for event in events
        if (event.get("kind") in MARKED or event.get("name") in MARKED_STOPS)
        and event.get("epoch") is not None
    ]
    for event in sorted(marked, key=lambda event: (event["kind"] == "alarm", event["epoch"])):
        alarm, name = event["kind"] == "alarm", str(event.get("name") or event["kind"])
        if not groups or groups[-1][0] != alarm or event["epoch"] - groups[-1][1][-1] > 0.02 * span:
            groups.append((alarm, [], []))
        groups[-1][1].append(event["epoch"])
        if name not in groups[-1][2]:
            groups[-1][2].append(name)
    return groups


def _mark(axes: Axes, events: Iterable[Mapping[str, Any]], theme: Theme) -> None:
    """Draws a vertical line per alarm (label on its left) and per remedy or restart (label on its right)."""
    low, high = axes.get_xlim()
    for alarm, epochs, names in _groups(events, high - low):
        colour = theme.alarm if alarm else theme.muted
        for epoch in epochs:
            axes.axvline(epoch, color=colour, linewidth=1, linestyle="-" if alarm else ":")
        axes.annotate(
            ", ".join(names), (epochs[0] if alarm else epochs[-1], 0.98 if alarm else 0.03),
            xycoords=("data", "axes fraction"), xytext=(-3 if alarm else 3, 0), textcoords="offset points",
            parse_math=False, rotation=90, ha="right" if alarm else "left", va="top" if alarm else "bottom",
            fontsize=8, color=colour,
            bbox={"facecolor": theme.background, "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
        )  # fmt: skip


def _panel(title: str, unit: str, legend_rows: int = 1) -> tuple[Figure, Axes]:
    figure, axes = new_figure(WIDTH, HEIGHT)
    axes.set_title(title, pad=8 + 16 * legend_rows)
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.margins(x=0.01)
    return figure, axes


@in_theme
def draw_loss(rows: Rows, events: Rows, theme: Theme = LIGHT) -> Figure:
    """Draws the loss of each logged step."""
    figure, axes = _panel("Loss", "loss")
    _line(axes, _steps(rows), "loss", "training loss", theme.muted)
    _mark(axes, events, theme)
    legend_above(axes)
    return figure


@in_theme
def draw_accuracy(rows: Rows, events: Rows, theme: Theme = LIGHT) -> Figure:
    """Draws accuracy on training batches (lines) and on held-out images (points; hollow: under FGSM).

    Where the finished classifier is an average of the weights, diamonds are the PGD-10 accuracy of the weights
    themselves, and the FGSM accuracy is theirs too, because the monitors compare these two.
    """
    figure, axes = _panel("Accuracy", "accuracy", legend_rows=2)
    for kind, key, held in (
        ("clean", "clean_accuracy", "held_out_clean"),
        ("adversarial", "robust_accuracy", "held_out_pgd10"),
    ):
        colour = theme.sets[kind]
        _line(axes, _steps(rows), key, f"{kind}, batch", colour)
        epochs, values = _series(_epochs(rows), held)
        if values:
            name = "clean, held out" if kind == "clean" else "PGD-10, held out"
            axes.plot(
                epochs, values, "o", markersize=6, color=colour, markeredgecolor=theme.background, label=name
            )
    colour = theme.sets["adversarial"]
    averaged = any(
        row.get("held_out_raw_pgd10") not in (None, row.get("held_out_pgd10")) for row in _epochs(rows)
    )
    if averaged:
        epochs, values = _series(_epochs(rows), "held_out_raw_pgd10")
        axes.plot(epochs, values, "D", markersize=4, color=colour, alpha=0.6, label="PGD-10, raw")
    epochs, values = _series(_epochs(rows), "held_out_raw_fgsm" if averaged else "held_out_fgsm")
    if values:
        axes.plot(
            epochs,
            values,
            "o",
            markersize=5,
            color=theme.background,
            markeredgecolor=colour,
            label="FGSM, raw" if averaged else "FGSM, held out",
        )
    axes.set_ylim(-0.02, 1.02)
    _mark(axes, events, theme)
    # two legend rows
    legend_above(axes, columns=3 if values or averaged else 2)
    return figure


@in_theme
def draw_energies(rows: Rows, events: Rows, theme: Theme = LIGHT) -> Figure:
    """Draws the mean marginal energy of clean, adversarial and generated images of each logged step."""
    figure, axes = _panel("Mean energy E(x)", "logits")
    for kind, colour in theme.sets.items():
        _line(axes, _steps(rows), f"energy_{kind}", kind, colour)
    _mark(axes, events, theme)
    legend_above(axes)
    return figure


@in_theme
def draw_delta_energies(rows: Rows, events: Rows, theme: Theme = LIGHT) -> Figure:
    """Draws the delta energies, clean minus adversarial: of E(x) (solid) and of E(x, y) (dashed)."""
    figure, axes = _panel("Delta energies", "logits")
    _line(axes, _steps(rows), "delta_marginal", "dE(x)", theme.text)
    _line(axes, _steps(rows), "delta_joint", "dE(x, y)", theme.muted, "--")
    axes.axhline(0, color=theme.muted, linewidth=0.8)
    _mark(axes, events, theme)
    legend_above(axes)
    return figure


@in_theme
def draw_log(rows: Rows, events: Rows, best_epoch: float | None = None, theme: Theme = LIGHT) -> Figure:
    """Draws the held-out accuracies of a log of any program.

    Args:
        rows: one per evaluation: ``epoch`` and the accuracies ``clean``, ``fgsm`` and ``pgd``, in [0, 1] or ``None``.
        events: alarms to mark.
        best_epoch: epoch whose accuracy under PGD gets a ring.
    """
    figure, axes = _panel("Accuracy on held-out images", "accuracy")
    adversarial = theme.sets["adversarial"]
    for key, label, colour, style in (
        ("clean", "clean", theme.sets["clean"], "o-"), ("fgsm", "FGSM", adversarial, "o--"),
        ("pgd", "PGD", adversarial, "o-"),
    ):  # fmt: skip
        epochs, values = _series(rows, key)
        if values:
            fill = theme.background if key == "fgsm" else colour
            size = 4 if len(values) <= FEW else 0
            axes.plot(epochs, values, style, color=colour, label=label, markersize=size, markerfacecolor=fill)
    best = [row for row in rows if row["epoch"] == best_epoch]
    if best:
        axes.plot(
            best[0]["epoch"],
            best[0]["pgd"],
            "o",
            markersize=9,
            color="none",
            markeredgecolor=theme.text,
            label="best epoch",
        )
    axes.set_ylim(-0.02, 1.02)
    _mark(axes, events, theme)
    legend_above(axes)
    return figure


def _steps(rows: Rows) -> Rows:
    return [row for row in rows if row.get("kind") == "step"]


def _epochs(rows: Rows) -> Rows:
    return [row for row in rows if row.get("kind") == "epoch"]


# File name, drawing function, metric that must be logged, and caption.
CURVES: tuple[tuple[str, Callable[[Rows, Rows, Theme], Figure], str, str], ...] = (
    ("training-loss", draw_loss, "loss", "A smooth decrease is healthy; faint: logged steps, strong: running mean."),
    (
        "training-accuracy", draw_accuracy, "loss",
        "Lines are training batches, points held-out images. An adversarial line far above its points "
        "indicates overfitting, and so do hollow points (FGSM) far above filled ones (PGD-10). Diamonds: the training "
        "weights, where the run evaluates their average.",
    ),
    (
        "training-energies", draw_energies, "loss",
        "The lines should stay close together; a line that diverges from the others indicates a collapse.",
    ),
    (
        "training-deltas", draw_delta_energies, "delta_marginal",
        "Clean minus adversarial energy: near 0 the landscape is flat around images; a jump indicates catastrophic "
        "overfitting, a slow decrease of dE(x) below 0 robust overfitting.",
    ),
)  # fmt: skip
