"""MNIST at full size: accuracy, robustness, generation and calibration of every method, on the official pixels.

    python benchmarks/studies/mnist.py --root PATH --jobs 1
    python benchmarks/studies/mnist.py --root PATH --jobs 1 --groups main autoattack --cases pgd-at eb-jdat

Every case is the packaged recipe mnist/CASE as it is, tuned on held-out images only. Rows come in three groups, the
cheap one first, so that an interrupted study still says something of every method:

- main: the run itself; of the checkpoint selected on held-out images: clean accuracy and PGD-20 on all 10,000 test
  images, calibration error, AUROC against sets made without other data (inverted and rotated digits, uniform noise,
  letters of the fonts that come with matplotlib), energies of clean and attacked images, and 1,000 images generated
  from noise, judged by an independent standard network: Frechet distance, precision, recall, share of the class;
- autoattack: AutoAttack (standard) on the first 1,000 test images, in stratified order;
- pgd: PGD-50-10 on all test images, 500 attack steps for every image that withstands.

The authors of AutoAttack publish its rows for MNIST at L-inf 0.3 on all 10,000 images; the pixels here are theirs.
"""

from __future__ import annotations

import itertools
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from common import (
    Draw,
    Job,
    Row,
    Scale,
    Study,
    accuracies,
    cases,
    cell,
    finished,
    main,
    of,
    paragraph,
    run_folder,
    table,
)  # fmt: skip
from matplotlib import get_data_path
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import trilemma
from trilemma.attacks import pgd
from trilemma.config.recipe import recipe_text
from trilemma.data.image_set import ImageSet, Splits
from trilemma.errors import CheckpointError
from trilemma.evaluation.evaluate import run_splits
from trilemma.evaluation.protocols.ood import uniform_noise
from trilemma.evaluation.samples import draw_samples
from trilemma.figures.style import RUN_MARKERS, Theme, new_figure
from trilemma.metrics.calibration import probabilities, reliability
from trilemma.metrics.energy_landscape import energy_points, finite_logits, shift_summary
from trilemma.metrics.features import Features, extract, feature_metrics
from trilemma.metrics.frechet import Extractor, penultimate
from trilemma.metrics.generation import image_metrics
from trilemma.metrics.ood import auroc, ood_scores
from trilemma.noise import image_seeds
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.estimate import forward_passes

# In order of worth: an interrupted study has the first ones.
CASES = (
    "pgd-at", "trades", "eb-jdat", "jeat", "jem++", "weat-adv", "mart", "standard", "fgsm-rs", "sada-jem", "dat",
    "eb-jdat-paper", "pgd-at-der",
)  # fmt: skip
SEEDS = range(1)
# Recipes that start from this one continue its run.
START = "pgd-at"
JUDGE, JUDGE_SEED = "judge", 1000
AUTOATTACK = "autoattack-standard"
# Percent; below, a method is a line of the figure.
NOT_ROBUST = 50
LINE_STYLES = ("--", ":", "-.")
ATTACKED, EVERYTHING = 1000, 10**9
# AutoAttack on all test images, as its authors publish it; networks of 0.3 to 3 M parameters.
PUBLISHED = (
    ("TRADES (Zhang et al. 2019)", 99.48, 92.81),
    ("adversarial training (Madry et al. 2018)", 98.53, 88.50),
    ("FGSM-RS (Wong et al. 2020)", 98.50, 82.93),
)
# One chain for every method, on E(x, y) of the requested class, and its number of steps by start.
CHAIN: Row = {"step_size": 0.25, "noise_std": 0.03, "clamp": 2.0}
STARTS = {"uniform": 100, "class-gaussian": 30}
PER_CLASS, REFERENCE = 100, 10_000
OUTSIDE = ("inverted", "rotated", "noise", "letters")
SCORES = ("-E(x)", "max softmax")
LETTERS = "ABCDEFGHIJ"
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip


