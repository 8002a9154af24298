"""Which single-step methods collapse, which do not, and which alarm is raised before the collapse?

    python benchmarks/studies/catastrophic_overfitting.py --jobs 2
    python benchmarks/studies/catastrophic_overfitting.py --data cifar10 --root PATH --jobs 2
    python benchmarks/studies/catastrophic_overfitting.py --data cifar10-32 --root PATH --jobs 4 --device cuda

Single-step training at a radius where plain FGSM does not hold, with its remedies and with multi-step training beside
it. Per run: clean, FGSM and PGD-50-10 accuracy on test images of the last and of the best checkpoint, AutoAttack on the
first 100 of them for the last, PGD-10 accuracy on held-out images after every epoch, and the alarms. Definitions:

- collapsed: PGD-10 accuracy of the last checkpoint on test images is below half of its FGSM accuracy, so what one step
  calls robust is not. (The usual line, a gap of 0.348 between the two, is of networks with an FGSM accuracy of 0.5 and
  more. PGD-50-10 is no line either: at the radius of the digits even multi-step training ends below half of FGSM.)
- onset: the first epoch from which PGD-10 accuracy on held-out images stays below half of FGSM accuracy, both as
  running means over 3 epochs;
- lead of an alarm: onset minus the epoch of the first alarm; a positive lead is an alarm before the onset.

On digits every run begins with the weights of a robust network (one `pgd-at` run per seed). Where single-step training
of fresh weights fails on these small images, as it does on the photographs, it fails in its first epochs, before there
was any robustness to lose.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

from common import (
    Draw,
    Job,
    Row,
    Scale,
    Study,
    accuracies,
    cases,
    cell,
    classifier_file,
    curves,
    epoch_rows,
    finished,
    main,
    of,
    paragraph,
    run_folder,
    table,
)  # fmt: skip
from matplotlib.figure import Figure

from trilemma.figures.style import Theme, legend_above, new_figure
from trilemma.runs.run_directory import RunDirectory

RATIO, WINDOW = 0.5, 3
AUTOATTACK, AUTOATTACK_IMAGES = "autoattack-standard", 100
SHOWN = ("clean", "fgsm", "pgd-10", "pgd-50-10", AUTOATTACK)
ALARMS = ("catastrophic-overfitting", "gradient-cosine", "accuracy-gap", "robust-overfitting")
SIGNALS = (
    "clean_accuracy",
    "robust_accuracy",
    "shift",
    "shift_p95",
    "abnormal",
    "gradient_cosine",
    "delta_marginal",
)

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
}
DER = {"name": "der", "beta": 2.0}
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
SEEDS = {"digits": 5, "cifar10": 5, "cifar10-32": 3}
# On photographs a run takes minutes, so only the two that must collapse have every seed.
FEWER = {
    **dict.fromkeys(("n-fgsm", "fgsm + der", "fgsm-rs + der", "fgsm + remedies"), 3),
    **dict.fromkeys(("grad-align", "elle", "aaer (fgsm-rs)", "aaer (n-fgsm)", "pgd-2"), 2),
}
BETAS, MARGINS = (0.5, 2.0, 5.0), (0.0, 0.3, 1.0)
GRID_SEEDS = {"digits": 2, "cifar10": 1, "cifar10-32": 0}


class CatastrophicOverfitting(Study):
    name = "catastrophic_overfitting"
    title = "Catastrophic overfitting"
    scales = ("digits", "cifar10", "cifar10-32")

    def jobs(self, scale: Scale) -> list[Job]:
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
                config["training"]["start"] = str(run_folder(scale, starts[seed]))
            return Job(name, seed, config, group)

        found = [
            job(name, case, seed)
            for name, case in CASES.items()
            for seed in range(min(seeds, fewer.get(name, seeds)))
        ]
        for beta in BETAS[:1] if scale.toy else BETAS:
            for margin in MARGINS[:1] if scale.toy else MARGINS:
                case = {"method": "fgsm", "regulariser": {"name": "der", "beta": beta, "margin": margin}}
                found += [job(f"{beta}, {margin}", case, seed, "grid") for seed in range(grid)]
        return [*starts.values(), *found]

    def measure(self, job: Job, run: Path, scale: Scale) -> Row:
        protocols = ("clean", "pgd-50-10")
        row: Row = {point: accuracies(run, point, protocols, scale) for point in ("last", "best")}
        row["last"] |= _quick_attacks(run, scale)
        if job.group == "main":
            images = 2 if scale.toy else AUTOATTACK_IMAGES
            row["last"] |= accuracies(run, "last", (AUTOATTACK,), scale, images=images)
        held = epoch_rows(run)
        row["held_out"] = {
            "epoch": [round(line["epoch"], 2) for line in held], "pgd10": [line["held_out_pgd10"] for line in held],
            "fgsm": [line.get("held_out_fgsm") for line in held],
        }  # fmt: skip
        row |= judged(row["last"], row["held_out"])
        alarms = [event for event in RunDirectory(run).events() if event["kind"] == "alarm"]
        row["alarms"] = {
            name: min(event["epoch"] for event in alarms if event["name"] == name)
            for name in sorted({event["name"] for event in alarms})
        }
        row["curve"] = curves(run, SIGNALS)
        return row

    def tables(self, rows: list[Row], scale: Scale) -> str:
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
        text += f"AutoAttack: the first {AUTOATTACK_IMAGES} test images."
        text = f"{paragraph(text)}\n\n{table(head, lines)}\n\n"
        alarms = (
            "Alarms, over all runs of this table. Lead: epochs from the first alarm to the onset of the collapse; "
            "negative if the alarm came after the onset."
        )
        text += f"{paragraph(alarms)}\n\n{_alarm_table(main)}"
        if grid:
            text += (
                "\n\nDER on `fgsm`, by weight and margin: PGD-50-10 of the last checkpoint (collapsed runs / runs).\n\n"
                + _grid_table(grid)
            )
        return text

    def figures(self, rows: list[Row], scale: Scale) -> dict[str, Draw]:
        main = of(rows, group="main")
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
        step = _times(setting["threat"]["radius"], case["attack"]["step_share"])
        config["attack"] = {"steps": case["attack"]["steps"], "step_size": step}
    return config


def _times(radius: str, share: str) -> str:
    from trilemma.units import parse_fraction

    return str(parse_fraction(radius) * parse_fraction(share))


def _quick_attacks(run: Path, scale: Scale) -> Row:
    """FGSM and PGD-10 accuracy of the last checkpoint on the test images that the protocols see."""
    import torch

    import trilemma
    from trilemma.classifier.correctness import is_correct
    from trilemma.evaluation.source import open_data

    directory = RunDirectory(run)
    data, clf = directory.config().data, trilemma.load(classifier_file(directory, "last")).to(scale.device)
    threat = clf.threat
    assert threat is not None
    test = open_data(clf, data.name, data.root, data.size)
    test = test if scale.test_images is None else test.first(scale.test_images)
    count, generator = {"fgsm": 0, "pgd-10": 0}, torch.Generator().manual_seed(0)
    for places in torch.arange(len(test)).split(250):
        images, labels = test.float_images(places, clf.device), test.labels[places].to(clf.device)
        starred = {
            "fgsm": trilemma.attacks.fgsm(clf, images, labels, threat),
            "pgd-10": trilemma.attacks.pgd(clf, images, labels, threat, steps=10, generator=generator),
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


def _example(rows: list[Row]) -> Row | None:
    """A collapsed run of plain FGSM or FGSM-RS to draw: the one that was well for longest."""
    plain = [row for row in rows if row["case"] in ("fgsm", "fgsm-rs")]
    found = [row for row in plain if row["collapsed"]] or plain
    return max(found, key=lambda row: row["onset"] or 0.0, default=None)


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
