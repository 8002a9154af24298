"""Learning rates over a run, as pure functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from trilemma.config.sections import ScheduleConfig


def rate(schedule: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The multiple of ``training.lr`` used at ``step``.

    ``cyclic`` rises linearly from 0 to 1 at ``peak`` of the run and falls linearly to 0; ``one-cycle``
    does the same with cosines, from 1/25 and to 1e-4 / 25; ``cosine`` falls from 1 to 0; ``multistep`` is
    multiplied by ``factor`` after each milestone epoch.

    Args:
        schedule: name and shape.
        step: 0 for the first.
        total_steps: length of the run.
        steps_per_epoch: for milestones.
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


def _half_cosine(share: float) -> float:
    """From 0 to 1 along half a cosine."""
    return (1 - math.cos(math.pi * share)) / 2
