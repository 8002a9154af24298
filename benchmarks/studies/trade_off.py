"""Accuracy, robustness and generation in one network: what each method reaches for the same work.

    python benchmarks/studies/trade_off.py --jobs 2
    python benchmarks/studies/trade_off.py --data cifar10 --root PATH --jobs 2
    python benchmarks/studies/trade_off.py --data cifar10-32 --root PATH --jobs 4 --device cuda

Every case has the same network, the same data and the same budget in forward passes per training image: epochs are
the budget divided by ``trilemma.training.estimate.forward_passes``. The learning rate is a case's own, from the grid
0.02, 0.05, 0.1 (table RATES, which says how it was chosen). Per run, of the best checkpoint by held-out images:

- clean accuracy, PGD-50-10 at the radius, for some also at half of it (the scale of the released EB-JDAT code);
- collapse: the run failed after every remedy, or PGD-50-10 accuracy below 0.15 for a method that trains on x*;
- 500 images (50 per class) by one chain for all, from class PCA and from uniform noise: the share that an
  independent standard network assigns to the requested class, the distance to the nearest training image, and the
  Frechet distance to the training images in that network's features (``FD-standard``), for start and sample;
- E(x) of clean test images, of the same attacked by PGD-20, and of the images from class PCA, with the three
  1-Wasserstein distances.

The ablation of EB-JDAT (inner objective x alignment, and the number of inner steps) has equal epochs, and PGD-20.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import (
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
    run_folder,
    table,
)  # fmt: skip
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

import trilemma
from trilemma.cli.quickstart import CHAIN, STARTS
from trilemma.config.recipe import build_config
from trilemma.data.image_set import ImageSet, Splits
from trilemma.errors import CheckpointError
from trilemma.evaluation.evaluate import run_splits
from trilemma.evaluation.samples import draw_samples
from trilemma.figures.style import RUN_MARKERS, SET_LINES, Theme, new_figure
from trilemma.metrics.energy_landscape import energy_points
from trilemma.metrics.frechet import Extractor, Moments, frechet_distance, image_moments, penultimate
from trilemma.metrics.generation import image_metrics
from trilemma.metrics.wasserstein import wasserstein_distance
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.estimate import forward_passes

COLLAPSED = 0.15
JUDGE, JUDGE_SEED = "judge", 1000
# Forward passes per training image of a main run; the runs of the ablation have equal epochs instead.
BUDGET = {"digits": 1500, "cifar10": 150, "cifar10-32": 1000}
SEEDS = {"digits": range(3), "cifar10": range(1), "cifar10-32": range(1)}
RADIUS = {"digits": ("0.2", "0.1"), "cifar10": ("8/255", "4/255"), "cifar10-32": ("8/255", "4/255")}
ENERGY_SETS = ("clean", "adversarial", "generated")

# One learning rate per case from the grid 0.02, 0.05, 0.1 (SGD, one-cycle): the one of its digits recipe; the paper's
# game diverges on digits at 0.05, so it has the lowest. Every run of the ablation has 0.05.
RATES = {
    "standard": 0.1, "pgd-at": 0.1, "trades": 0.1, "weat-adv": 0.1, "jem++": 0.05, "sada-jem": 0.05, "jeat": 0.05,
    "dat": 0.02, "eb-jdat": 0.1, "eb-jdat-energy": 0.1, "eb-jdat-paper": 0.02, "eb-jdat-release": 0.05,
}  # fmt: skip
ABLATION_RATE, ABLATION_EPOCHS = 0.05, 24
# Chains of E(x, y) from noise, as in the recipe digits/eb-jdat.
JOINT = {
    "digits": {
        "name": "langevin", "energy": "joint", "start": "uniform", "steps": 10, "step_size": 0.25, "noise_std": 0.03,
        "clamp": 2.0, "buffer_size": 500, "mode": "eval",
    },
    "cifar10": {
        "name": "langevin", "energy": "joint", "start": "uniform", "steps": 5, "step_size": 0.25, "noise_std": 0.01,
        "clamp": 2.0, "buffer_size": 2000, "mode": "eval",
    },
}  # fmt: skip
OWN_CHAIN = {"buffer_size": 1000}
CASES: dict[str, Row] = {
    "standard": {"method": "standard"},
    "pgd-at": {"method": "pgd-at"},
    "trades": {"method": "trades"},
    "weat-adv": {"method": "weat-adv"},
    "jem++": {"method": "jem++", "sampler": OWN_CHAIN},
    "sada-jem": {"method": "sada-jem", "sampler": OWN_CHAIN, "update": {"name": "sam"}},
    "jeat": {"method": "jeat", "sampler": {"steps": 10, **OWN_CHAIN}},
    "dat": {"method": "dat", "sampler": {"steps": 15}},
    "eb-jdat": {"method": {"name": "eb-jdat", "inner": "ce", "alignment": "der"}, "sampler": JOINT},
    "eb-jdat-energy": {
        "method": {"name": "eb-jdat", "inner": "energy", "alignment": "der"},
        "sampler": JOINT,
    },
    "eb-jdat-paper": {
        "method": {"name": "eb-jdat", "inner": "energy", "alignment": "close"},
        "sampler": JOINT,
    },
    "eb-jdat-release": {"method": "eb-jdat-release", "sampler": OWN_CHAIN},
}
FEWER = ("standard", "pgd-at", "trades", "sada-jem", "eb-jdat", "eb-jdat-paper", "eb-jdat-release")
HALVED = ("pgd-at", "eb-jdat", "eb-jdat-paper", "eb-jdat-release")
INNERS, ALIGNMENTS, STEPS = ("ce", "energy", "logit"), ("close", "widen", "der"), (1, 10, 20)


class TradeOff(Study):
    name = "trade_off"
    title = "Accuracy, robustness and generation for the same work"
    scales = ("digits", "cifar10", "cifar10-32")

    def jobs(self, scale: Scale) -> list[Job]:
        seeds = range(1) if scale.toy else SEEDS[scale.data]
        judge = _tree(scale, CASES["standard"], RATES["standard"], JUDGE_SEED, 200)
        found = [Job(JUDGE, JUDGE_SEED, judge, "judge", first=True)]
        budget = 6 if scale.toy else BUDGET[scale.data]
        for name in FEWER if scale.data == "cifar10" else CASES:
            for seed in seeds:
                if name == "dat":
                    found += _two_stages(scale, seed, budget)
                else:
                    found.append(Job(name, seed, _tree(scale, CASES[name], RATES[name], seed, budget)))
        if scale.data != "digits":
            return found
        grid = [
            (f"{inner}, {alignment}", inner, alignment, 5) for inner in INNERS for alignment in ALIGNMENTS
        ]
        grid += [(f"{steps} steps", "ce", "der", steps) for steps in STEPS]
        for name, inner, alignment, steps in grid[-1:] if scale.toy else grid:
            method = {"name": "eb-jdat", "inner": inner, "alignment": alignment}
            case = {"method": method, "sampler": JOINT, "attack": {"steps": steps}}
            for seed in seeds:
                tree = _tree(scale, case, ABLATION_RATE, seed, epochs=1 if scale.toy else ABLATION_EPOCHS)
                found.append(Job(name, seed, tree, "ablation"))
        return found

    def measure(self, job: Job, run: Path, scale: Scale) -> Row:
        if job.group == "judge":
            return accuracies(run, "best", ("clean",), scale)
        config = RunDirectory(run).config()
        row: Row = {"epochs": config.training.epochs, "passes": forward_passes(config)}
        if job.group == "stage-1":
            return row | accuracies(run, "best", ("clean", "pgd-20"), scale)
        if job.group == "ablation":
            found = accuracies(run, "best", ("clean", "pgd-20"), scale)
            clf = trilemma.load(run).to(scale.device)
            return row | {
                "clean": found["clean"], "pgd": found["pgd-20"], "collapsed": found["pgd-20"] < COLLAPSED,
                **_energies(clf, run_splits(run).test, None, scale),
            }  # fmt: skip
        found = accuracies(run, "best", ("clean", "pgd-50-10"), scale)
        row |= {"clean": found["clean"], "pgd": found["pgd-50-10"]}
        row["collapsed"] = bool(config.method.uses_attack and row["pgd"] < COLLAPSED)
        if job.case in HALVED:
            half = RADIUS[scale.data][1]
            row["pgd_half"] = accuracies(run, "best", ("pgd-50-10",), scale, half)["pgd-50-10"]
        judge = next(other for other in self.jobs(scale) if other.group == "judge")
        return row | _generation(run, run_folder(scale, judge), scale)

    def tables(self, rows: list[Row], scale: Scale) -> str:
        whole, half = RADIUS[scale.data]
        main = of(rows, group="main")
        captioned = [
            (
                f"Budget {BUDGET[scale.data]:,} forward passes per training image; L-inf {whole}; best checkpoint by "
                f"held-out images. Collapsed: failed, or PGD-50-10 below {COLLAPSED} for a method that trains on x*.",
                _main_table(main, whole, half),
            ),
            (
                "Generation, for the start and for the sample. Named: share of images that an independent standard "
                "network assigns to the requested class. Distance: L2 to the nearest training image. FD-standard: "
                f"Frechet distance to the training images in that network's features ({_counts(main)}).",
                _generation_table(main),
            ),
            (
                "Energy alignment: 1-Wasserstein distances of E(x), logits (generated: from class PCA), and the mean "
                "of E(x*) - E(x).",
                _energy_table(main),
            ),
        ]
        ablation = of(rows, group="ablation")
        if ablation:
            caption = (
                f"Ablation of `eb-jdat`, {ABLATION_EPOCHS} epochs each at rate {ABLATION_RATE}, 5 inner steps "
                "unless stated otherwise, PGD-20."
            )
            captioned.append((caption, _ablation_table(ablation)))
        return "\n\n".join(f"{paragraph(caption)}\n\n{lines}" for caption, lines in captioned)

    def figures(self, rows: list[Row], scale: Scale) -> dict[str, Draw]:
        main = [row for row in of(rows, group="main") if "samples" in row]
        if not main:
            return {}
        drawn: dict[str, Draw] = {"": lambda theme: _draw_scatter(main, theme)}
        known = [row for row in main if row.get("curve")]
        if known:
            drawn["-energies"] = lambda theme: _draw_energies(known, theme)
        return drawn


# --- Configurations --------------------------------------------------------------------------------------


def _tree(
    scale: Scale, case: Row, lr: float, seed: int, budget: float = 0, epochs: int = 0, **training: Any
) -> Row:
    """A recipe of ``epochs``, or of as many as spend ``budget`` forward passes per training image."""
    base = scale.base()
    tree: Row = {
        **base, **case,
        "network": {**base["network"], "norm": "group", "activation": "silu"},
        "threat": {"norm": "linf", "radius": RADIUS[scale.data][0]},
        "training": {"batch_size": 64, "lr": lr, "seed": seed, "ema": 0.995, **training},
    }  # fmt: skip
    if case.get("sampler") is JOINT:
        tree["sampler"] = JOINT["cifar10" if scale.photographs else "digits"]
    if scale.data == "cifar10":
        tree["data"]["train_images"] = 10_000
    if scale.toy:
        tree["training"] |= {"batch_size": 20, "held_out_images": 20}
        tree["sampler"] = {**tree["sampler"], "steps": 2} if "sampler" in tree else {}
    epochs = epochs or max(1, round(budget / forward_passes(build_config(tree))))
    tree["training"] |= {"epochs": epochs, "evaluate_every": max(1, epochs // 6)}
    return tree


def _two_stages(scale: Scale, seed: int, budget: float) -> list[Job]:
    """DAT continues an adversarially trained network, which takes two thirds of the budget: it has to be robust."""
    first = Job(
        "dat, stage 1",
        seed,
        _tree(scale, CASES["pgd-at"], RATES["pgd-at"], seed, budget * 2 / 3),
        "stage-1",
        first=True,
    )
    second = _tree(
        scale,
        CASES["dat"],
        RATES["dat"],
        seed,
        budget / 3,
        start=as_start(first),
        reestimate_bn=False,
    )
    return [first, Job("dat", seed, second)]


# --- Measures --------------------------------------------------------------------------------------------


def _energies(
    clf: trilemma.Classifier,
    test: ImageSet,
    generated: tuple[torch.Tensor, torch.Tensor] | None,
    scale: Scale,
) -> Row:
    """Wasserstein distances of E(x), the mean shift, and under ``curve`` the energies themselves."""
    from trilemma.attacks import pgd

    part = test if scale.test_images is None else test.first(scale.test_images)
    images, labels = part.float_images(device=clf.device), part.labels.to(clf.device)
    assert clf.threat is not None
    starred = pgd(clf, images, labels, clf.threat, steps=20, generator=torch.Generator().manual_seed(0))
    sets = {"clean": (images, labels), "adversarial": (starred, labels)}
    if generated is not None:
        sets["generated"] = generated
    try:
        found = {name: energy_points(clf, *both).marginal for name, both in sets.items()}
    except CheckpointError:  # logits that are not finite have no distribution
        return {"wasserstein": None, "shift": None, "curve": None}
    names = list(found)
    return {
        "wasserstein": {
            f"{a}-{b}": wasserstein_distance(found[a], found[b])
            for i, a in enumerate(names)
            for b in names[i + 1 :]
        },
        "shift": float((found["adversarial"] - found["clean"]).mean()),
        "curve": {name: [round(value, 3) for value in values.tolist()] for name, values in found.items()},
    }


@cache
def _judge(folder: Path) -> tuple[trilemma.Classifier, Extractor]:
    clf = trilemma.load(folder)
    return clf, penultimate(clf, "standard")


@cache
def _reference(folder: Path) -> tuple[Splits, Moments, Moments]:
    """The data, and the moments of its training and test images in the judge's features."""
    splits, (_, extractor) = run_splits(folder), _judge(folder)
    return splits, image_moments(extractor, splits.train.images), image_moments(extractor, splits.test.images)