class Mnist(Study):
    name = "mnist"
    title = "MNIST at full size"
    scales = ("mnist",)
    toy_has_data = True

    def jobs(self, scale: Scale) -> list[Job]:
        judge = _tree(scale, "standard", JUDGE_SEED)
        found = [Job(JUDGE, JUDGE_SEED, judge, "judge", first=True)]
        robust = {seed: Job(START, seed, _tree(scale, START, seed), first=True) for seed in SEEDS}
        for group, seed, case in itertools.product(("main", "autoattack", "pgd"), SEEDS, CASES):
            tree = _tree(scale, case, seed)
            if tree["training"].get("start") == f"mnist/{START}":
                tree["training"]["start"] = str(run_folder(scale, robust[seed]))
            measures = "" if group == "main" else "main"
            found.append(
                Job(case, seed, tree, group, first=group == "main" and case == START, measures=measures)
            )
        return found

    def measure(self, job: Job, run: Path, scale: Scale) -> Row:
        everything, some = (20, 20) if scale.toy else (EVERYTHING, ATTACKED)
        if job.group == "judge":
            return accuracies(run, "best", ("clean",), scale, images=everything)
        if job.group == "autoattack":
            return accuracies(run, "best", (AUTOATTACK,), scale, images=some)
        if job.group == "pgd":
            return accuracies(run, "best", ("pgd-50-10",), scale, images=everything)
        config = RunDirectory(run).config()
        assert config.threat is not None
        judge = next(other for other in self.jobs(scale) if other.group == "judge")
        return {
            "epochs": config.training.epochs, "passes": forward_passes(config), "norm": config.threat.norm,
            "radius": config.threat.radius,
            **accuracies(run, "best", ("clean", "pgd-20"), scale, images=everything),
            **_without_attack(run, scale, some), **_generation(run, run_folder(scale, judge), scale),
        }  # fmt: skip

    def tables(self, rows: list[Row], scale: Scale) -> str:
        captioned = [
            (
                "Accuracy in percent on the official test images: clean and PGD-20 on all 10,000, AutoAttack on the "
                f"first {ATTACKED:,}, PGD-50-10 on all; a dash is not measured yet. L-inf 0.3 (`dat`: L2 2.0). "
                "Passes: forward passes per training image and epoch. The last rows are published ones, AutoAttack on "
                "all 10,000 images of the same pixels.",
                _accuracy_table(rows),
            ),
            (
                f"Images generated from noise by one chain ({PER_CLASS} per class), and from class Gaussians. Named: "
                "share that an independent standard network assigns to the requested class; FD-standard, precision "
                f"and recall: in that network's features, against {REFERENCE:,} training images (FD) and as many as "
                "there are samples.",
                _generation_table(rows),
            ),
            (
                f"AUROC by -E(x) and, in brackets, by the largest probability, of the first {ATTACKED:,} test images "
                "against as many others; expected calibration error; mean E(x) of clean images, and means of "
                "dE(x) = E(x) - E(x*) and of the abnormal share under PGD-20.",
                _energy_table(rows),
            ),
        ]
        return "\n\n".join(f"{paragraph(caption)}\n\n{lines}" for caption, lines in captioned)

    def figures(self, rows: list[Row], scale: Scale) -> dict[str, Draw]:
        known = [row for row in of(rows, group="main") if row["norm"] == "linf"]
        return {"": lambda theme: _draw(known, rows, theme)} if known else {}


def _tree(scale: Scale, case: str, seed: int) -> Row:
    tree: Row = yaml.safe_load(recipe_text(f"mnist/{case}"))
    tree["training"]["seed"] = seed
    if scale.toy:
        tree["data"] = {"name": "digits", "train_images": 40}
        tree["network"] |= {"width": 4, "hidden": 16}
        tree["training"] |= {"epochs": 1, "evaluate_every": 1, "batch_size": 20, "held_out_images": 20}
        if "sampler" in tree:
            tree["sampler"] |= {"steps": 2, "buffer_size": 40}
        # Any other first stage would be as long as its recipe says.
        if tree["training"].get("start") != f"mnist/{START}":
            tree["training"].pop("start", None)
    else:
        tree["data"]["root"] = str(scale.root)
    return tree


# --- Measures --------------------------------------------------------------------------------------------


def letters(count: int, side: int, seed: int = 0) -> Tensor:
    """White letters A to J on black, float ``[count, 1, side, side]``, in several fonts, sizes and places."""
    generator = torch.Generator().manual_seed(seed)
    # Four times the size, then averaged, for the grey borders that scanned digits have.
    large = 4 * side
    images = []
    for index in range(count):
        size, dx, dy = torch.rand(3, generator=generator).tolist()
        file = Path(get_data_path()) / "fonts" / "ttf" / f"{FONTS[index // len(LETTERS) % len(FONTS)]}.ttf"
        canvas = Image.new("L", (large, large))
        font = ImageFont.truetype(str(file), int(large * (0.6 + 0.25 * size)))
        place = (large * (0.5 + 0.1 * (dx - 0.5)), large * (0.5 + 0.1 * (dy - 0.5)))
        ImageDraw.Draw(canvas).text(place, LETTERS[index % len(LETTERS)], 255, font, anchor="mm")
        small = canvas.resize((side, side), Image.Resampling.BOX)
        images.append(torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, side, side))
    return torch.stack(images).float() / 255


