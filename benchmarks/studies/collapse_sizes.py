"""Single-step training that is healthy first and then collapses, at two more sizes: MNIST, and ResNet-8 on photographs.

    python benchmarks/studies/collapse_sizes.py --data mnist-small-cnn --root PATH --jobs 2
    python benchmarks/studies/collapse_sizes.py --data cifar10-resnet8 --root PATH --jobs 2

Every run begins with the weights of a robust network of the same seed and goes on with one method: plain FGSM, FGSM
with the two averages of DER, and the other remedies. On MNIST (official pixels, L-inf 0.3, the network of Wong et al.
2020) the robust network is trained by two attack steps, after an epoch of standard training without which they learn
nothing at this radius. On photographs (32x32, ResNet-8 of width 32, L-inf 8/255 and 12/255) it is trained by N-FGSM at
the larger radius. Definitions of *collapsed* and *onset* are those of `catastrophic_overfitting.py`. Epochs are counted
from the switch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

from catastrophic_overfitting import course, judged, quick_attacks, times
from common import (
    PATH,
    Draw,
    Job,
    Row,
    Scale,
    Study,
    accuracies,
    as_start,
    cases,
    cell,
    finished,
    main,
    of,
    paragraph,
    table,
)  # fmt: skip
from matplotlib.figure import Figure

from trilemma.figures.style import Theme, legend_above, new_figure

MNIST, RESNET = "mnist-small-cnn", "cifar10-resnet8"
STANDARD, HEALTHY = "standard", "healthy start"
STRONG = "pgd-50-10"
# Test images of PGD-50-10, the first ones: it takes fifty times as long as the other attacks.
FEW = 300
SETTINGS: dict[str, Row] = {
    MNIST: {
        "data": {"name": "mnist", "root": PATH, "train_images": 10_000},
        "network": {"name": "small-cnn", "width": 16, "hidden": 100},
        "optimiser": {"name": "adam", "weight_decay": 0.0},
        "schedule": {"name": "constant"},
        "augmentation": {"crop": 0},
        "training": {"epochs": 5, "batch_size": 128, "lr": 0.002},
    },
    RESNET: {
        "data": {"name": "cifar10", "root": PATH, "train_images": 8000},
        "network": {"name": "small-resnet", "width": 32, "depth": 8},
        "schedule": {"name": "constant"},
        "augmentation": {"crop": 0},
        "training": {"epochs": 5, "batch_size": 128, "lr": 0.05, "precision": "bf16", "held_out_images": 400},
    },
}
RADII = {MNIST: ("0.3",), RESNET: ("12/255", "8/255")}
SEEDS = {MNIST: 5, RESNET: 2}


def _der(average: str, beta: float, **options: Any) -> Row:
    return {"method": "fgsm", "regulariser": {"name": "der", "average": average, "beta": beta, **options}}


FGSM: Row = {"method": "fgsm"}
# In order of worth.
CASES: dict[str, dict[str, Row]] = {
    MNIST: {
        "fgsm": FGSM,
        "fgsm + der 1 (abnormal)": _der("abnormal", 1.0),
        "fgsm + der 2 (batch)": _der("batch", 2.0),
        "fgsm + der 30 (batch)": _der("batch", 30.0),
        "fgsm + der 3 (abnormal)": _der("abnormal", 3.0),
        "fgsm + der 10 (abnormal)": _der("abnormal", 10.0),
        "fgsm-rs": {"method": "fgsm-rs"},
        "n-fgsm": {"method": "n-fgsm"},
        "aaer (fgsm-rs)": {"method": {"name": "aaer", "base": "fgsm-rs"}},
        "pgd-2": {"method": "pgd-at", "attack": {"steps": 2}},
        "fgsm + der 0.3 (abnormal)": _der("abnormal", 0.3),
    },
    RESNET: {
        "fgsm": FGSM,
        "fgsm + der 1 (abnormal)": _der("abnormal", 1.0),
        "fgsm + der 1 (abnormal), eval": _der("abnormal", 1.0, mode="eval"),
        "fgsm + der 2 (batch)": _der("batch", 2.0),
        "fgsm + der 30 (batch)": _der("batch", 30.0),
        "n-fgsm": {"method": "n-fgsm"},
        "pgd-2": {"method": "pgd-at", "attack": {"steps": 2}},
    },
}
# What the starts are trained with, the first one first.
STARTS: dict[str, dict[str, Row]] = {
    MNIST: {
        STANDARD: {"method": "standard", "training": {"epochs": 1, "lr": 0.003, "select": "last"}},
        HEALTHY: {
            "method": "pgd-at",
            "attack": {"steps": 2},
            "training": {"epochs": 4, "lr": 0.003, "select": "last"},
        },
    },
    RESNET: {
        HEALTHY: {
            "method": "n-fgsm",
            "schedule": {"name": "cyclic", "peak": 0.4},
            "training": {"epochs": 8, "lr": 0.1, "select": "last"},
        }
    },
}


class CollapseSizes(Study):
    name = "collapse_sizes"
    title = "Collapse at two more sizes"
    scales = (MNIST, RESNET)
    toy_has_data = True

    def jobs(self, scale: Scale) -> list[Job]:
        seeds = range(1 if scale.toy else SEEDS[scale.data])
        last: dict[int, Job] = {}
        starts: list[Job] = []
        for left, (name, case) in zip(
            range(len(STARTS[scale.data]), 0, -1), STARTS[scale.data].items(), strict=True
        ):
            for seed in seeds:
                radius = RADII[scale.data][0]
                last[seed] = _job(name, case, radius, seed, scale, last.get(seed), first=left)
                starts.append(last[seed])
        return starts + [
            _job(name, case, radius, seed, scale, last[seed])
            for seed in seeds
            for radius in RADII[scale.data]
            for name, case in CASES[scale.data].items()
        ]

    def measure(self, job: Job, run: Path, scale: Scale) -> Row:
        row = course(run, before=0, width=1.0)
        if job.case == STANDARD:
            return row
        row["last"] = accuracies(run, "last", ("clean",), scale)
        row["last"] |= accuracies(run, "last", (STRONG,), scale, images=2 if scale.toy else FEW)
        row["last"] |= quick_attacks(run, scale)
        return row | judged(row["last"], row["held_out"])

    def tables(self, rows: list[Row], scale: Scale) -> str:
        epochs = SETTINGS[scale.data]["training"]["epochs"]
        text = (
            f"{epochs} epochs from the healthy start, last checkpoint, the first {scale.test_images:,} test images "
            f"(PGD-50-10: {FEW}). Collapsed: PGD-10 below half of FGSM accuracy. Onset: epochs from the switch. "
            "Abnormal: share of abnormal examples in the last epoch of training."
        )
        parts = [paragraph(text)]
        for radius in RADII[scale.data]:
            own = [row for row in of(rows, group=radius) if row["case"] != STANDARD]
            parts += [f"L-inf {radius}:", _table(own)]
        return "\n\n".join(parts)

    def figures(self, rows: list[Row], scale: Scale) -> dict[str, Draw]:
        drawn = [row for row in rows if row["case"] != STANDARD]
        return {"": lambda theme: _draw(drawn, scale, theme)} if drawn else {}


def _job(
    name: str, case: Row, radius: str, seed: int, scale: Scale, start: Job | None, first: int = 0
) -> Job:
    setting = SETTINGS[scale.data]
    training = {**setting["training"], **case.get("training", {}), "seed": seed, "log_every": 3}
    if start is not None:
        training["start"] = as_start(start)
    config = {**setting, **case, "threat": {"norm": "linf", "radius": radius}}
    if "attack" in case:
        config["attack"] = {**case["attack"], "step_size": times(radius, f"1/{case['attack']['steps']}")}
    if scale.toy:
        training |= {"epochs": 1, "batch_size": 20, "held_out_images": 20}
        config["data"] = {"name": "digits", "train_images": 40}
        config["network"] = {**setting["network"], "width": 4}
    return Job(name, seed, {**config, "training": training}, radius, first=first)


def _table(rows: list[Row]) -> str:
    lines = []
    for case in cases(rows):
        own = finished(rows, case=case)
        onsets = [row["onset"] for row in own if row["onset"] is not None]
        shares = (row["curve"]["abnormal"][-1] for row in own)
        lost = len(of(rows, case=case)) - len(own)
        ill = f"{sum(row['collapsed'] for row in own)}/{len(own)}"
        accuracy = [cell(row["last"][name] for row in own) for name in ("clean", "fgsm", "pgd-10", STRONG)]
        onset = f"{median(onsets):.0f}" if onsets else "-"
        lines.append([case, *accuracy, cell(shares, 4), ill + (f", {lost} failed" if lost else ""), onset])
    head = [
        "case",
        "clean",
        "FGSM",
        "PGD-10",
        "PGD-50-10",
        "abnormal",
        "collapsed",
        "median onset",
    ]
    return table(head, lines)


def _draw(rows: list[Row], scale: Scale, theme: Theme) -> Figure:
    """Accuracy under PGD-10 by case, one mark per seed, a panel per radius; the healthy start is one of the cases."""
    radii, names = [radius for radius in RADII[scale.data] if of(rows, group=radius)], cases(rows)
    figure, panels = new_figure(
        2.4 + 3.2 * len(radii), 1.1 + 0.3 * len(names), 1, len(radii), sharey=True, squeeze=False
    )
    for axes, radius in zip(panels[0], radii, strict=True):
        for ill, marker, colour, word in (
            (False, "o", theme.runs[0], "healthy"),
            (True, "X", theme.alarm, "collapsed"),
        ):
            points = [
                (row["last"]["pgd-10"], names.index(row["case"]))
                for row in of(rows, group=radius)
                if row["collapsed"] == ill
            ]
            axes.plot(
                [value for value, _ in points], [place for _, place in points], marker, color=colour,
                linestyle="none", markersize=6, alpha=0.8, label=word,
            )  # fmt: skip
        axes.set_title(f"L-inf {radius}", pad=24)
        axes.margins(x=0.1)
        axes.set_xlim(-0.02, None)
        axes.grid(True, axis="x")
        axes.set_xlabel("accuracy under PGD-10")
    panels[0][0].set_yticks(range(len(names)), names)
    panels[0][0].invert_yaxis()
    legend_above(panels[0][0])
    return figure


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(CollapseSizes(), __doc__))