def _generation(run: Path, judge_run: Path, scale: Scale) -> Row:
    """Figures of starts and samples by the common chain, and the energies."""
    clf, (judge, extractor) = trilemma.load(run).to(scale.device), _judge(judge_run)
    splits, train, test = _reference(judge_run)
    per_class = 2 if scale.toy else 50
    figures: Row = {}
    generated = None
    for start in ("class-pca", "uniform"):
        steps = 2 if scale.toy else STARTS[start]
        chain = {key: value for key, value in CHAIN.items() if key not in ("sampler", "energy")}
        samples = draw_samples(
            clf, per_class, start, CHAIN["sampler"], CHAIN["energy"], steps, 0, splits, **chain
        )
        generated = generated or (samples.images, samples.labels)
        for kind, images in (("start", samples.starts), ("sample", samples.images)):
            found = image_metrics(images, samples.labels, splits.train.images, judge)
            figures.setdefault(start, {})[kind] = {
                "named": found["named"], "distance": found["distance"],
                "fd": frechet_distance(image_moments(extractor, images), train),
            }  # fmt: skip
    real = image_metrics(splits.test.float_images(), splits.test.labels, splits.train.images, judge)
    return {
        "samples": figures, "sample_count": len(samples.labels), "reference_count": train.count,
        "real": {"named": real["named"], "distance": real["distance"], "fd": frechet_distance(test, train)},
        **_energies(clf, splits.test, generated, scale),
    }  # fmt: skip


