"""Rolls a run back to an earlier checkpoint, and ends a run whose remedies are used up."""

from __future__ import annotations

from typing import NoReturn

from trilemma.errors import TrainingFailedError
from trilemma.monitors.monitor import Alarm
from trilemma.training.checkpoint import load_state
from trilemma.training.record import Record
from trilemma.training.state import TrainingState


def roll_back(state: TrainingState, record: Record, alarm: Alarm, previous_rollback: int | None) -> int:
    """Restores the newest checkpoint that is not after the onset of the alarm, or the oldest stored one.

    The changes made by remedies are not undone. The best score is not reset either, because the file of the best
    classifier stays and a weaker classifier must not replace it.

    Args:
        state: the training state; overwritten.
        record: the record of the run.
        alarm: the alarm that caused the rollback.
        previous_rollback: step that the last rollback restored, if no regular checkpoint was written since: that
            checkpoint led to the alarm again, so an older one is restored. ``None`` otherwise.

    Returns:
        The step of the restored checkpoint.
    """
    preserved = {
        name: getattr(state, name) for name in ("rate_factor", "options", "sounded", "minutes", "best")
    }
    files = record.run.earlier_states()
    limit = alarm.onset if previous_rollback is None else min(alarm.onset, previous_rollback - 1)
    restored = max((step for step in files if step <= limit), default=min(files))
    rollbacks = state.rollbacks + 1
    state.load_state_dict(load_state(files[restored]))
    for name, value in preserved.items():
        setattr(state, name, value)
    state.rollbacks = rollbacks
    record.drop_later_metrics(state)
    text = f"from step {alarm.step} to the checkpoint of step {state.step}"
    record.event(state, "remedy", "rollback", text)
    return restored


def fail(state: TrainingState, record: Record, alarm: Alarm) -> NoReturn:
    """Records the run as failed and raises.

    Raises:
        TrainingFailedError: always, with the alarm, the state of the best checkpoint and advice.
    """
    record.status(state, "failed")
    text = f"{alarm.message} at step {alarm.step}, after {state.rollbacks} rollbacks"
    record.event(state, "stop", "failed", text)
    has_best = record.run.best_classifier.is_file()
    best = "the best checkpoint is kept" if has_best else "no checkpoint was evaluated yet"
    diverged = alarm.name == "divergence"
    advice = "Lower training.lr, or raise sampler.steps" if diverged else "Raise attack.steps"
    raise TrainingFailedError(f"{record.run.path}: {text}; {best}. {advice}")
