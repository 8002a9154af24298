"""What the loop does when a run goes wrong: alarm, rollback, lower rate, and in the end an honest failure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from tests.training.support import STEPS_PER_EPOCH, tiny

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.config import Config, MethodOptions
from trilemma.config.registry import METHODS
from trilemma.errors import TrainingFailedError
from trilemma.methods import MethodState
from trilemma.methods.base import ForwardResult, Points, Step
from trilemma.methods.standard import Standard
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.train import train


@dataclass
class Plan:
    """What goes wrong, at which calls of ``terms`` (counted over the whole run, rollbacks included)."""

    harm: str = "nan"
    at: set[int] = field(default_factory=set)
    calls: int = 0


class FaultyOptions(MethodOptions):
    name: Literal["faulty"] = "faulty"


class Faulty(Standard):
    """Standard training that breaks down on plan."""

    Options = FaultyOptions  # type: ignore[assignment]
    plan: ClassVar[Plan]

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        step = super().terms(clf, points, state)
        plan = self.plan
        plan.calls += 1
        if plan.calls not in plan.at:
            return step
        if plan.harm == "energies":
            assert step.clean is not None
            return replace(step, clean=ForwardResult(step.clean.images, step.clean.logits * 1e6))
        return replace(step, loss=step.loss * torch.nan)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    METHODS.add("faulty", f"{__name__}:Faulty")
    # The check before the run computes the loss once.
    Faulty.plan = Plan(calls=-1)
    return Faulty.plan


def config(training: dict[str, Any] | None = None, **monitors: Any) -> Config:
    """Log lines every 5 steps, a checkpoint after each (and after each epoch of 9)."""
    quick = {"checkpoint_minutes": 1e-9}
    return tiny("faulty", {**quick, **(training or {})}, schedule={"name": "constant"}, monitors=monitors)


def kinds(run: RunDirectory) -> list[tuple[str, str]]:
    """Alarms, remedies and stops, without the warning that so short a run ends at chance."""
    return [(event["kind"], event["name"]) for event in run.events() if event["kind"] != "warning"]


ALARM_AND_REMEDY = [("alarm", "divergence"), ("remedy", "rollback"), ("remedy", "scale-rate")]


@pytest.mark.parametrize("harm", ["nan", "energies"])
def test_a_diverged_run_goes_back_slows_down_and_finishes(tmp_path: Path, plan: Plan, harm: str) -> None:
    plan.harm, plan.at = harm, {13}
    train(config(), out=tmp_path / "run", progress=False)
    run = RunDirectory.open(tmp_path / "run")
    assert run.status()["status"] == "finished" and run.status()["step"] == 2 * STEPS_PER_EPOCH
    assert kinds(run) == ALARM_AND_REMEDY
    alarm, rollback, scaled = run.events()[:3]
    assert alarm["step"] == 13 and ("nan" in alarm["message"] or "beyond 10000" in alarm["message"])
    assert rollback["step"] == 10 and "from step 13 to the checkpoint of step 10" in rollback["message"]
    assert "x 0.3" in scaled["message"]
    rows = [row for row in run.metrics() if row["kind"] == "step"]
    assert [row["step"] for row in rows] == [5, 9, 10, 15, 18]
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.05, 0.05, 0.015, 0.015])
    assert plan.calls == 2 * STEPS_PER_EPOCH + 15 - 10  # the steps up to the line that showed it ran twice
    assert all(torch.isfinite(value).all() for value in load(run.path).state_dict().values())


def test_a_second_divergence_in_a_row_goes_back_further(tmp_path: Path, plan: Plan) -> None:
    """The last checkpoint may have been sick before anything showed it."""
    plan.at = {13, 16}  # call 16 is step 11 once more
    train(config(), out=tmp_path / "run", progress=False)
    run = RunDirectory.open(tmp_path / "run")
    assert kinds(run) == 2 * ALARM_AND_REMEDY
    steps = [event["step"] for event in run.events() if event["name"] == "rollback"]
    assert steps == [10, 9]
    assert run.metrics()[-2]["lr"] == pytest.approx(0.05 * 0.3**2)


def test_metric_lines_are_cut_back_to_the_checkpoint(tmp_path: Path, plan: Plan) -> None:
    """Checkpoints only after an epoch: the lines of steps 10 and 15 are taken back when step 18 shows a NaN."""
    plan.at = {17}
    train(config({"checkpoint_minutes": 10}), out=tmp_path / "run", progress=False)
    run = RunDirectory.open(tmp_path / "run")
    steps = [row["step"] for row in run.metrics() if row["kind"] == "step"]
    assert steps == [5, 9, 10, 15, 18]
    rates = [row["lr"] for row in run.metrics() if row["kind"] == "step"]
    assert rates == pytest.approx([0.05, 0.05, 0.015, 0.015, 0.015])
    epochs = [row["step"] for row in run.metrics() if row["kind"] == "epoch"]
    assert epochs == [9, 18]


def test_a_run_that_keeps_diverging_fails_and_keeps_its_best(tmp_path: Path, plan: Plan) -> None:
    plan.at = set(range(12, 1000))
    with pytest.raises(TrainingFailedError, match=r"after 2 rollbacks; the best checkpoint is kept"):
        train(config(max_rollbacks=2), out=tmp_path / "run", progress=False)
    run = RunDirectory.open(tmp_path / "run")
    assert run.status()["status"] == "failed"
    assert kinds(run) == [*2 * ALARM_AND_REMEDY, ("alarm", "divergence"), ("stop", "failed")]
    best = load(run.path)
    assert best.about["checkpoint"] == "best" and best.about["step"] == STEPS_PER_EPOCH
    assert all(torch.isfinite(value).all() for value in best.state_dict().values())
    assert max(row["step"] for row in run.metrics()) <= 10


def test_a_run_sick_from_the_start_promises_no_checkpoint(tmp_path: Path, plan: Plan) -> None:
    plan.at = set(range(1, 1000))
    with pytest.raises(TrainingFailedError, match="no checkpoint was evaluated yet"):
        train(config(max_rollbacks=1), out=tmp_path / "run", progress=False)


def test_without_the_monitor_nothing_is_rolled_back(tmp_path: Path, plan: Plan) -> None:
    plan.harm, plan.at = "energies", {13}
    train(config(divergence=False), out=tmp_path / "run", progress=False)
    assert kinds(RunDirectory.open(tmp_path / "run")) == []


def test_a_resumed_run_keeps_its_lowered_rate_and_its_count(
    tmp_path: Path, plan: Plan, interrupt_after: Any
) -> None:
    plan.at = {13}
    interrupt_after(16)
    with pytest.raises(KeyboardInterrupt):
        train(config(max_rollbacks=1), out=tmp_path / "run", progress=False)
    interrupt_after(0)
    plan.at = {plan.calls + 1}
    with pytest.raises(TrainingFailedError, match="after 1 rollbacks"):
        train(config(max_rollbacks=1), out=tmp_path / "run", resume=True, progress=False)