# --- Tables ----------------------------------------------------------------------------------------------


def _main_table(rows: list[Row], whole: str, half: str) -> str:
    lines = []
    for case in cases(rows):
        every, own = of(rows, case=case), finished(rows, case=case)
        lost = sum(row["outcome"] != "finished" or row["collapsed"] for row in every)
        sample = [row["samples"]["class-pca"]["sample"] for row in own]
        lines.append(
            [
                case, str(own[0]["passes"]) if own else "-", str(own[0]["epochs"]) if own else "-",
                cell(row["clean"] for row in own), cell(row["pgd"] for row in own),
                cell(row.get("pgd_half") for row in own), cell((s["named"] for s in sample), 2),
                cell((s["distance"] for s in sample), 2), cell((s["fd"] for s in sample), 1), f"{lost}/{len(every)}",
            ]
        )  # fmt: skip
    head = ["case", "passes", "epochs", "clean", f"PGD-50-10, {whole}", f"PGD-50-10, {half}", "named", "distance",
            "FD-standard", "collapsed"]  # fmt: skip
    return table(head, lines)


def _counts(rows: list[Row]) -> str:
    known = [row for row in rows if "sample_count" in row]
    return (
        f"{known[0]['sample_count']:,} images against {known[0]['reference_count']:,}"
        if known
        else "no rows yet"
    )


