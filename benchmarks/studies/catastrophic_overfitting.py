"""Which single-step methods collapse, which do not, and which alarm is raised before the collapse?

    python benchmarks/studies/catastrophic_overfitting.py --data cifar10-shallow --root PATH --jobs 2
    python benchmarks/studies/catastrophic_overfitting.py --jobs 2
    python benchmarks/studies/catastrophic_overfitting.py --data cifar10 --root PATH --jobs 2
    python benchmarks/studies/catastrophic_overfitting.py --data cifar10-32 --root PATH --jobs 4 --device cuda

Single-step training at a radius where plain FGSM does not hold, with its remedies and with multi-step training beside
it. Per run: clean, FGSM and PGD-50-10 accuracy on test images of the last and of the best checkpoint, AutoAttack on the
first ones for the last, PGD-10 accuracy on held-out images after every epoch, and the alarms. Definitions:

- collapsed: PGD-10 accuracy of the last checkpoint on test images is below half of its FGSM accuracy, so what one step
  calls robust is not. (The usual line, a gap of 0.348 between the two, is of networks with an FGSM accuracy of 0.5 and
  more. PGD-50-10 is no line either: at the radius of the digits even multi-step training ends below half of FGSM.)
- onset: the first epoch from which PGD-10 accuracy on held-out images stays below half of FGSM accuracy, both as
  running means over 3 epochs;
- lead of an alarm: onset minus the epoch of the first alarm; a positive lead is an alarm before the onset.

`cifar10-shallow` is the main test-bed: plain FGSM is healthy at first and then collapses within an epoch, as published
for large networks. Cases from scratch stand beside an ablation of DER in which every run begins with the weights of
`fgsm` of the same seed after epoch 2 or 3, still healthy.

On digits every run begins with the weights of a robust network (one `pgd-at` run per seed). Where single-step training
of fresh weights fails on these small images, as it does on the photographs at 16x16, it fails in its first epochs,
before there was any robustness to lose.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from common import (
    TEST_IMAGES,
    Draw,
    Job,
    Row,
    Scale,
    Study,
    accuracies,
    as_start,
    cases,
    cell,
    curves,
    epoch_rows,
    finished,
    loaded,
    main,
    of,
    paragraph,
    table,
)  # fmt: skip
from matplotlib.figure import Figure

from trilemma.config.recipe import recipe_tree
from trilemma.figures.style import Theme, legend_above, new_figure
from trilemma.runs.run_directory import RunDirectory

RATIO, WINDOW = 0.5, 3
AUTOATTACK = "autoattack-standard"
# Images of the longer measurement of the shallow network's main cases: all for PGD-50-10, so many for AutoAttack.
EVERYTHING, FULL_AUTOATTACK = 10_000, 1000
AUTOATTACK_IMAGES = {"digits": 100, "cifar10": 100, "cifar10-32": 100, "cifar10-shallow": 500}
SHOWN = ("clean", "fgsm", "pgd-10", "pgd-50-10", AUTOATTACK)
ALARMS = ("catastrophic-overfitting", "gradient-cosine", "accuracy-gap", "robust-overfitting")
ALARM_WORDS = (
    "Alarms, over all runs of this table. Lead: epochs from the first alarm to the onset of the collapse; negative if "
    "the alarm came after the onset."
)
SIGNALS = (
    "clean_accuracy",
    "robust_accuracy",
    "shift",
    "shift_p95",
    "abnormal",
    "gradient_cosine",
    "delta_marginal",
)

WORDS = {"fgsm": "FGSM", "pgd-10": "PGD-10", "pgd-50-10": "PGD-50-10", AUTOATTACK: "AutoAttack"}
SHALLOW = "cifar10-shallow"
RECIPE = recipe_tree("cifar10/fgsm-shallow")
START = "start (pgd-at)"
# The setting in which fgsm and fgsm-rs collapse, by data: found by a few trial runs, then left alone.
SETTINGS: dict[str, Row] = {
    "digits": {
        "threat": {"norm": "linf", "radius": "0.3"},
        "schedule": {"name": "cyclic", "peak": 0.5},
        "augmentation": {"crop": 0},  # shifted by a pixel, 8x8 digits cannot be learnt at this radius
        "training": {"epochs": 40, "batch_size": 128, "lr": 0.1},
    },
    "cifar10": {
        "data": {"train_images": 10_000},
        "threat": {"norm": "linf", "radius": "24/255"},
        "schedule": {"name": "cyclic", "peak": 0.5},
        "augmentation": {"crop": 0, "flip": False},
        "training": {"epochs": 12, "batch_size": 128, "lr": 0.2, "held_out_images": 256},
    },
    "cifar10-32": {
        "threat": {"norm": "linf", "radius": "8/255"},
        "schedule": {"name": "cyclic", "peak": 0.5},
        "training": {"epochs": 30, "batch_size": 128, "lr": 0.2, "held_out_images": 1000},
    },
    SHALLOW: {name: RECIPE[name] for name in ("threat", "optimiser", "schedule", "training")},
}
DER = {"name": "der", "beta": 2.0, "average": "batch"}
# On the gap nothing is taken back: at the radius of the digits it is near the alarm's limit from the first epoch on,
# and a run that goes back for it goes back until it fails. It comes late, so it asks at once for what helps most.
AUTOMATIC = {
    "remedies": {
        "catastrophic-overfitting": [["rollback", "der"], ["rollback", "pgd-2"]],
        "accuracy-gap": ["pgd-2"],
    }
}
CASES: dict[str, Row] = {
    "fgsm": {"method": "fgsm"},
    "fgsm-rs": {"method": "fgsm-rs"},
    "n-fgsm": {"method": "n-fgsm"},
    "fgsm + der": {"method": "fgsm", "regulariser": DER},
    "fgsm-rs + der": {"method": "fgsm-rs", "regulariser": DER},
    "fgsm + remedies": {"method": "fgsm", "monitors": AUTOMATIC},
    "grad-align": {"method": "grad-align"},
    "elle": {"method": "elle"},
    "aaer (fgsm-rs)": {"method": {"name": "aaer", "base": "fgsm-rs"}},
    "aaer (n-fgsm)": {"method": {"name": "aaer", "base": "n-fgsm"}},
    "pgd-2": {"method": "pgd-at", "attack": {"steps": 2, "step_share": "1/2"}},
}
# What the robust start of the digits is trained with.
ROBUST = {
    "method": "pgd-at",
    "schedule": {"name": "one-cycle"},
    "training": {"epochs": 40, "batch_size": 128, "lr": 0.1, "evaluate_every": 4},
}
# The published rule for the weight of GradAlign ends at 16/255 with 2: at 24/255 it would give 20, at 0.3 70 million.
# The weights on digits are those of the recipes digits/grad-align and digits/elle.
WEIGHTS = {"digits": {"grad-align": 0.5, "elle": 200}, "cifar10": {"grad-align": 2.0}}
SEEDS = {"digits": 5, "cifar10": 5, "cifar10-32": 3, SHALLOW: 5}
# On photographs a run takes minutes, so only the two that must collapse have every seed.
FEWER = {
    **dict.fromkeys(("n-fgsm", "fgsm + der", "fgsm-rs + der", "fgsm + remedies"), 3),
    **dict.fromkeys(("grad-align", "elle", "aaer (fgsm-rs)", "aaer (n-fgsm)", "pgd-2"), 2),
}
BETAS, MARGINS = (0.5, 2.0, 5.0), (0.0, 0.3, 1.0)
GRID_SEEDS = {"digits": 2, "cifar10": 1, "cifar10-32": 0}

# --- The shallow network ---------------------------------------------------------------------------------
# The epoch of plain FGSM whose weights the ablation starts from, by seed: with seed 2 it has collapsed at epoch 3, so
# that the later seeds start at 2. The ablation has the full rate from its first step on.
START_EPOCHS, EPOCHS = (3, 3, 2, 2, 2), 4
CONTROL = "fgsm alone"
# The best of each average in the ablation; other factors are varied around the second.
PAPER, ABNORMAL = {"average": "batch", "beta": 30.0}, {"average": "abnormal", "beta": 3.0}


def _der(settings: Row, base: str = "fgsm", **others: Any) -> Row:
    return {"method": base, "regulariser": {"name": "der", **settings, **others}}


WEIGHED = {
    f"{average}, beta {beta:g}": _der({"average": average, "beta": beta})
    for average in ("batch", "abnormal")
    for beta in (0.3, 1.0, 3.0, 10.0, 30.0)
}
FACTORS = {
    "margin 0.3": _der(ABNORMAL, margin=0.3),
    "margin 1": _der(ABNORMAL, margin=1.0),
    "gradient of x* alone": _der(ABNORMAL, gradient="adversarial"),
    "abnormal by E(x, y)": _der(ABNORMAL, abnormal_by="joint-energy"),
    "all images": _der({"beta": ABNORMAL["beta"]}, form="multi-step"),
    "fgsm-rs": CASES["fgsm-rs"],
    "fgsm-rs + der, from x": _der(ABNORMAL, base="fgsm-rs"),
    "fgsm-rs + der, from the start": _der(ABNORMAL, base="fgsm-rs", reference="start"),
    **{name: CASES[name] for name in ("aaer (fgsm-rs)", "aaer (n-fgsm)", "pgd-2")},
}
ABLATION = {CONTROL: CASES["fgsm"], **WEIGHED, **FACTORS}
# From the last healthy evaluation on, DER as in ``ABNORMAL``, whose average is the default; if the alarm fires again,
# two steps.
_LADDER = [["rollback", "der"], ["rollback", "pgd-2"]]
DER_AT_ALARM = {
    "der_beta": ABNORMAL["beta"],
    "remedies": {"catastrophic-overfitting": _LADDER, "accuracy-gap": _LADDER},
}
SHALLOW_CASES = {
    "fgsm": CASES["fgsm"],
    "fgsm + der (batch)": _der(PAPER),
    "fgsm + der (abnormal)": _der(ABNORMAL),
    "fgsm + remedies": {"method": "fgsm", "monitors": DER_AT_ALARM},
    **{
        name: CASES[name]
        for name in (
            "fgsm-rs",
            "n-fgsm",
            "elle",
            "grad-align",
            "aaer (fgsm-rs)",
            "aaer (n-fgsm)",
            "pgd-2",
        )
    },
}


# The first cases are the question itself, and are measured on all test images.
FULL_CASES = 4


class CatastrophicOverfitting(Study):
    name = "catastrophic_overfitting"
    title = "Catastrophic overfitting"
    scales = ("digits", "cifar10", "cifar10-32", SHALLOW)

    def jobs(self, scale: Scale) -> list[Job]:
        if scale.data == SHALLOW:
            every = range(1 if scale.toy else SEEDS[SHALLOW])
            return [job for seed in every for job in _shallow_jobs(seed, scale)] + [
                Job(name, seed, _config(SHALLOW_CASES[name], seed, scale), "full", measures="main")
                for seed in every
                for name in list(SHALLOW_CASES)[:FULL_CASES]
            ]
        seeds, grid = (1, 1) if scale.toy else (SEEDS[scale.data], GRID_SEEDS[scale.data])
        fewer = {} if scale.data == "digits" else FEWER
        starts: dict[int, Job] = {}
        if scale.data == "digits":
            starts = {
                seed: Job(START, seed, _config(ROBUST, seed, scale), first=True) for seed in range(seeds)
            }

        def job(name: str, case: Row, seed: int, group: str = "main") -> Job:
            config = _config(case, seed, scale)
            if seed in starts:
                config["training"]["start"] = as_start(starts[seed])
            return Job(name, seed, config, group)

        found = [
            job(name, case, seed)
            for name, case in CASES.items()
            for seed in range(min(seeds, fewer.get(name, seeds)))
        ]
        for beta in BETAS[:1] if scale.toy else BETAS:
            for margin in MARGINS[:1] if scale.toy else MARGINS:
                case = {"method": "fgsm", "regulariser": {**DER, "beta": beta, "margin": margin}}
                found += [job(f"{beta}, {margin}", case, seed, "grid") for seed in range(grid)]
        return [*starts.values(), *found]

    def measure(self, job: Job, run: Path, scale: Scale) -> Row:
        if job.group == "full":
            everything, some = (2, 2) if scale.toy else (EVERYTHING, FULL_AUTOATTACK)
            last = accuracies(run, "last", ("clean", "pgd-50-10"), scale, images=everything)
            return {"last": last | accuracies(run, "last", (AUTOATTACK,), scale, images=some)}
        row = course(
            run,
            before=START_EPOCHS[job.seed] if job.group == "ablation" else 0,
            width=0.1 if scale.data == SHALLOW else 1.0,
        )
        if job.group == "state":
            return row
        protocols = ("clean", "pgd-50-10")
        row["last"] = accuracies(run, "last", protocols, scale)
        row["last"] |= quick_attacks(run, scale)
        row |= judged(row["last"], row["held_out"])
        # The best checkpoint of a healthy run of the shallow network is near its last.
        if scale.data != SHALLOW or (job.group == "main" and row["collapsed"]):
            row["best"] = accuracies(run, "best", protocols, scale)
        if job.group == "main":
            images = 2 if scale.toy else AUTOATTACK_IMAGES[scale.data]
            row["last"] |= accuracies(run, "last", (AUTOATTACK,), scale, images=images)
        return row

    def tables(self, rows: list[Row], scale: Scale) -> str:
        if scale.data == SHALLOW:
            return _shallow_tables(rows)
        main, grid = finished(rows, group="main"), finished(rows, group="grid")
        radius = SETTINGS[scale.data]["threat"]["radius"]
        lines = []
        for case in cases(of(rows, group="main")):
            own = of(main, case=case)
            lost = len(of(rows, group="main", case=case)) - len(own)
            lines.append(
                [
                    case, *(cell(row["last"].get(name) for row in own) for name in SHOWN),
                    cell(row["best"]["pgd-50-10"] for row in own),
                    f"{sum(row['collapsed'] for row in own)}/{len(own)}" + (f", {lost} failed" if lost else ""),
                ]
            )  # fmt: skip
        head = [
            "case",
            "clean",
            "FGSM",
            "PGD-10",
            "PGD-50-10",
            "AutoAttack",
            "PGD-50-10, best checkpoint",
            "collapsed",
        ]
        text = (
            f"L-inf {radius}, test images, last checkpoint. Collapsed: PGD-10 below half of FGSM accuracy. "
        )
        text += f"AutoAttack: the first {AUTOATTACK_IMAGES[scale.data]} test images."
        text = f"{paragraph(text)}\n\n{table(head, lines)}\n\n"
        text += f"{paragraph(ALARM_WORDS)}\n\n{_alarm_table(main)}"
        if grid:
            text += (
                "\n\nDER on `fgsm`, by weight and margin: PGD-50-10 of the last checkpoint (collapsed runs / runs).\n\n"
                + _grid_table(grid)
            )
        return text

    def figures(self, rows: list[Row], scale: Scale) -> dict[str, Draw]:
        main = of(rows, group="main")
        if scale.data == SHALLOW:
            return _shallow_figures(rows)
        if not main:
            return {}
        drawn: dict[str, Draw] = {"": lambda theme: _draw_dots(main, theme)}
        example = _example(main)
        if example is not None:
            drawn["-curves"] = lambda theme: _draw_curves(example, theme)
        return drawn


def _config(case: Row, seed: int, scale: Scale) -> Row:
    base, setting = scale.base(), SETTINGS[scale.data]
    training = {
        "evaluate_every": 1,
        **setting["training"],
        **case.get("training", {}),
        "seed": seed,
        "log_every": 3,
    }
    if scale.toy:
        training |= {"epochs": 3, "batch_size": 20, "held_out_images": 20}
    config = {**base, **setting, **case, "training": training}
    weights = WEIGHTS.get(scale.data, {})
    if isinstance(name := case["method"], str) and name in weights:
        config["method"] = {"name": name, "weight": weights[name]}
    config["data"] = {**setting.get("data", {}), **base["data"]}
    if "attack" in case:  # a share of the radius, as configurations have none
        step = times(setting["threat"]["radius"], case["attack"]["step_share"])
        config["attack"] = {"steps": case["attack"]["steps"], "step_size": step}
    return config


def _shallow_jobs(seed: int, scale: Scale) -> list[Job]:
    """The runs of one seed on the shallow network, in the order of their worth."""
    epoch = START_EPOCHS[seed]
    state = Job(f"fgsm to epoch {epoch}", seed, _config(CASES["fgsm"], seed, scale), "state", first=True)
    # The last weights, not those of the best epoch.
    state.config["training"] |= {"select": "last"} | ({} if scale.toy else {"epochs": epoch})

    def ablation(name: str, case: Row) -> Job:
        config = _config(case, seed, scale)
        config["schedule"] = {"name": "constant"}
        config["training"] |= {"start": as_start(state)} | ({} if scale.toy else {"epochs": EPOCHS})
        return Job(name, seed, config, "ablation")

    def main(names: Iterable[str]) -> list[Job]:
        return [Job(name, seed, _config(SHALLOW_CASES[name], seed, scale)) for name in names]

    names = list(SHALLOW_CASES)
    return [
        state,
        *(ablation(name, case) for name, case in ABLATION.items() if name not in FACTORS),
        *main(names[:4]),
        *(ablation(name, case) for name, case in FACTORS.items()),
        *main(names[4:]),
    ]


def times(radius: str, share: str) -> str:
    from trilemma.units import parse_fraction

    return str(parse_fraction(radius) * parse_fraction(share))


def course(run: Path, before: int, width: float) -> Row:
    """Held-out accuracies, first alarms and curves of a run that began after ``before`` epochs of another.

    Args:
        width: epochs per point of the curves, at least.
    """
    held = epoch_rows(run)
    alarms = [event for event in RunDirectory(run).events() if event["kind"] == "alarm"]
    curve = curves(run, SIGNALS, width)
    curve["epoch"] = [before + epoch for epoch in curve["epoch"]]
    return {
        "held_out": {
            "epoch": [round(before + line["epoch"], 2) for line in held],
            "pgd10": [line["held_out_pgd10"] for line in held],
            "fgsm": [line.get("held_out_fgsm") for line in held],
        },
        "alarms": {
            name: before + min(event["epoch"] for event in alarms if event["name"] == name)
            for name in sorted({event["name"] for event in alarms})
        },
        "curve": curve,
    }


def quick_attacks(run: Path, scale: Scale) -> Row:
    """FGSM and PGD-10 accuracy of the last checkpoint on the test images that the protocols see."""
    import torch

    import trilemma
    from trilemma.classifier.correctness import is_correct
    from trilemma.evaluation.source import open_data

    directory = RunDirectory(run)
    data, clf = directory.config().data, loaded(directory, "last", scale)
    threat = clf.threat
    assert threat is not None
    test = open_data(clf, data.name, data.root, data.size)
    test = test if scale.test_images is None else test.first(scale.test_images)
    count, generator = {"fgsm": 0, "pgd-10": 0}, torch.Generator().manual_seed(0)
    for places in torch.arange(len(test)).split(250):
        batch, labels = test.float_images(places, clf.device), test.labels[places].to(clf.device)
        starred = {
            "fgsm": trilemma.attacks.fgsm(clf, batch, labels, threat),
            "pgd-10": trilemma.attacks.pgd(clf, batch, labels, threat, steps=10, generator=generator),
        }
        for name, found in starred.items():
            count[name] += int(is_correct(clf, found, labels).sum())
    return {name: value / len(test) for name, value in count.items()}


def judged(last: Row, held: Row) -> Row:
    """``collapsed`` and ``onset`` (an epoch, or ``None``), as the head of this file says.

    Args:
        last: accuracies of the last checkpoint by name of the attack.
        held: ``epoch``, ``fgsm`` and ``pgd10`` of the evaluations on held-out images; ``fgsm`` is ``None`` for methods
            that train by several steps.
    """
    collapsed = last["pgd-10"] < RATIO * last["fgsm"]
    onset, known = None, []
    for epoch, single, several in zip(held["epoch"], held["fgsm"], held["pgd10"], strict=True):
        if single is None:
            continue
        known.append((single, several))
        one_step, steps = (mean(values) for values in zip(*known[-WINDOW:], strict=True))
        if steps >= RATIO * one_step:
            onset = None
        elif onset is None:
            onset = epoch
    return {"collapsed": collapsed, "onset": onset if collapsed else None}


def _alarm_table(rows: list[Row]) -> str:
    ill, well = [row for row in rows if row["collapsed"]], [row for row in rows if not row["collapsed"]]
    lines = []
    for name in ALARMS:
        timed = [row for row in ill if name in row["alarms"] and row["onset"] is not None]
        leads = [row["onset"] - row["alarms"][name] for row in timed]
        lines.append(
            [
                name, f"{sum(name in row['alarms'] for row in ill)}/{len(ill)}",
                f"{median(leads):+.1f}" if leads else "-",
                f"{sum(lead > 0 for lead in leads)}/{len(leads)}",
                f"{sum(name in row['alarms'] for row in well)}/{len(well)}",
            ]
        )  # fmt: skip
    head = [
        "alarm",
        "raised in collapsed runs",
        "median lead, epochs",
        "raised before the onset",
        "raised in other runs",
    ]
    return table(head, lines)


def _grid_table(rows: list[Row]) -> str:
    def at(beta: float, margin: float) -> str:
        own = of(rows, case=f"{beta}, {margin}")
        ill = sum(row["collapsed"] for row in own)
        return f"{cell((row['last']['pgd-50-10'] for row in own), 2)} ({ill}/{len(own)})" if own else "-"

    lines = [[str(beta), *(at(beta, margin) for margin in MARGINS)] for beta in BETAS]
    return table(["beta", *(f"margin {margin}" for margin in MARGINS)], lines)


def _shallow_tables(rows: list[Row]) -> str:
    parts = [
        f"L-inf {RECIPE['threat']['radius']}. Collapsed: PGD-10 below half of FGSM accuracy on test images."
    ]
    main, ablation = _in_order(rows, "main", SHALLOW_CASES), _in_order(rows, "ablation", ABLATION)
    if main:
        text = (
            f"Trained from scratch for {RECIPE['training']['epochs']} epochs; last checkpoint. AutoAttack: the first "
            f"{AUTOATTACK_IMAGES[SHALLOW]:,} test images, other attacks the first {TEST_IMAGES[SHALLOW]:,}; best "
            "checkpoint: PGD-50-10 of the checkpoint chosen on held-out images, measured for collapsed runs. Onset: "
            "epoch."
        )
        best = {
            case: cell(row["best"]["pgd-50-10"] for row in finished(main, case=case) if "best" in row)
            for case in cases(main)
        }
        parts[0] = paragraph(f"{parts[0]} {text}")
        parts += [
            _shallow_table(
                main, ("clean", "fgsm", "pgd-10", "pgd-50-10", AUTOATTACK), {"best checkpoint": best}
            )
        ]
        parts += [paragraph(ALARM_WORDS), _alarm_table(finished(main))]
    if full := _in_order(rows, "full", SHALLOW_CASES):
        text = (
            f"The same runs from scratch on all {EVERYTHING:,} test images, AutoAttack on the first "
            f"{FULL_AUTOATTACK:,}; last checkpoint."
        )
        shown = ("clean", "pgd-50-10", AUTOATTACK)
        lines = []
        for case in cases(full):
            own = finished(full, case=case)
            lines.append([case, *(cell(row["last"][name] for row in own) for name in shown), str(len(own))])
        parts += [
            paragraph(text),
            table(["case", *(WORDS.get(name, name) for name in shown), "seeds"], lines),
        ]
    if ablation:
        text = (
            f"{EPOCHS} epochs from the weights of `fgsm` after epoch 3 (seeds 0 and 1) or 2; the first "
            f"{TEST_IMAGES[SHALLOW]:,} test images, last checkpoint. DER on `fgsm` by average and beta: PGD-50-10 "
            "(collapsed runs / runs); first line: without DER."
        )
        parts += [paragraph(text), _weight_table(ablation)]
        text = (
            f"The same runs and other factors, each varied on DER with mean over the abnormal examples, beta "
            f"{ABNORMAL['beta']:g}. Abnormal: share of abnormal examples in the last epoch of training."
        )
        shares = {
            case: cell((_share_at_the_end(row["curve"]) for row in finished(ablation, case=case)), 4)
            for case in cases(ablation)
        }
        parts += [
            paragraph(text),
            _shallow_table(ablation, ("clean", "fgsm", "pgd-10", "pgd-50-10"), {"abnormal": shares}),
        ]
    return "\n\n".join(parts)


def _in_order(rows: list[Row], group: str, names: Iterable[str]) -> list[Row]:
    """The rows of a group in the order of the names; the first seed may lack cases that others have."""
    order = list(names)
    return sorted(of(rows, group=group), key=lambda row: order.index(row["case"]))


def _share_at_the_end(curve: Row) -> float | None:
    """Mean share of abnormal examples over the last epoch."""
    end = curve["epoch"][-1]
    last = [
        share
        for epoch, share in zip(curve["epoch"], curve["abnormal"], strict=True)
        if epoch > end - 1 and share is not None
    ]
    return mean(last) if last else None


def _shallow_table(rows: list[Row], names: Sequence[str], more: Mapping[str, Mapping[str, str]]) -> str:
    """One line per case; ``more`` has further columns by case."""
    lines = []
    for case in cases(rows):
        own = finished(rows, case=case)
        onsets = [row["onset"] for row in own if row["onset"] is not None]
        lost = len(of(rows, case=case)) - len(own)
        lines.append(
            [
                case, *(cell(row["last"].get(name) for row in own) for name in names),
                *(column[case] for column in more.values()),
                f"{sum(row['collapsed'] for row in own)}/{len(own)}" + (f", {lost} failed" if lost else ""),
                f"{median(onsets):.0f}" if onsets else "-",
            ]
        )  # fmt: skip
    head = [WORDS.get(name, name) for name in names]
    return table(["case", *head, *more, "collapsed", "median onset"], lines)


def _weight_table(rows: list[Row]) -> str:
    def at(case: str) -> str:
        own = finished(rows, case=case)
        ill = sum(row["collapsed"] for row in own)
        return f"{cell(row['last']['pgd-50-10'] for row in own)} ({ill}/{len(own)})" if own else "-"

    betas = list(dict.fromkeys(case["regulariser"]["beta"] for case in WEIGHED.values()))
    lines = [["no DER", at(CONTROL), at(CONTROL)]]
    lines += [[f"{beta:g}", at(f"batch, beta {beta:g}"), at(f"abnormal, beta {beta:g}")] for beta in betas]
    return table(["beta", "mean over the batch", "mean over the abnormal examples"], lines)


def _shallow_figures(rows: list[Row]) -> dict[str, Draw]:
    drawn: dict[str, Draw] = {}
    ablation = _in_order(rows, "ablation", ABLATION)
    if rows:
        drawn[""] = lambda theme: _draw_courses(rows, theme)
    if ablation:
        drawn["-ablation"] = lambda theme: _draw_ablation(ablation, theme)
    return drawn


def _draw_courses(rows: list[Row], theme: Theme) -> Figure:
    """PGD-10 on held-out images over epochs, from the common state and from scratch; one thin line per seed."""
    batch, abnormal = (f"{form['average']}, beta {form['beta']:g}" for form in (PAPER, ABNORMAL))
    colours = (theme.text, theme.runs[1], theme.runs[0], theme.runs[2])
    labels = ("fgsm", f"+ der, {batch}", f"+ der, {abnormal}", "+ der from an alarm on")
    titles = {"ablation": "from a healthy state", "main": "from scratch"}
    names = {"ablation": (CONTROL, batch, abnormal), "main": tuple(SHALLOW_CASES)[:4]}
    drawn = {group: [row for row in of(rows, group=group) if row["case"] in names[group]] for group in titles}
    groups = [group for group in titles if drawn[group]] or ["ablation"]
    size = (4.2 + 2.8 * (len(groups) - 1), 4.0)
    figure, panels = new_figure(*size, 1, len(groups), sharey=True, squeeze=False)
    before = {row["seed"]: row["held_out"] for row in of(rows, group="state")}
    line = {"linewidth": 1.1, "alpha": 0.85}
    for axes, group in zip(panels[0], groups, strict=True):
        for label, name, colour in zip(labels, names[group], colours, strict=False):
            for number, row in enumerate(of(drawn[group], case=name)):
                epochs, values = row["held_out"]["epoch"], row["held_out"]["pgd10"]
                if group == "ablation":
                    state = before[row["seed"]]
                    axes.plot(state["epoch"], state["pgd10"], color=theme.text, **line)
                    epochs, values = [state["epoch"][-1], *epochs], [state["pgd10"][-1], *values]
                axes.plot(epochs, values, color=colour, label=None if number else label, **line)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, RECIPE["training"]["epochs"] + 0.2)
        axes.set_title(titles[group], pad=72)
        legend_above(axes, columns=1)
    panels[0][0].set_ylim(-0.01, None)
    panels[0][0].set_ylabel("accuracy under PGD-10, held out")
    return figure


def _draw_ablation(rows: list[Row], theme: Theme) -> Figure:
    names = cases(rows)
    figure, axes = new_figure(5.8, 0.9 + 0.27 * len(names))
    for ill, marker, colour, word in (
        (False, "o", theme.runs[0], "healthy"),
        (True, "X", theme.alarm, "collapsed"),
    ):
        points = [
            (row["last"]["pgd-50-10"], names.index(row["case"])) for row in rows if row["collapsed"] == ill
        ]
        if points:
            values, places = zip(*points, strict=True)
            axes.plot(
                values, places, marker, color=colour, linestyle="none", markersize=6, alpha=0.8, label=word
            )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    axes.set_xlim(-0.01, None)
    axes.set_xlabel(f"accuracy under PGD-50-10 after {EPOCHS} epochs, one mark per seed")
    axes.set_title("From a healthy state of fgsm", pad=24)
    legend_above(axes)
    return figure


def _example(rows: list[Row]) -> Row | None:
    """A collapsed run of plain FGSM or FGSM-RS to draw: the one that was well for longest."""
    plain = [row for row in rows if row["case"] in ("fgsm", "fgsm-rs")]
    found = [row for row in plain if row["collapsed"]] or plain
    drawable = [row for row in found if "curve" in row]
    return max(drawable, key=lambda row: row["onset"] or 0.0, default=None)


def _draw_dots(rows: list[Row], theme: Theme) -> Any:
    names = cases(rows)
    figure, axes = new_figure(5.6, 0.9 + 0.34 * len(names))
    for place, name in enumerate(names):
        own = of(rows, case=name)
        shared = {"linestyle": "none", "markersize": 6}
        best, last = [row["best"]["pgd-50-10"] for row in own], [row["last"]["pgd-50-10"] for row in own]
        label = {"label": "best checkpoint"} if place == 0 else {}
        axes.plot(best, [place] * len(own), "o", mfc="none", mec=theme.muted, **shared, **label)
        for ill, marker, colour, word in (
            (False, "o", theme.runs[0], "last"),
            (True, "X", theme.alarm, "last, collapsed"),
        ):
            values = [value for value, row in zip(last, own, strict=True) if row["collapsed"] == ill]
            known = word in axes.get_legend_handles_labels()[1]
            label = {"label": word} if values and not known else {}
            axes.plot(values, [place] * len(values), marker, color=colour, **shared, **label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    axes.set_xlim(-0.02, None)
    axes.set_xlabel("accuracy under PGD-50-10")
    axes.set_title("Robustness at the end of single-step training", pad=24)
    legend_above(axes)
    return figure


def _draw_curves(row: Row, theme: Theme) -> Figure:
    """One run: accuracies, and three signals of training itself, with the alarms as vertical lines."""
    curve, held = row["curve"], row["held_out"]
    figure, panels = new_figure(5.6, 7.2, 4, 1, sharex=True)
    panels[0].plot(
        curve["epoch"], curve["robust_accuracy"], color=theme.sets["adversarial"], label="FGSM, batch"
    )
    panels[0].plot(
        held["epoch"], held["pgd10"], "o-", markersize=3, color=theme.runs[0], label="PGD-10, held out"
    )
    panels[0].set_ylim(-0.02, 1.02)
    for axes, (name, title) in zip(
        panels[1:],
        (("shift", "length of (dE(x), dE(x, y))"), ("abnormal", "share of abnormal examples"),
         ("gradient_cosine", "cosine of attack and training gradient")),
        strict=True,
    ):  # fmt: skip
        known = [(e, v) for e, v in zip(curve["epoch"], curve[name], strict=True) if v is not None]
        axes.plot([e for e, _ in known], [v for _, v in known], color=theme.text)
        axes.set_title(title)
    legend_rows = (2 + len(row["alarms"]) + 1) // 2
    panels[0].set_title(f"{row['case']}, seed {row['seed']}: accuracy", pad=9 + 15 * legend_rows)
    styles = dict(zip(ALARMS, ("-", "--", "-.", ":"), strict=True))
    for axes in panels:
        for name, epoch in row["alarms"].items():
            axes.axvline(epoch, color=theme.alarm, linewidth=1.2, linestyle=styles.get(name, ":"), label=name)
        if row["onset"] is not None:
            axes.axvspan(row["onset"], held["epoch"][-1], color=theme.alarm, alpha=0.10, linewidth=0)
    panels[-1].set_xlabel("epoch")
    legend_above(panels[0], columns=2)
    return figure


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(CatastrophicOverfitting(), __doc__))
