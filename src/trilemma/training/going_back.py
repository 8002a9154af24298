"""What a run does when remedies ask it to go back, and when none is left."""

from __future__ import annotations

from typing import NoReturn

from trilemma.errors import TrainingFailedError
from trilemma.monitors.monitor import Alarm
from trilemma.training.checkpoint import load_state
from trilemma.training.record import Record
from trilemma.training.state import TrainingState


def roll_back(state: TrainingState, record: Record, alarm: Alarm, returned_to: int | None) -> int:
    """Takes up the newest checkpoint from before the alarm's onset, or the oldest one that is kept.

    What the remedies so far have changed stays, and so does the best score: its file stays too, and a weaker
    classifier must not replace it.

    Args:
        returned_to: the step that the run went back to last time, with no regular checkpoint since: it was sick
            already, so an older one is taken. ``None`` otherwise.

    Returns:
        The step it went back to.
    """
    kept = {name: getattr(state, name) for name in ("rate_factor", "options", "sounded", "minutes", "best")}
    files = record.run.earlier_states()
    limit = alarm.onset if returned_to is None else min(alarm.onset, returned_to - 1)
    chosen = max((step for step in files if step <= limit), default=min(files))
    rollbacks = state.rollbacks + 1
    state.load_state_dict(load_state(files[chosen]))
    for name, value in kept.items():
        setattr(state, name, value)
    state.rollbacks = rollbacks
    record.cut_metrics(state)
    text = f"from step {alarm.step} to the checkpoint of step {state.step}"
    record.event(state, "remedy", "rollback", text)
    return chosen


def fail(state: TrainingState, record: Record, alarm: Alarm) -> NoReturn:
    """Ends the run as failed.

    Raises:
        TrainingFailedError: always.
    """
    record.status(state, "failed")
    text = f"{alarm.message} at step {alarm.step}, after {state.rollbacks} rollbacks"
    record.event(state, "stop", "failed", text)
    best = record.run.best_classifier.is_file()
    kept = "the best checkpoint is kept" if best else "no checkpoint was evaluated yet"
    diverged = alarm.name == "divergence"
    advice = "Lower training.lr, or raise sampler.steps" if diverged else "Raise attack.steps"
    raise TrainingFailedError(f"{record.run.path}: {text}; {kept}. {advice}")