def outside_sets(images: Tensor) -> dict[str, Tensor]:
    """The sets of :data:`OUTSIDE`, as many images as ``[N, 1, H, H]`` given, in the same shape."""
    seeds = image_seeds(len(images), torch.Generator().manual_seed(0), images.device)
    made = (
        1 - images,
        images.rot90(1, (2, 3)),
        uniform_noise(images, seeds),
        letters(len(images), images.shape[-1]),
    )
    return dict(zip(OUTSIDE, made, strict=True))


def _without_attack(run: Path, scale: Scale, count: int) -> Row:
    """Calibration on all test images; AUROC and energies on the first ``count``."""
    clf, test = trilemma.load(run).to(scale.device), run_splits(run).test
    try:
        shares = probabilities(finite_logits(clf, test.float_images()))
        images, labels = _first(test, count)
        inside = ood_scores(clf, images)
        others = {name: ood_scores(clf, other) for name, other in outside_sets(images).items()}
        clean = energy_points(clf, images, labels)
        # A network without a threat of its own is attacked at the radius of the others.
        threat = clf.threat or trilemma.Threat("linf", "0.3")
        starred = pgd(clf, images, labels, threat, steps=20, generator=torch.Generator().manual_seed(0))
        shift = shift_summary(clean, energy_points(clf, starred, labels))
    # Logits that are not finite have no distribution.
    except CheckpointError:
        return {"ece": None, "ood": None, "energies": None}
    return {
        "ece": reliability(shares, test.labels).error,
        "ood": {
            name: {score: auroc(inside[score], other[score]) for score in SCORES}
            for name, other in others.items()
        },
        "energies": {
            "clean": float(clean.marginal.mean()), "clean_joint": float(clean.joint.mean()),
            "delta": shift["delta_marginal"]["mean"], "delta_joint": shift["delta_joint"]["mean"],
            "abnormal": shift["abnormal"],
        },
    }  # fmt: skip


def _first(test: ImageSet, count: int) -> tuple[Tensor, Tensor]:
    part = test.first(min(count, len(test)))
    return part.float_images(), part.labels


@cache
def judge_with_data(folder: Path) -> tuple[trilemma.Classifier, Extractor, Splits, Features]:
    """The judge, its features, its data, and the features of training images, in stratified order."""
    clf, splits = trilemma.load(folder), run_splits(folder)
    extractor = penultimate(clf, "standard")
    part = splits.train.first(min(REFERENCE, len(splits.train)))
    return clf, extractor, splits, extract(extractor, part.images)


def _generation(run: Path, judge_run: Path, scale: Scale) -> Row:
    """Figures of the images that one chain generates, from each start; of test images for comparison."""
    clf, (judge, extractor, splits, reference) = (
        trilemma.load(run).to(scale.device),
        judge_with_data(judge_run),
    )
    per_class = 2 if scale.toy else PER_CLASS
    figures: Row = {}
    for start, steps in STARTS.items():
        samples = draw_samples(
            clf, per_class, start, "langevin", "joint", 2 if scale.toy else steps, 0, splits, **CHAIN
        )
        figures[start] = _judged(samples.images, samples.labels, judge, extractor, reference)
    return {
        "samples": figures,
        "real": _judged(*_first(splits.test, 10 * per_class), judge, extractor, reference),
    }


def _judged(
    images: Tensor, labels: Tensor, judge: trilemma.Classifier, extractor: Extractor, reference: Features
) -> Row:
    found: dict[str, Any] = feature_metrics(extract(extractor, images), reference, seed=0)
    kept = ("frechet", "precision", "recall", "density", "coverage")
    return {
        "named": image_metrics(images, labels, None, judge)["named"],
        **{name: found[name] for name in kept},
    }


# --- Tables ----------------------------------------------------------------------------------------------


def _accuracy_table(rows: list[Row]) -> str:
    lines = []
    for case in cases(of(rows, group="main")):
        own = finished(rows, group="main", case=case)
        measured = [
            [row[name] for row in finished(rows, group=group, case=case)]
            for group, name in (("pgd", "pgd-50-10"), ("autoattack", AUTOATTACK))
        ]
        shown = [[row[name] for row in own] for name in ("clean", "pgd-20")] + measured
        minutes = [row["train_seconds"] / 60 for row in own]
        lines.append(
            [
                case, *(cell((100 * value for value in values), 2) for values in shown),
                *((str(own[0]["epochs"]), str(own[0]["passes"])) if own else ("-", "-")), cell(minutes, 0),
            ]
        )  # fmt: skip
    lines += [
        [name, f"{clean:.2f}", "-", "-", f"{robust:.2f}", "-", "-", "-"] for name, clean, robust in PUBLISHED
    ]
    head = ["case", "clean", "PGD-20", "PGD-50-10", "AutoAttack", "epochs", "passes", "minutes"]
    return table(head, lines)


