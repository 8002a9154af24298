"""Learning rate schedules as pure functions of the step, so that a checkpoint needs no state of them."""

from __future__ import annotations

import math

from trilemma.config.sections import ScheduleConfig


def rate(schedule: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Returns the factor of ``training.lr`` at ``step``.

    ``cyclic`` rises linearly from 0 to 1 at the fraction ``peak`` of the run and falls linearly to 0. ``one-cycle``
    rises from 1/25 to 1 and falls to 1e-4 / 25, each along half a cosine. ``cosine`` falls from 1 to 0. ``multistep``
    is multiplied by ``factor`` after each milestone epoch. Any other schedule is 1. During the first ``warmup_steps``
    the factor is also multiplied by a linear ramp.

    Args:
        schedule: name and parameters of the schedule.
        step: counted from 0.
        total_steps: number of steps of the run.
        steps_per_epoch: number of steps of an epoch, for milestones.
    """
    progress = min(1.0, step / max(1, total_steps))
    if schedule.name == "cyclic":
        peak = schedule.peak
        value = progress / peak if progress < peak else (1 - progress) / (1 - peak)
    elif schedule.name == "one-cycle":
        peak, low, end = schedule.peak, 1 / 25, 1e-4 / 25
        if progress < peak:
            value = low + (1 - low) * _half_cosine(progress / peak)
        else:
            value = 1 + (end - 1) * _half_cosine((progress - peak) / (1 - peak))
    elif schedule.name == "cosine":
        value = 1 - _half_cosine(progress)
    elif schedule.name == "multistep":
        value = schedule.factor ** sum(step >= epoch * steps_per_epoch for epoch in schedule.milestones)
    else:
        value = 1.0
    if step < schedule.warmup_steps:
        value *= (step + 1) / schedule.warmup_steps
    return value


def _half_cosine(fraction: float) -> float:
    """Returns a value that rises from 0 to 1 along half a cosine as ``fraction`` goes from 0 to 1."""
    return (1 - math.cos(math.pi * fraction)) / 2