def _generation_table(rows: list[Row]) -> str:
    lines = []
    for case in cases(rows):
        own = finished(rows, case=case)
        for start in ("class-pca", "uniform"):
            both = [row["samples"][start] for row in own]
            line = [case, start]
            for key, digits in (("named", 2), ("distance", 2), ("fd", 1)):
                line += [cell((pair[kind][key] for pair in both), digits) for kind in ("start", "sample")]
            lines.append(line)
    real = [row["real"] for row in rows if "real" in row][:1]
    for found in real:
        lines.append(
            [
                "real test images",
                "-",
                "",
                f"{found['named']:.2f}",
                "",
                f"{found['distance']:.2f}",
                "",
                f"{found['fd']:.1f}",
            ]
        )
    head = [
        "case",
        "start",
        "named: start",
        "named: sample",
        "distance: start",
        "distance: sample",
        "FD-standard: start",
        "FD-standard: sample",
    ]
    return table(head, lines)


def _energy_table(rows: list[Row]) -> str:
    lines = []
    for case in cases(rows):
        own = [row for row in finished(rows, case=case) if row["wasserstein"] is not None]
        pairs = ("clean-adversarial", "clean-generated", "adversarial-generated")
        cells = [cell((row["wasserstein"].get(pair) for row in own), 2) for pair in pairs]
        lines.append([case, *cells, cell((row["shift"] for row in own), 2)])
    return table(
        ["case", "clean to adversarial", "clean to generated", "adversarial to generated", "mean shift"],
        lines,
    )