def _generation_table(rows: list[Row]) -> str:
    own = [row for row in of(rows, group="main") if "samples" in row]
    lines = [
        [row["case"], start, *_quality(row["samples"][start])]
        for row, start in itertools.product(own, STARTS)
    ]
    lines += [["real test images", "-", *_quality(row["real"])] for row in own[:1]]
    return table(["case", "start", "named", "FD-standard", "precision", "recall", "coverage"], lines)


def _quality(figures: Row) -> list[str]:
    shares = ("precision", "recall", "coverage")
    return [
        f"{figures['named']:.2f}", f"{figures['frechet']:.1f}",
        *("-" if figures[name] is None else f"{figures[name]:.2f}" for name in shares),
    ]  # fmt: skip


def _energy_table(rows: list[Row]) -> str:
    lines = []
    for row in of(rows, group="main"):
        if row.get("ood") is None:
            lines.append([row["case"], *["-"] * 8])
            continue
        areas = [f"{area[SCORES[0]]:.3f} ({area[SCORES[1]]:.3f})" for area in row["ood"].values()]
        energies = row["energies"]
        numbers = [f"{energies[name]:.2f}" for name in ("clean", "delta")]
        lines.append(
            [row["case"], *areas, f"{row['ece']:.3f}", *numbers, f"{_share(energies['abnormal']):.2f}"]
        )
    return table(["case", *OUTSIDE, "ECE", "E(x)", "dE(x)", "abnormal"], lines)


def _share(measured: Row) -> float:
    value: float = measured["value"]
    return value


# --- Figure ----------------------------------------------------------------------------------------------


def _draw(rows: list[Row], everything: list[Row], theme: Theme) -> Figure:
    """Robust accuracy against clean accuracy and against the Frechet distance, one point per method; published rows.

    Methods without robustness are lines at their Frechet distance: their accuracies would hide the differences of the
    others.
    """
    figure, panels = new_figure(7.6, 4.6, 1, 2, sharey=True)
    for place, row in enumerate(rows):
        attacked = finished(everything, group="autoattack", case=row["case"], seed=row["seed"])
        robust = 100 * (attacked[0][AUTOATTACK] if attacked else row["pgd-20"])
        distance = row["samples"]["uniform"]["frechet"]
        color = theme.runs[place % len(theme.runs)]
        if robust < NOT_ROBUST:
            style = LINE_STYLES[place % len(LINE_STYLES)]
            panels[1].axvline(distance, color=color, linewidth=1.2, linestyle=style, label=row["case"])
            continue
        look: Any = {
            "color": color, "markersize": 7, "linestyle": "none", "fillstyle": "full" if attacked else "none",
            "marker": RUN_MARKERS[(place + place // len(theme.runs)) % len(RUN_MARKERS)],
        }  # fmt: skip
        panels[0].plot([100 * row["clean"]], [robust], label=row["case"], **look)
        panels[1].plot([distance], [robust], **look)
    for name, clean, robust in PUBLISHED:
        panels[0].plot([clean], [robust], marker="+", markersize=9, color=theme.muted, linestyle="none")
        panels[0].annotate(
            name.rpartition("(")[2].rstrip(")"), (clean, robust), textcoords="offset points", xytext=(0, -12),
            ha="center", fontsize=7.5, color=theme.muted,
        )  # fmt: skip
    panels[0].margins(x=0.25, y=0.1)
    panels[1].set_xscale("log")
    panels[1].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panels[1].xaxis.set_major_formatter("{x:g}")
    panels[1].xaxis.set_minor_locator(NullLocator())
    panels[0].set_xlabel("clean accuracy, %")
    panels[1].set_xlabel("FD-standard of images from noise")
    panels[0].set_ylabel("robust accuracy, %")
    panels[0].set_title("Accuracy (filled: AutoAttack)")
    panels[1].set_title("Generation (left is better)")
    handles = [axes.get_legend_handles_labels() for axes in panels]
    figure.legend(
        handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], loc="outside lower center", ncols=5,
        handlelength=1.4,
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(Mnist(), __doc__))
