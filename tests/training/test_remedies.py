"""Faults put in on purpose: each ends in a recorded remedy and a finished run, or in an honest failure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from tests.training.support import STEPS_PER_EPOCH, differences, state_of, tiny

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.config import Config
from trilemma.config.registry import METHODS
from trilemma.data.batch import Batch
from trilemma.errors import TrainingFailedError
from trilemma.methods.base import Method, MethodState, Points, Step, detached
from trilemma.methods.n_fgsm import NFgsm, NFgsmOptions
from trilemma.methods.standard import Standard
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.train import train

WINDOW = STEPS_PER_EPOCH
# registered by the fixture linear_network
LINEAR = {"name": "linear"}
FEW = {"name": "digits", "train_images": 90}  # nine steps of ten images
COLLAPSE = 7 * STEPS_PER_EPOCH + 2  # the last step before the collapse


@dataclass
class Plan:
    """What heals the fake collapse, and the method that each step ran with."""

    heals: str = "steps"
    methods: list[Method] = field(default_factory=list)


class CollapsingOptions(NFgsmOptions):
    name: Literal["collapsing"] = "collapsing"  # type: ignore[assignment]


class Collapsing(NFgsm):
    """N-FGSM whose images turn abnormal after a while, and stay so until it attacks with more steps."""

    Options = CollapsingOptions
    plan: ClassVar[Plan]

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        state.extra["step"] = state.extra.get("step", torch.tensor(0)) + 1  # goes back with the run
        return replace(super().points(clf, batch, state), extra={"step": state.extra["step"]})

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        step = super().terms(clf, points, state)
        plan = self.plan
        plan.methods.append(self)
        assert step.adversarial is not None
        healed = self.attack.steps == 2 if plan.heals == "steps" else self.options.noise == 1.0
        if points.extra["step"] <= COLLAPSE or healed:
            return step
        # a true logit far above the clean one: the loss fell under the attack, and the shift is long
        lifted = 9.0 * torch.nn.functional.one_hot(points.labels, clf.num_classes)
        return replace(step, adversarial=detached(points.clean, step.adversarial.logits + lifted))


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, linear_network: dict[str, str]) -> Plan:
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    METHODS.add("collapsing", f"{__name__}:Collapsing")
    Collapsing.plan = Plan()
    return Collapsing.plan


def config(ladder: Any, epochs: int = 12, alarm: str = "catastrophic-overfitting", **monitors: Any) -> Config:
    remedies = {alarm: ladder}
    return tiny(
        "collapsing", {"epochs": epochs, "batch_size": 10, "evaluate_every": 20, "held_out_images": 10},
        schedule={"name": "constant"}, network=LINEAR, data=FEW,
        monitors={"remedies": remedies, **monitors},
    )  # fmt: skip


def told(path: Path) -> list[tuple[str, str]]:
    """Alarms, remedies and stops; these networks learn nothing, which the selection records too."""
    events = RunDirectory.open(path).events()
    return [(e["kind"], e["name"]) for e in events if e["kind"] not in ("selection", "warning")]


ALARM = ("alarm", "catastrophic-overfitting")
ROLLBACK = ("remedy", "rollback")
DER_ON, PGD_2 = [("remedy", "der")] * 2, [("remedy", "pgd-2")] * 2


def test_a_collapse_goes_back_to_before_its_onset_and_takes_more_steps(tmp_path: Path, plan: Plan) -> None:
    path = train(config([["rollback", "pgd-2"]]), out=tmp_path / "run", progress=False).path
    run = RunDirectory.open(path)
    assert told(path) == [ALARM, ROLLBACK, *PGD_2]
    alarm, rollback, steps, size = run.events()
    assert COLLAPSE < alarm["step"] <= COLLAPSE + 2 * WINDOW
    assert "abnormal" in alarm["message"] and "mean dE(x)" in alarm["message"]
    assert rollback["step"] <= COLLAPSE - WINDOW and rollback["step"] % STEPS_PER_EPOCH == 0
    assert (steps["message"], size["message"]) == ("attack.steps = 2", "attack.step_size = 1/10")
    assert run.status()["status"] == "finished" and run.status()["step"] == 12 * STEPS_PER_EPOCH
    steps_run = [row["step"] for row in run.metrics() if row["kind"] == "step"]
    assert steps_run == sorted(set(steps_run))  # the lines of the collapse are taken back
    assert all(row["abnormal"] < 1 for row in run.metrics() if row.get("abnormal") is not None)
    assert [method.attack.steps for method in plan.methods[-3:]] == [2, 2, 2]
    assert run.config().attack.steps == 1  # as it was begun


def test_the_second_time_the_second_rung(tmp_path: Path, plan: Plan) -> None:
    ladder = [["rollback", "der"], ["rollback", "pgd-2"]]
    path = train(config(ladder, epochs=14), out=tmp_path / "run", progress=False).path
    assert told(path) == [ALARM, ROLLBACK, *DER_ON, ALARM, ROLLBACK, *PGD_2]
    last = plan.methods[-1]
    assert last.attack.steps == 2
    assert all(
        "der" in row["terms"] for row in RunDirectory.open(path).metrics()[-3:] if row["kind"] == "step"
    )


def test_a_remedy_in_place_that_does_not_help_is_followed_by_the_next(tmp_path: Path, plan: Plan) -> None:
    ladder = ["der", "der", "pgd-2"]
    path = train(config(ladder, epochs=18, der_beta=1.0), out=tmp_path / "run", progress=False).path
    events = RunDirectory.open(path).events()
    assert told(path) == [ALARM, *DER_ON, ALARM, DER_ON[0], ALARM, *PGD_2]
    first, second, third = (event["step"] for event in events if event["kind"] == "alarm")
    assert second - first >= 3 * WINDOW - 5 and third - second >= 3 * WINDOW - 5
    betas = [event["message"] for event in events if "beta" in event["message"]]
    assert betas == ["regulariser.beta = 1.0", "regulariser.beta = 2.0"]


def test_options_of_the_user_are_taken_up(tmp_path: Path, plan: Plan) -> None:
    plan.heals = "noise"
    ladder = [["rollback", {"set": {"method.noise": 1.0}}]]
    path = train(config(ladder), out=tmp_path / "run", progress=False).path
    assert told(path) == [ALARM, ROLLBACK, ("remedy", "set")]
    assert plan.methods[-1].options.noise == 1.0


def test_stop_ends_in_good_order_and_stays_ended(tmp_path: Path, plan: Plan) -> None:
    run = train(config("stop"), out=tmp_path / "run", progress=False)
    folder = RunDirectory.open(run.path)
    assert told(run.path) == [ALARM, ("stop", "early-stop")]
    assert folder.status()["status"] == "stopped" and folder.status()["step"] < 10 * STEPS_PER_EPOCH
    assert folder.best_classifier.is_file() and folder.last_classifier.is_file()
    steps = len(plan.methods)
    train(config("stop"), out=run.path, resume=True, progress=False)
    assert len(plan.methods) == steps and folder.status()["status"] == "stopped"


def test_when_going_back_does_not_help_the_run_fails_and_keeps_its_best(tmp_path: Path, plan: Plan) -> None:
    plan.heals = "noise"
    sick = config([["rollback", "pgd-2"]], epochs=14, max_rollbacks=2)
    sick = sick.model_copy(update={"training": sick.training.model_copy(update={"evaluate_every": 2})})
    with pytest.raises(
        TrainingFailedError, match=r"after 2 rollbacks; the best checkpoint is kept\. Raise attack"
    ):
        train(sick, out=tmp_path / "run", progress=False)
    assert told(tmp_path / "run")[-2:] == [ALARM, ("stop", "failed")]
    assert RunDirectory.open(tmp_path / "run").status()["status"] == "failed"
    assert load(tmp_path / "run").about["checkpoint"] == "best"


def test_a_resumed_run_keeps_what_remedies_changed(tmp_path: Path, plan: Plan, interrupt_after: Any) -> None:
    remedied = config([["rollback", "pgd-2"]], epochs=11)
    whole = train(remedied, out=tmp_path / "whole", progress=False).path
    interrupt_after(9 * STEPS_PER_EPOCH + 4)
    with pytest.raises(KeyboardInterrupt):
        train(remedied, out=tmp_path / "broken", progress=False)
    interrupt_after(0)
    assert told(tmp_path / "broken")[1] == ROLLBACK
    train(remedied, out=tmp_path / "broken", resume=True, progress=False)
    assert plan.methods[-1].attack.steps == 2
    assert differences(state_of(whole), state_of(tmp_path / "broken")) == []


def test_no_more_checkpoints_are_kept_than_a_rollback_may_need(tmp_path: Path, plan: Plan) -> None:
    kept: dict[str, list[int]] = {}
    for ladder in ("stop", [["rollback", "pgd-2"]]):
        path = tmp_path / str(len(kept))
        train(config(ladder, epochs=5), out=path, progress=False)
        kept[str(ladder)] = sorted(RunDirectory.open(path).earlier_states())
    without, following = kept.values()
    assert len(without) == 2 and without[-1] == 5 * STEPS_PER_EPOCH
    # four windows, one before, and the start, because the evaluation at the end was not healthy
    assert following == [epoch * STEPS_PER_EPOCH for epoch in (0, 1, 2, 3, 4, 5)]


class BreakingOptions(NFgsmOptions):
    name: Literal["breaking"] = "breaking"  # type: ignore[assignment]


class Breaking(Standard):
    """A finite loss with a gradient that is not: the weights break, and nothing that was read shows it."""

    Options = BreakingOptions  # type: ignore[assignment]
    at: ClassVar[set[int]]
    calls: ClassVar[int]

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        step = super().terms(clf, points, state)
        Breaking.calls += 1
        if Breaking.calls in self.at:
            weight = next(clf.parameters())
            return replace(step, loss=step.loss + (0 * weight).sum().sqrt())
        return step


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch, linear_network: dict[str, str]) -> type[Breaking]:
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    METHODS.add("breaking", f"{__name__}:Breaking")
    # The check before the run computes the loss once.
    Breaking.at, Breaking.calls = set(), -1
    return Breaking


DIVERGED = [("alarm", "divergence"), ROLLBACK, ("remedy", "scale-rate")]


@pytest.mark.parametrize("evaluate_every", [1, 5])
def test_weights_that_break_in_the_last_step_are_not_handed_over(
    tmp_path: Path, breaking: type[Breaking], evaluate_every: int
) -> None:
    breaking.at = {2 * STEPS_PER_EPOCH}
    run = train(
        tiny("breaking", {"evaluate_every": evaluate_every}, network=LINEAR),
        out=tmp_path / "run",
        progress=False,
    )
    assert told(run.path) == DIVERGED
    alarm = RunDirectory.open(run.path).events()[0]
    assert (alarm["step"], alarm["message"]) == (2 * STEPS_PER_EPOCH, "the weights are not finite")
    assert RunDirectory.open(run.path).status()["status"] == "finished"
    for name in ("best", "last"):
        saved = load(run.path / "checkpoints" / name / "classifier.safetensors")
        assert all(value.isfinite().all() for value in saved.state_dict().values())


def test_weights_that_always_break_in_the_last_step_fail(tmp_path: Path, breaking: type[Breaking]) -> None:
    breaking.at = set(range(2 * STEPS_PER_EPOCH, 1000))
    with pytest.raises(TrainingFailedError, match="after 3 rollbacks; the best checkpoint is kept"):
        train(tiny("breaking", network=LINEAR), out=tmp_path / "run", progress=False)
    assert load(tmp_path / "run").about["step"] == STEPS_PER_EPOCH


def test_without_the_monitor_broken_weights_fail_at_once(tmp_path: Path, breaking: type[Breaking]) -> None:
    breaking.at = {2 * STEPS_PER_EPOCH}
    with pytest.raises(TrainingFailedError, match="the weights are not finite at step 18, after 0 rollbacks"):
        train(
            tiny("breaking", monitors={"divergence": False}, network=LINEAR),
            out=tmp_path / "run",
            progress=False,
        )


def saturating(**monitors: Any) -> Config:
    """Chains whose noise throws every pixel to the edge of the box."""
    sampler = {
        "name": "langevin", "noise_std": 100.0, "steps": 1, "buffer_size": 200, "mode": "eval", "reinit": 0.0,
    }  # fmt: skip
    training = {"epochs": 6, "evaluate_every": 2}
    return tiny("sada-jem", training, sampler=sampler, network=LINEAR, monitors=monitors)


@pytest.mark.usefixtures("linear_network")
def test_a_sampler_that_saturates_gets_its_remedy(tmp_path: Path) -> None:
    quieter = [["rollback", {"set": {"sampler.noise_std": 0.01}}]]
    path = train(saturating(remedies={"divergence": quieter}), out=tmp_path / "run", progress=False).path
    assert told(path) == [("alarm", "divergence"), ROLLBACK, ("remedy", "set")]
    run = RunDirectory.open(path)
    assert "of the samples' pixels are at the edge of the box" in run.events()[0]["message"]
    assert run.status()["status"] == "finished"
    assert load(path).about["chain"]["noise_std"] == 0.01


@pytest.mark.usefixtures("linear_network")
def test_a_sampler_that_saturates_for_ever_fails_and_keeps_the_best(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingFailedError, match=r"edge of the box .* after 3 rollbacks; the best checkpoint is kept"
    ):
        train(saturating(), out=tmp_path / "run", progress=False)
    assert load(tmp_path / "run").about["checkpoint"] == "best"


@pytest.mark.slow
def test_a_real_collapse_is_met_without_a_person(tmp_path: Path) -> None:
    """FGSM at a radius of 0.3 on digits: one step stops finding what ten steps find."""
    ladder = [["rollback", "der"], ["rollback", "pgd-2"]]
    remedies = {
        "gradient-cosine": ladder,
        "catastrophic-overfitting": ladder,
        "accuracy-gap": [ladder[1], "pgd-2"],
    }
    training = {"epochs": 25, "batch_size": 64, "lr": 0.2, "evaluate_every": 5, "held_out_images": 200}
    # Which seeds collapse depends on the rounding of the processor.
    for seed in range(6):
        sick = tiny(
            "fgsm", training | {"seed": seed}, data={"name": "digits", "train_images": 1000},
            threat={"norm": "linf", "radius": "0.3"}, schedule={"name": "cyclic"}, monitors={"remedies": remedies},
        )  # fmt: skip
        run = RunDirectory.open(train(sick, out=tmp_path / str(seed), progress=False).path)
        events = run.events()
        assert run.status()["status"] == "finished" and run.best_classifier.is_file()
        if any(event["message"] == "attack.steps = 2" for event in events):
            break
    else:
        pytest.fail("no seed needs the last remedy")
    back = next(place for place, event in enumerate(events) if event["name"] == "rollback")
    alarm = max(place for place, event in enumerate(events[:back]) if event["name"] in remedies)
    assert events[back]["step"] < events[alarm]["step"]
