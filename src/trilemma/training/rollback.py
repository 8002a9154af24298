"""Rolls a run back to an earlier checkpoint, and ends a run whose remedies are used up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from trilemma.errors import TrainingFailedError
from trilemma.monitors.monitor import Alarm
from trilemma.training.checkpoint import load_state, newest_sound_state
from trilemma.training.record import Record
from trilemma.training.state import TrainingState


def roll_back(state: TrainingState, record: Record, alarm: Alarm) -> None:
    """Restores the newest stored state from before the onset of the alarm, with its monitors and their counts.

    If the last evaluation was not healthy, the state is also not later than the last healthy evaluation, or, in a run
    without one, than its start.

    The changes made by remedies are not undone. The best score is not reset either, because the file of the best
    classifier stays and a weaker classifier must not replace it. The metric lines of the undone steps are to be removed
    once the state is saved.

    Args:
        state: the training state; overwritten.
        record: the record of the run.
        alarm: the alarm that caused the rollback.
    """
    preserved = {
        name: getattr(state, name)
        for name in ("rate_factor", "options", "sounded", "minutes", "best", "best_step")
    }
    files, rollbacks = record.run.earlier_states(), state.rollbacks + 1
    limit = _limit(state, alarm)
    # The state that the last rollback restored led to the alarm again, so an older one is restored.
    newest = limit if state.restored is None else min(limit, state.restored - 1)
    healthy = state.watch.healthy_step
    restored, saved = sound_state(files, newest, limit)
    state.load_state_dict(saved, files[restored])
    for name, value in preserved.items():
        setattr(state, name, value)
    state.rollbacks, state.restored = rollbacks, restored
    if restored > limit:
        # A run of an earlier version has not stored a state this old, and the counts of this one belong to the alarm.
        state.watch.give_time(state.step)
    text = f"from step {alarm.step} to the checkpoint of step {restored}"
    if alarm.name != "divergence":
        text += f", {_describe(restored, alarm, healthy)}"
    record.event(state, "remedy", "rollback", text)


def sound_state(files: Mapping[int, Path], newest: int, limit: int) -> tuple[int, dict[str, Any]]:
    """Returns the step and the content of the state to restore; a damaged file is passed over for the one before it.

    Args:
        files: the stored states by step.
        newest: the newest step that should be restored.
        limit: the newest step from before the onset; taken if nothing as old as ``newest`` is stored.

    Raises:
        CheckpointError: no stored state is sound.
    """
    descending = sorted(files, reverse=True)
    # Steps after the onset are the last resort, the oldest first.
    order = [step for step in descending if step <= newest]
    order += [step for step in descending if newest < step <= limit]
    order += [step for step in sorted(files) if step > limit]
    sound = newest_sound_state(files[step] for step in order)
    if sound is None:
        # Raises the error that says what is wrong with the file.
        return order[0], load_state(files[order[0]])
    return next(step for step in order if files[step] == sound.path), sound.state


def _limit(state: TrainingState, alarm: Alarm) -> int:
    """Returns the last step whose state may be restored."""
    # A divergence leaves the weights of the last checkpoint as they were.
    if alarm.name == "divergence" or state.evaluated_at <= state.watch.healthy_step:
        return alarm.onset
    return min(alarm.onset, state.watch.healthy_step)


def _describe(restored: int, alarm: Alarm, healthy: int) -> str:
    """Says what the restored state is.

    Args:
        restored: its step.
        alarm: the alarm.
        healthy: step of the last healthy evaluation; 0 for none.
    """
    if restored > alarm.onset:
        return f"the oldest one, after the onset at step {alarm.onset}"
    if restored == healthy:
        return "the last healthy evaluation" if healthy else "the start: no evaluation was healthy"
    return f"the newest one before the onset at step {alarm.onset}"


def fail(state: TrainingState, record: Record, alarm: Alarm) -> NoReturn:
    """Records the run as failed and raises.

    Raises:
        TrainingFailedError: always, with the alarm, the state of the best checkpoint and advice.
    """
    text = f"{alarm.message} at step {alarm.step}, after {state.rollbacks} rollbacks"
    record.event(state, "stop", "failed", text)
    record.status(state, "failed")
    has_best = record.run.best_classifier.is_file()
    best = "the best checkpoint is kept" if has_best else "no checkpoint was evaluated yet"
    diverged = alarm.name == "divergence"
    advice = "Lower training.lr, or raise sampler.steps" if diverged else "Raise attack.steps"
    raise TrainingFailedError(f"{record.run.path}: {text}; {best}. {advice}")
