"""Robust accuracy that decays late in training on few images: does dE(x) show it, and which methods prevent it?

    python benchmarks/studies/robust_overfitting.py --jobs 2
    python benchmarks/studies/robust_overfitting.py --data cifar10 --root PATH --jobs 2
    python benchmarks/studies/robust_overfitting.py --data cifar10-cnn --root PATH --jobs 2

Multi-step adversarial training of a small set of images, for so long that PGD-10 accuracy on held-out images falls
from its best, with its remedies beside it. Per run: clean and PGD-50-10 accuracy on test images of the best checkpoint
(by held-out images) and of the last one, held-out robust error over the epochs, and beside it the mean dE(x) of
training itself. Robust overfitting is PGD-50-10 of the best checkpoint minus that of the last. Early stopping is the
best checkpoint of `pgd-at`. With `cifar10-cnn` PGD-20 and the first 2,000 test images take the place of PGD-50-10.

`cifar10-cnn` has whole photographs and the small network of Wong et al. 2020, for which a training image costs a tenth
of what it costs ResNet-8 of width 32. It has an ablation of DER: weight, and which examples its mean is over.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

from common import (
    Draw,
    Job,
    Row,
    Scale,
    Study,
    accuracies,
    cases,
    cell,
    curves,
    epoch_rows,
    finished,
    main,
    of,
    paragraph,
    table,
)  # fmt: skip
from matplotlib.figure import Figure

from trilemma.figures.style import Theme, legend_above, new_figure
from trilemma.monitors.decline import DeclineMonitor

CNN = "cifar10-cnn"
PLAIN = "pgd-at"
SIGNALS = ("delta_marginal", "delta_joint", "shift", "clean_accuracy", "robust_accuracy")


def _der(beta: float, **options: str) -> Row:
    return {"method": "pgd-at", "regulariser": {"name": "der", "beta": beta, **options}}


# Of the settings tried on digits (100 to 300 images, radius 0.2 to 0.3, width 16 and 32, with and without crop and
# weight decay) none made the robust error rise by more than a few hundredths for sure; this one does most.
SETTINGS: dict[str, Row] = {
    "digits": {
        "data": {"train_images": 250},
        "threat": {"norm": "linf", "radius": "0.3"},
        "schedule": {"name": "multistep", "milestones": [80], "factor": 0.1},
        "optimiser": {"weight_decay": 0.0},
        "augmentation": {"crop": 0},
        "training": {"epochs": 160, "batch_size": 50, "lr": 0.1, "evaluate_every": 4},
    },
    # With 2,000 images, crop and mirror, width 16 and 80 epochs nothing fell: 0.22 at the best epoch, 0.23 at the last.
    "cifar10": {
        "data": {"train_images": 500},
        "network": {"name": "small-resnet", "width": 32, "depth": 8},
        "threat": {"norm": "linf", "radius": "8/255"},
        "attack": {"steps": 5},
        "schedule": {"name": "multistep", "milestones": [25], "factor": 0.1},
        "augmentation": {"crop": 0, "flip": False},
        "training": {"epochs": 40, "batch_size": 100, "lr": 0.1, "evaluate_every": 2, "held_out_images": 256},
    },
    # With 24 epochs, one trial fell under PGD-10 from 0.22 in epoch 9 to 0.17, and was still falling.
    CNN: {
        "data": {"train_images": 3000},
        "network": {"name": "small-cnn", "width": 32, "hidden": 512},
        "threat": {"norm": "linf", "radius": "8/255"},
        "attack": {"steps": 3, "step_size": "16/765"},
        "schedule": {"name": "multistep", "milestones": [20], "factor": 0.1},
        "optimiser": {"weight_decay": 0.0},
        "augmentation": {"crop": 0, "flip": False},
        "training": {"epochs": 40, "batch_size": 100, "lr": 0.05, "precision": "bf16"},
    },
}
CASES: dict[str, Row] = {
    PLAIN: {"method": "pgd-at"},
    "pgd-at + der 0.1": _der(0.1),
    "pgd-at + der 0.3": _der(0.3),
    "trades": {"method": "trades"},
    "weat-adv": {"method": "weat-adv"},
    "pgd-at + awp": {"method": "pgd-at", "update": {"name": "awp", "gamma": 0.01}},
    "pgd-at + ema": {"method": "pgd-at", "training": {"ema": 0.995}},
}
# In order of worth.
CNN_CASES: dict[str, Row] = {
    PLAIN: CASES[PLAIN],
    **{f"pgd-at + der {beta:g}": _der(beta) for beta in (1.0, 0.3, 3.0, 0.1)},
    "pgd-at + awp": CASES["pgd-at + awp"],
    "pgd-at + der 1, abnormal alone": _der(1.0, form="single-step", average="abnormal"),
    "pgd-at + der 1, abnormal, batch": _der(1.0, form="single-step", average="batch"),
    "pgd-at + ema": CASES["pgd-at + ema"],
    "trades": CASES["trades"],
}
SEEDS = {"digits": range(3), "cifar10": range(2), CNN: range(3)}
# Attacked by AutoAttack too, at both checkpoints: the penalty flattens the energies, which can mislead PGD.
ATTACKED, ATTACKED_IMAGES = (PLAIN, "pgd-at + der 0.3"), 500
AUTOATTACK = "autoattack-standard"
DRAWN = (PLAIN, "pgd-at + der 0.3", "pgd-at + awp")


class RobustOverfitting(Study):
    name = "robust_overfitting"
    title = "Robust overfitting"
    scales = ("digits", "cifar10", CNN)

    def jobs(self, scale: Scale) -> list[Job]:
        seeds = range(1) if scale.toy else SEEDS[scale.data]
        compared = CNN_CASES if scale.data == CNN else CASES
        found = [
            Job(name, seed, _config(case, seed, scale)) for seed in seeds for name, case in compared.items()
        ]
        if scale.data != CNN:
            return found
        return found + [
            Job(name, seed, _config(CNN_CASES[name], seed, scale), "autoattack", measures="main")
            for seed in seeds
            for name in ATTACKED
        ]

    def measure(self, job: Job, run: Path, scale: Scale) -> Row:
        if job.group == "autoattack":
            images = 2 if scale.toy else ATTACKED_IMAGES
            return {
                checkpoint: accuracies(run, checkpoint, (_attack(scale), AUTOATTACK), scale, images=images)
                for checkpoint in ("best", "last")
            }
        row: Row = {
            checkpoint: accuracies(run, checkpoint, ("clean", _attack(scale)), scale)
            for checkpoint in ("best", "last")
        }
        held = epoch_rows(run)
        row["held_out"] = {
            "epoch": [round(line["epoch"], 2) for line in held],
            "pgd10": [line["held_out_pgd10"] for line in held],
        }
        row["best_epoch"] = [line["epoch"] for line in held if line["selected"]][-1]
        row["curve"] = curves(run, SIGNALS)
        return row

    def tables(self, rows: list[Row], scale: Scale) -> str:
        setting, attack, lines = SETTINGS[scale.data], _attack(scale), []
        attacked, rows = of(rows, group="autoattack"), of(rows, group="main")
        word = attack.upper()
        for case in cases(rows):
            own = finished(rows, case=case)
            lines.append(_line(case, own, "last", attack, len(of(rows, case=case)) - len(own)))
            if case == PLAIN:
                lines.append(_line(f"{case}, early stopping", own, "best", attack, 0))
        head = ["case", "clean: best", "clean: last", f"{word}: best", f"{word}: last", "fall", "best epoch",
                "dE(x): best epoch", "dE(x): last", "alarm, epoch"]  # fmt: skip
        caption = (
            f"L-inf {setting['threat']['radius']}, {setting['data']['train_images']:,} training images, "
            f"{setting['training']['epochs']} epochs, test images. Fall: {word} of the best checkpoint minus that "
            "of the last. dE(x): mean of training batches, clean minus adversarial. Alarm: `robust-overfitting` by "
            "held-out accuracy, runs with an alarm and the mean epoch of the alarm."
        )
        text = f"{paragraph(caption)}\n\n{table(head, lines)}"
        if attacked:
            text += "\n\n" + _attacked_table(attacked, attack)
        return text

    def figures(self, rows: list[Row], scale: Scale) -> dict[str, Draw]:
        drawn: dict[str, Draw] = {}
        rows = of(rows, group="main")
        if of(rows, case=PLAIN):
            drawn[""] = lambda theme: _draw_curves(rows, theme)
        if rows:
            drawn["-cases"] = lambda theme: _draw_cases(rows, _attack(scale), theme)
        return drawn


def _config(case: Row, seed: int, scale: Scale) -> Row:
    base, setting = scale.base(), SETTINGS[scale.data]
    training = {**setting["training"], "log_every": 5, "seed": seed, **case.get("training", {})}
    config = {**base, **setting, **case, "data": {**setting["data"], **base["data"]}}
    if scale.toy:
        config["network"] = base["network"]
        training |= {"epochs": 3, "batch_size": 20, "evaluate_every": 1, "held_out_images": 20}
        config["schedule"] = {**setting["schedule"], "milestones": [2]}
    return {**config, "training": training}


def _attacked_table(rows: list[Row], attack: str) -> str:
    text = f"The same checkpoints under {attack.upper()} and AutoAttack, the first {ATTACKED_IMAGES} test images:"
    lines = []
    for case in cases(rows):
        own = finished(rows, case=case)
        values = [
            cell(row[checkpoint][name] for row in own)
            for name in (attack, AUTOATTACK)
            for checkpoint in ("best", "last")
        ]
        lines.append([case, *values, str(len(own))])
    words = (attack.upper(), "AutoAttack")
    head = [f"{word}: {checkpoint}" for word in words for checkpoint in ("best", "last")]
    return f"{text}\n\n{table(['case', *head, 'seeds'], lines)}"


def _attack(scale: Scale) -> str:
    """The protocol whose accuracy says how robust a checkpoint is."""
    return "pgd-20" if scale.data == CNN else "pgd-50-10"


def _line(case: str, rows: list[Row], end: str, attack: str, lost: int) -> list[str]:
    alarms = [epoch for row in rows if (epoch := _alarm(row)) is not None]
    falls = [row["best"][attack] - row[end][attack] for row in rows]
    stopped = end == "best"
    return [
        case + (f" ({lost} failed)" if lost else ""),
        cell(row["best"]["clean"] for row in rows), cell(row[end]["clean"] for row in rows),
        cell(row["best"][attack] for row in rows), cell(row[end][attack] for row in rows), cell(falls),
        cell((row["best_epoch"] for row in rows), 0), cell((_delta(row, row["best_epoch"]) for row in rows), 2),
        "-" if stopped else cell((_delta(row, float("inf")) for row in rows), 2),
        "-" if stopped else f"{len(alarms)}/{len(rows)}" + (f", {mean(alarms):.0f}" if alarms else ""),
    ]  # fmt: skip


def _alarm(row: Row) -> float | None:
    """The epoch at which ``robust-overfitting`` first sounds, read from the curve: all rows have one monitor."""
    held, images = row["held_out"], row["config"]["training"].get("held_out_images", 512)
    monitor = DeclineMonitor(len(held["epoch"]))
    for epoch, robust in zip(held["epoch"], held["pgd10"], strict=True):
        if monitor.read(robust, None, round(epoch), images):
            return float(epoch)
    return None


def _delta(row: Row, epoch: float) -> float | None:
    """Mean dE(x) of training over the tenth of the run that ends at ``epoch``; some old rows have no curve."""
    if "curve" not in row:
        return None
    end = min(epoch, row["curve"]["epoch"][-1])
    begin = end - 0.1 * row["curve"]["epoch"][-1]
    both = zip(row["curve"]["epoch"], row["curve"]["delta_marginal"], strict=True)
    values = [value for at, value in both if begin < at <= end and value is not None]
    return mean(values) if values else None


def _draw_curves(rows: list[Row], theme: Theme) -> Figure:
    """Held-out robust error above, dE(x) of training below; a thin line per seed, a strong one for their mean."""
    figure, panels = new_figure(5.6, 5.4, 2, 1, sharex=True)
    for place, case in enumerate(case for case in DRAWN if of(rows, case=case)):
        own, colour = of(rows, case=case), theme.runs[place]
        for axes, part, key in ((panels[0], "held_out", "pgd10"), (panels[1], "curve", "delta_marginal")):
            lines = []
            for row in (row for row in own if part in row):
                known = [
                    (at, 1 - value if key == "pgd10" else value)
                    for at, value in zip(row[part]["epoch"], row[part][key], strict=True)
                    if value is not None
                ]
                axes.plot(*zip(*known, strict=True), color=colour, linewidth=0.7, alpha=0.35)
                lines.append(dict(known))
            shared = sorted(set.intersection(*(set(line) for line in lines)))
            axes.plot(shared, [mean(line[at] for line in lines) for at in shared], color=colour, label=case)
    panels[0].set_title("Robust error on held-out images (PGD-10)", pad=24)
    panels[1].set_title("Mean dE(x) of training batches, logits")
    panels[1].axhline(0, color=theme.muted, linewidth=0.8)
    panels[1].set_xlabel("epoch")
    legend_above(panels[0])
    return figure


def _draw_cases(rows: list[Row], attack: str, theme: Theme) -> Figure:
    """From the best checkpoint to the last, per seed."""
    names = cases(rows)
    figure, axes = new_figure(5.6, 0.9 + 0.4 * len(names))
    for place, case in enumerate(names):
        own = of(rows, case=case)
        for number, row in enumerate(own):
            height = place + 0.18 * (number - (len(own) - 1) / 2)
            best, last = row["best"][attack], row["last"][attack]
            axes.plot([best, last], [height, height], color=theme.muted, linewidth=1)
            first = place == number == 0
            axes.plot(
                best, height, "o", mfc="none", mec=theme.muted, label="best checkpoint" if first else None
            )
            axes.plot(last, height, "o", color=theme.runs[0], label="last checkpoint" if first else None)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    axes.set_xlabel(f"accuracy under {attack.upper()}")
    axes.set_title("What is lost after the best epoch", pad=24)
    legend_above(axes)
    return figure


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(RobustOverfitting(), __doc__))