def _ablation_table(rows: list[Row]) -> str:
    lines = []
    for case in cases(rows):
        every, own = of(rows, case=case), finished(rows, case=case)
        lost = sum(row["outcome"] != "finished" or row["collapsed"] for row in every)
        known = [row for row in own if row["wasserstein"] is not None]
        lines.append(
            [
                case, cell(row["clean"] for row in own), cell(row["pgd"] for row in own),
                cell((row["shift"] for row in known), 2),
                cell((row["wasserstein"]["clean-adversarial"] for row in known), 2), f"{lost}/{len(every)}",
            ]
        )  # fmt: skip
    head = ["inner, alignment", "clean", "PGD-20", "mean E(x*) - E(x)", "clean to adversarial", "collapsed"]
    return table(head, lines)


# --- Figures ---------------------------------------------------------------------------------------------


def _draw_scatter(rows: list[Row], theme: Theme) -> Figure:
    """Robust against clean accuracy, and against the Frechet distance; one point per case, bars over the seeds."""
    figure, panels = new_figure(7.6, 4.6, 1, 2, sharey=True)
    for place, case in enumerate(cases(rows)):
        own = of(rows, case=case)
        robust = [row["pgd"] for row in own]
        clean = [row["clean"] for row in own]
        fd = [row["samples"]["class-pca"]["sample"]["fd"] for row in own]
        look: Any = {
            "color": theme.runs[place % len(theme.runs)], "markersize": 7, "elinewidth": 1,
            "marker": RUN_MARKERS[(place + place // len(theme.runs)) % len(RUN_MARKERS)], "linestyle": "none",
        }  # fmt: skip
        for axes, values in zip(panels, (clean, fd), strict=True):
            axes.errorbar(
                mean(values), mean(robust), xerr=_bars(values), yerr=_bars(robust), label=case, **look
            )
    panels[1].set_xscale("log")
    panels[1].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panels[1].xaxis.set_major_formatter("{x:g}")
    panels[1].xaxis.set_minor_locator(NullLocator())
    panels[0].set_xlabel("clean accuracy")
    panels[1].set_xlabel("FD-standard of samples (left is better)")
    panels[0].set_ylabel("accuracy under PGD-50-10")
    panels[0].set_title("Accuracy and robustness")
    panels[1].set_title("Generation and robustness")
    for axes in panels:
        axes.grid(True, axis="both")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=1.2)
    return figure


def _bars(values: list[float]) -> list[list[float]]:
    middle = mean(values)
    return [[middle - min(values)], [max(values) - middle]]


def _draw_energies(rows: list[Row], theme: Theme) -> Figure:
    """Histograms of E(x) of the three sets, one small panel per case, each with its own axis."""
    names = cases(rows)
    columns = 3
    lines = -(-len(names) // columns)
    figure, panels = new_figure(7.6, 0.6 + 1.6 * lines, lines, columns, squeeze=False)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes, case in zip(panels.flat, names, strict=False):
        energies = of(rows, case=case)[0]["curve"]
        values = {name: torch.tensor(energies[name]) for name in ENERGY_SETS if name in energies}
        everything = torch.cat(list(values.values()))
        low, high = (float(everything.quantile(q)) for q in (0.002, 0.998))
        span = (low, high) if high > low else (low - 1, high + 1)
        for name, found in values.items():
            shown = {
                "bins": 40,
                "range": span,
                "color": theme.sets[name],
                "weights": [1 / len(found)] * len(found),
            }
            axes.hist(found.clamp(*span).numpy(), histtype="stepfilled", alpha=0.16, **shown)
            axes.hist(
                found.clamp(*span).numpy(),
                histtype="step",
                linewidth=1.4,
                linestyle=SET_LINES[name],
                label=name,
                **shown,
            )
        axes.set_title(case, fontsize=9.5)
        axes.set_yticks([])
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    figure.supxlabel("E(x), logits (lower: denser)", fontsize=10, color=theme.muted)
    return figure


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(TradeOff(), __doc__))
