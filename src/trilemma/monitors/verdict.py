"""Judges the log of a whole run with the monitors of the training loop: alarms, a verdict, and the epoch to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trilemma.monitors.accuracy_gap import AccuracyGapMonitor
from trilemma.monitors.decline import DeclineMonitor
from trilemma.monitors.evaluations import read_evaluation
from trilemma.monitors.log import LoggedEvaluation, LogSource, read_log
from trilemma.monitors.monitor import Alarm, above_chance


@dataclass(frozen=True)
class LogAlarm(Alarm):
    """An alarm in the log of a run. ``step`` counts evaluations from 1.

    Attributes:
        epoch: of the evaluation that raised the alarm.
        since: epoch of the last evaluation before the onset: the last healthy one, or the end of the best window;
            ``None`` if there is none.
    """

    epoch: float = 0.0
    since: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What the monitors say about the log of a run.

    Attributes:
        evaluations: rows of the log.
        alarms: in the order of epochs.
        state: ``collapsed`` if ``accuracy-gap`` was raised, else ``overfit`` if ``robust-overfitting`` was; ``not
            robust`` if the accuracy under PGD never exceeded chance; else ``healthy``.
        text: the verdict in one line.
        best_epoch: epoch with the highest accuracy under PGD among healthy evaluations, among all if none is healthy.
    """

    evaluations: tuple[LoggedEvaluation, ...]
    alarms: tuple[LogAlarm, ...]
    state: Literal["healthy", "collapsed", "overfit", "not robust"]
    text: str
    best_epoch: float


def replay(rows: LogSource, held_out_images: int | None = None, classes: int | None = None) -> list[LogAlarm]:
    """Returns the alarms that the monitors of the training loop raise on the log of a run.

    Args:
        rows: one mapping per evaluation, with ``epoch``, ``pgd`` and, where known, ``fgsm`` and ``clean``; accuracies
            lie in [0, 1]. Or a ``pandas.DataFrame``, a CSV or JSON file, or a run folder.
        held_out_images: number of images of each evaluation, whose sampling error the limits allow for; by default as
            in the log, or very many.
        classes: number of classes, which sets the accuracy of chance; by default chance as in the log, or
            that of ten classes, or of more if clean accuracy was ever lower.

    Raises:
        ConfigError: less than one image, or less than two classes.
        DataError: the log cannot be read; the message says why.
    """
    return list(judge(rows, held_out_images, classes).alarms)


def judge(rows: LogSource, held_out_images: int | None = None, classes: int | None = None) -> Verdict:
    """Returns the verdict on the log of a run; arguments and errors are those of :func:`replay`."""
    log = read_log(rows, held_out_images, classes)
    gap, decline = AccuracyGapMonitor(), DeclineMonitor(len(log))
    alarms: list[LogAlarm] = []
    healthy: list[LoggedEvaluation] = []
    for step, evaluation in enumerate(log, 1):
        for alarm in read_evaluation(gap, decline, evaluation, step):
            since = log[alarm.onset - 1].epoch if alarm.onset else None
            alarms.append(
                LogAlarm(alarm.name, alarm.message, step, alarm.lag, epoch=evaluation.epoch, since=since)
            )
        if gap.is_healthy:
            healthy.append(evaluation)
    best = max(healthy or log, key=lambda evaluation: evaluation.pgd10)
    state, text = _text(log, alarms, recovered=gap.is_healthy, best=best)
    return Verdict(tuple(log), tuple(alarms), state, text, best.epoch)


def _text(
    log: list[LoggedEvaluation], alarms: list[LogAlarm], recovered: bool, best: LoggedEvaluation
) -> tuple[Literal["healthy", "collapsed", "overfit", "not robust"], str]:
    """Returns the state and the line of a verdict."""
    keep = f"; best epoch to keep: {best.epoch:g}, PGD {best.pgd10:.3f}"
    collapses = [alarm for alarm in alarms if alarm.name == "accuracy-gap"]
    declines = [alarm for alarm in alarms if alarm.name == "robust-overfitting"]
    overfit = "".join(f"overfit since epoch {alarm.since:g}" for alarm in declines[:1])
    if collapses:
        end = (" and recovered" if recovered else "") + (f", {overfit}" if overfit else "")
        return "collapsed", f"collapsed at epoch {collapses[0].epoch:g}{end}{keep}"
    if overfit:
        return "overfit", f"{overfit}{keep}"
    if best.pgd10 <= above_chance(best.chance, best.images):
        return "not robust", f"not robust: PGD never clearly above chance ({best.chance:.3g}){keep}"
    window = DeclineMonitor(len(log)).window
    short = "" if len(log) > window else f" (too short to judge overfitting: {window + 1} evaluations needed)"
    return "healthy", f"healthy{short}{keep}"
