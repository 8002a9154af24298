"""Images from a classifier: which start, which energy, and whether to stop, for seven classifiers of MNIST.

    python benchmarks/studies/generation.py --root PATH --jobs 1
    python benchmarks/studies/generation.py --root PATH --jobs 1 --work FOLDER_OF_THE_STUDY_MNIST

The classifiers are those of `mnist.py`; with its folder as `--work` nothing is trained again. Each of them generates
500 images (50 per class) by Langevin steps from every start, down every energy, and down two of them with adaptive
stopping, from the same starts with the same random numbers. An independent standard network judges them: Frechet
distance (FD), precision and recall, and the share that it names as the class. The step size of each energy and
classifier is the one of three with the lowest FD on 200 other images. Steps are counted in forward and backward
passes; seconds are processor time of one thread.
"""

from __future__ import annotations

import base64
import itertools
import re
import sys
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import Draw, Job, Row, Scale, Study, cell, finished, main, paragraph, run_folder, table
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from mnist import JUDGE, Mnist, judge_with_data
from torch import Tensor

import trilemma
from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import ImageSet
from trilemma.errors import ConfigError
from trilemma.evaluation.samples import BATCH_SIZE
from trilemma.figures.style import RUN_MARKERS, Theme, new_figure
from trilemma.metrics.features import extract, feature_metrics
from trilemma.metrics.generation import image_metrics, nearest_distance
from trilemma.samplers.generate import generate
from trilemma.samplers.guidance import with_statistics
from trilemma.samplers.replay_buffer import load_chains

CASES = ("eb-jdat", "jeat", "jem++", "sada-jem", "dat", "trades", "pgd-at")
# Two sizes of the neighbourhood of local PCA; `replay-buffer` only where training kept chains.
STARTS = ("uniform", "class-pca", "local-pca:k=50", "local-pca:k=500", "class-gaussian", "replay-buffer")
# Energy and schedule of the noise; the first one is what the others are compared with.
ENERGIES = (
    ("joint", "linear"), ("joint", "constant"), ("marginal", "linear"), ("ce", "linear"), ("reference", "linear"),
    ("mahalanobis", "linear"),
)  # fmt: skip
STEPS, STEP_SIZES = 100, (1.0, 0.25, 0.05)
CHAIN: Row = {"noise_std": 0.03, "clamp": 2.0}
PER_CLASS, TUNING_PER_CLASS = 50, 20
# Energies that also run with adaptive stopping, noise falling linearly.
STOPPED = ("joint", "reference")
TUNING_START, TUNING_SEED = "uniform:0.5,class-pca:0.5", 1000
# Cells whose first image of each class is shown.
SHOWN = (("uniform", "joint", False), ("local-pca:k=50", "joint", False), ("local-pca:k=50", "joint", True))
# Rows of chains, and of the runs that other runs or all rows need.
GROUP, NEEDED = "chains", "needed"


class Generation(Study):
    name = "generation"
    title = "Images from a classifier"
    scales = ("mnist",)
    toy_has_data = True

    def jobs(self, scale: Scale) -> list[Job]:
        runs = [job for job in Mnist().jobs(scale) if job.group in ("main", "judge")]
        needed = [
            Job(job.case, job.seed, job.config, NEEDED, job.first, measures=job.group)
            for job in runs
            if job.first
        ]
        return needed + [
            Job(job.case, job.seed, job.config, GROUP, measures=job.group)
            for case in CASES
            for job in runs
            if job.case == case
        ]

    def measure(self, job: Job, run: Path, scale: Scale) -> Row:
        if job.group != GROUP:
            return {}
        judge = next(other for other in self.jobs(scale) if other.case == JUDGE)
        return _Measurement(trilemma.load(run), run, run_folder(scale, judge), scale.toy).row()

    def tables(self, rows: list[Row], scale: Scale) -> str:
        measured = finished(rows, group=GROUP)
        captioned = (
            (
                f"Starts: {10 * PER_CLASS:,} images per classifier by {STEPS} steps down E(x, y) with noise that falls "
                "to 0. Mean over classifiers (lowest to highest). Named, FD, precision, recall: as in mnist.md; "
                "distance: mean L2 distance to the nearest training image over that of test images; spread: mean L2 "
                "distance of two images of a class over that of test images; start: FD of the starting images "
                "themselves; seconds per 1,000 starts.",
                _table_of_starts(measured),
            ),
            (
                "Energies, from uniform noise and from local PCA (k = 50), all steps. The noise falls linearly to 0 "
                "unless it is said to be constant.",
                _table_of_energies(measured),
            ),
            (
                "Adaptive stopping against all steps: passes per image, FD with and without, and the share of "
                "classifiers whose FD is lower with it; seconds per 1,000 images.",
                _table_of_stopping(measured),
            ),
            (
                "The best cell of each classifier by FD, from noise and from any start.",
                _table_of_best(measured),
            ),
        )
        return "\n\n".join(f"{paragraph(caption)}\n\n{lines}" for caption, lines in captioned)

    def figures(self, rows: list[Row], scale: Scale) -> dict[str, Draw]:
        measured = finished(rows, group=GROUP)
        if not measured:
            return {}
        return {"": lambda theme: _draw(measured, theme), "-gallery": lambda theme: _gallery(measured, theme)}


# --- Measures --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A start, an energy with the schedule of its noise, and whether chains stop."""

    start: str
    energy: str
    noise: str
    stop: bool


CELLS = [
    Cell(start, energy, noise, stop)
    for start, (energy, noise), stop in itertools.product(STARTS, ENERGIES, (False, True))
    if not stop or (energy in STOPPED and noise == "linear")
]


class _Measurement:
    """All cells of one classifier.

    Args:
        clf: the classifier; it gets the statistics that energies and stopping need.
        run: its run folder, for the chains of training.
        judge_run: the run folder of the independent network.
        toy: few images and steps.
    """

    def __init__(self, clf: Classifier, run: Path, judge_run: Path, toy: bool) -> None:
        self.judge, self.extractor, splits, self.reference = judge_with_data(judge_run)
        self.train = splits.train.first(len(self.reference.values))
        self.clf = with_statistics(clf, "mahalanobis", True, self.train)
        self.toy, self.steps = toy, 2 if toy else STEPS
        self.labels = torch.arange(clf.num_classes).repeat_interleave(2 if toy else PER_CLASS)
        test = splits.test.first(len(self.labels))
        self.test, self.test_labels = test.float_images(), test.labels
        self.chains: ImageSet | None = None
        # A method without a replay buffer has no chains.
        with suppress(ConfigError):
            self.chains = load_chains(run)

    def row(self) -> Row:
        sizes = {energy: self._step_size(energy) for energy in dict.fromkeys(name for name, _ in ENERGIES)}
        cells, starts, shown = [], {}, {}
        for start in STARTS:
            if start == "replay-buffer" and self.chains is None:
                continue
            began = time.process_time()
            images = torch.cat([self._start(start, part) for part in self.labels.split(BATCH_SIZE)])
            seconds = time.process_time() - began
            starts[start] = {**self._judged(images), "seconds": round(1000 * seconds / len(images), 2)}
            for cell_ in CELLS:
                if cell_.start != start:
                    continue
                samples, measured = self._chain(cell_, images, sizes[cell_.energy])
                cells.append({**vars(cell_), "step_size": sizes[cell_.energy], **measured})
                if (start, cell_.energy, cell_.stop) in SHOWN and cell_.noise == "linear":
                    first = samples[:: len(samples) // self.clf.num_classes]
                    shown[f"{start} {'stop' if cell_.stop else 'all'}"] = _packed(first)
        real = self._judged(self.test, self.test_labels)
        return {"cells": cells, "starts": starts, "real": real, "step_sizes": sizes, "shown": shown}

    def _start(self, start: str, labels: Tensor, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed + int(labels[0]))
        # The default size of the neighbourhood fits few images too.
        start = re.sub(r":k=\d+", "", start) if self.toy else start
        return generate(
            self.clf, labels, start, "langevin", "joint", 0, self.train, generator, chains=self.chains
        )

    def _step_size(self, energy: str) -> float:
        """The step size with the lowest FD."""
        labels = torch.arange(self.clf.num_classes).repeat_interleave(2 if self.toy else TUNING_PER_CLASS)
        starts = self._start(TUNING_START, labels, TUNING_SEED)

        def distance(step_size: float) -> float:
            images = generate(
                self.clf, labels, starts, "langevin", energy, self.steps,
                generator=torch.Generator().manual_seed(TUNING_SEED), step_size=step_size, noise_schedule="linear",
                **CHAIN,
            )  # fmt: skip
            found: float = feature_metrics(extract(self.extractor, images), self.reference, seed=0)["frechet"]
            return found

        return min(STEP_SIZES, key=distance)

    def _chain(self, cell_: Cell, starts: Tensor, step_size: float) -> tuple[Tensor, Row]:
        steps = torch.zeros(len(starts), dtype=torch.int64)
        parts = []
        began = time.process_time()
        for index in torch.arange(len(starts)).split(BATCH_SIZE):

            def count(step: dict[str, Any], index: Tensor = index) -> None:
                steps[index[step["index"]]] += 1

            images = generate(
                self.clf, self.labels[index], starts[index], "langevin", cell_.energy, self.steps,
                generator=torch.Generator().manual_seed(int(index[0])), stop=cell_.stop, callback=count,
                step_size=step_size, noise_schedule=cell_.noise, **CHAIN,
            )  # fmt: skip
            parts.append(images)
        seconds = time.process_time() - began
        samples = torch.cat(parts)
        # A step is a forward and a backward pass, and so is the one in which a chain stops.
        passes = 2 * (steps + (steps < self.steps).long() * cell_.stop).double().mean()
        return samples, {
            **self._judged(samples),
            "passes": float(passes),
            "stopped": float((steps < self.steps).double().mean()),
            "seconds": round(1000 * seconds / len(samples), 2),
        }

    def _judged(self, images: Tensor, labels: Tensor | None = None) -> Row:
        labels = self.labels if labels is None else labels
        found = feature_metrics(extract(self.extractor, images), self.reference, seed=0)
        return {
            "named": image_metrics(images, labels, None, self.judge)["named"],
            "distance": float(nearest_distance(images, self.train.images).mean()),
            "spread": _spread(images, labels),
            **{name: found[name] for name in ("frechet", "precision", "recall", "coverage")},
        }


def _spread(images: Tensor, labels: Tensor) -> float:
    """Mean L2 distance of two images of a class, pixel units; mean over the classes."""
    parts = [images[labels == k].flatten(1) for k in labels.unique().tolist()]
    return mean(float(torch.pdist(part).mean()) for part in parts if len(part) > 1)


def _packed(images: Tensor) -> str:
    """Images of 8 bits as text."""
    return base64.b85encode(zlib.compress((images * 255).round().to(torch.uint8).numpy().tobytes())).decode()


def _unpacked(text: str) -> Tensor:
    """Grey images ``[N, side, side]`` of :func:`_packed`, one per class of MNIST or the digits."""
    flat = torch.frombuffer(bytearray(zlib.decompress(base64.b85decode(text))), dtype=torch.uint8)
    side = int((flat.numel() // 10) ** 0.5)
    return flat.view(10, side, side)


# --- Tables ----------------------------------------------------------------------------------------------

BASE = {"energy": "joint", "noise": "linear", "stop": False}


def _cells(rows: Iterable[Row], **where: Any) -> list[Row]:
    """The cells with these values, one or more per classifier."""
    return [
        one for row in rows for one in row["cells"] if all(one[key] == value for key, value in where.items())
    ]


def _quality(cells: list[Row], rows: list[Row]) -> list[str]:
    real = rows[0]["real"]
    return [
        cell((one["named"] for one in cells), 2), cell((one["frechet"] for one in cells), 0),
        cell((one["precision"] for one in cells), 2), cell((one["recall"] for one in cells), 2),
        cell((one["distance"] / real["distance"] for one in cells), 2),
        cell((one["spread"] / real["spread"] for one in cells), 2),
    ]  # fmt: skip


QUALITY = ["named", "FD-standard", "precision", "recall", "distance", "spread"]


def _table_of_starts(rows: list[Row]) -> str:
    lines = []
    for start in STARTS:
        own = [row["starts"][start] for row in rows if start in row["starts"]]
        lines.append(
            [start, *_quality(_cells(rows, start=start, **BASE), rows), cell((one["frechet"] for one in own), 0),
             cell((one["seconds"] for one in own), 1)]
        )  # fmt: skip
    lines += (
        [["real test images", *_quality([row["real"] for row in rows[:1]], rows), "-", "-"]] if rows else []
    )
    return table(["start", *QUALITY, "start", "seconds"], lines)


def _table_of_energies(rows: list[Row]) -> str:
    lines = []
    for start, (energy, noise) in itertools.product(("uniform", "local-pca:k=50"), ENERGIES):
        own = _cells(rows, start=start, energy=energy, noise=noise, stop=False)
        name = energy if noise == "linear" else f"{energy}, constant noise"
        lines.append([start, name, *_quality(own, rows)])
    return table(["start", "energy", *QUALITY], lines)


def _table_of_stopping(rows: list[Row]) -> str:
    lines = []
    for start, energy in itertools.product(STARTS, STOPPED):
        with_stop, without = (
            _cells(rows, start=start, energy=energy, noise="linear", stop=stop) for stop in (True, False)
        )
        better = [a["frechet"] < b["frechet"] for a, b in zip(with_stop, without, strict=True)]
        stopped, passes, seconds = (
            cell((one[name] for one in with_stop), digits)
            for name, digits in (("stopped", 2), ("passes", 0), ("seconds", 1))
        )
        distances = [cell((one["frechet"] for one in cells), 0) for cells in (with_stop, without)]
        lower = f"{sum(better)}/{len(better)}"
        slow = cell((one["seconds"] for one in without), 1)
        lines.append([start, energy, stopped, passes, str(2 * STEPS), *distances, lower, seconds, slow])
    head = [
        "start",
        "energy",
        "stopped",
        "passes",
        "without",
        "FD",
        "FD without",
        "lower",
        "seconds",
        "seconds without",
    ]
    return table(head, lines)


def _table_of_best(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        for what, chosen in (("noise", _cells([row], start="uniform")), ("any", row["cells"])):
            best = min(chosen, key=lambda one: one["frechet"])
            chain = f"{best['start']}, {best['energy']}, {best['noise']} noise, step {best['step_size']:g}"
            lines.append(
                [row["case"], what, chain + (", stop" if best["stop"] else ""), *_quality([best], rows),
                 f"{best['passes']:.0f}"]
            )  # fmt: skip
    return table(["classifier", "from", "chain", *QUALITY, "passes"], lines)


# --- Figures ---------------------------------------------------------------------------------------------


def _draw(rows: list[Row], theme: Theme) -> Figure:
    """Precision against recall per start, and FD against passes with and without stopping; a point per classifier."""
    figure, (left, right) = new_figure(7.6, 4.4, 1, 2)
    for place, start in enumerate(STARTS):
        color, marker = theme.runs[place % len(theme.runs)], RUN_MARKERS[place % len(RUN_MARKERS)]
        own = _cells(rows, start=start, **BASE)
        left.plot(
            [one["recall"] for one in own], [one["precision"] for one in own], color=color, marker=marker,
            linestyle="none", label=start,
        )  # fmt: skip
        stopped = _cells(rows, **{**BASE, "start": start, "stop": True})
        for one, other in zip(stopped, own, strict=True):
            right.plot(
                [one["passes"], other["passes"]], [one["frechet"], other["frechet"]], color=color, linewidth=0.8,
                alpha=0.5,
            )  # fmt: skip
        right.plot(
            [one["passes"] for one in stopped], [one["frechet"] for one in stopped], color=color, marker=marker,
            linestyle="none",
        )  # fmt: skip
    left.set_xlabel("recall (diversity)")
    left.set_ylabel("precision (quality)")
    left.set_title("All steps down E(x, y)")
    right.set_xlabel("passes per image (line to: all steps)")
    right.set_ylabel("FD-standard")
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_locator(NullLocator())
    right.set_title("Adaptive stopping")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _gallery(rows: list[Row], theme: Theme) -> Figure:
    """The first image of each class, unfiltered: a line per classifier, a column of panels per cell of SHOWN."""
    names = list(rows[0]["shown"])
    figure, axes = new_figure(7.6, 0.3 * len(rows) + 0.6, len(rows), len(names), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, name in zip(line, names, strict=True):
            images = _unpacked(row["shown"][name])
            axis.imshow(images.permute(1, 0, 2).flatten(1).numpy(), cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
        line[0].set_ylabel(row["case"], rotation=0, ha="right", va="center", fontsize=8)
    for axis, name in zip(axes[0], names, strict=True):
        start, _, stop = name.partition(" ")
        axis.set_title(f"from {start}" + (", stopped" if stop == "stop" else ""), fontsize=8.5)
    return figure


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(Generation(), __doc__))
