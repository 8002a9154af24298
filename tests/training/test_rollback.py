"""Where a rollback goes: scripted held-out accuracies drive the real loop, and the restored weights are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import Interrupt
from tests.training.support import differences, state_of, tiny

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.config import Config
from trilemma.data.image_set import ImageSet
from trilemma.monitors.monitor import Alarm
from trilemma.monitors.readings import Reading
from trilemma.monitors.watch import Watch
from trilemma.runs.run_directory import RunDirectory
from trilemma.training import loop
from trilemma.training.build import build_data
from trilemma.training.finish import finished_classifier
from trilemma.training.loop import Loop
from trilemma.training.record import NEWEST_STATES, OLDER_STATES, Record
from trilemma.training.selection import HeldOut, held_out_accuracies
from trilemma.training.train import train

pytestmark = pytest.mark.usefixtures("linear_network")
LADDER = [["rollback", "pgd-2"]]
# 90 images in batches of 30
STEPS = 3
# FGSM and PGD-10 accuracy
HEALTHY, WEAK, COLLAPSED, RECOVERING = (0.6, 0.5), (0.5, 0.3), (0.9, 0.05), (0.3, 0.12)
Pair = tuple[float, float]


class Script:
    """Accuracies of the training weights by the number of epochs done, and as measured on what.

    Args:
        accuracies: of the training weights, by epoch and the number of attack steps.
        average: of the finished classifier of a run with an average.
    """

    def __init__(self, accuracies: Callable[[float, int], Pair], average: Pair = HEALTHY) -> None:
        self.accuracies, self.average = accuracies, average
        self.loop: Loop
        # weights at evaluations, by step, and the largest number of stored states
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.stored = 0

    def held_out(self, clf: Classifier, held_out: ImageSet, count: int, single_step: bool = False) -> HeldOut:
        state = self.loop.state
        raw = differences(dict(clf.state_dict()), dict(self.loop.clf.state_dict())) == []
        if raw:
            self.weights.setdefault(
                state.step, {name: value.clone() for name, value in clf.state_dict().items()}
            )
        steps = self.loop.config.attack.steps
        assert steps is not None
        fgsm, pgd10 = self.accuracies(state.epoch, steps) if raw else self.average
        return HeldOut(0.9, pgd10, fgsm if single_step else None, chance=0.1, images=5000, answers=10)


def run_script(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    """The next runs get their accuracies from ``script``, and no alarm of training steps."""
    evaluate, store = Loop._evaluate, Record.store_copy

    def evaluating(self: Loop) -> bool:
        script.loop = self
        return evaluate(self)

    def storing(self: Record, state: Any) -> None:
        store(self, state)
        script.stored = max(script.stored, len(self.run.earlier_states()))

    monkeypatch.setattr(loop, "held_out_accuracies", script.held_out)
    monkeypatch.setattr(Loop, "_evaluate", evaluating)
    monkeypatch.setattr(Record, "store_copy", storing)
    read_with(monkeypatch, lambda watch, step: [])


def read_with(monkeypatch: pytest.MonkeyPatch, alarms: Callable[[Watch, int], list[Alarm]]) -> None:
    """Replaces the alarms of training steps; their running means are still read."""
    read = Watch.read

    def reading(watch: Watch, reading: Reading, step: int) -> list[Alarm]:
        read(watch, reading, step)
        return alarms(watch, step)

    monkeypatch.setattr(Watch, "read", reading)


def config(ladder: Any = LADDER, epochs: int = 30, alarm: str = "accuracy-gap", **training: Any) -> Config:
    return tiny(
        "n-fgsm", {"epochs": epochs, "batch_size": 30, "log_every": STEPS, **training},
        schedule={"name": "constant"}, network={"name": "linear"},
        data={"name": "digits", "train_images": 90}, monitors={"remedies": {alarm: ladder}},
    )  # fmt: skip


def remedied(path: Path, alarm: str = "accuracy-gap") -> list[tuple[str, int]]:
    """Alarms of one name, rollbacks and stops, with their epochs."""
    names = (alarm, "rollback", "early-stop", "failed")
    events = RunDirectory.open(path).events()
    return [(event["name"], event["step"] // STEPS) for event in events if event["name"] in names]


def slow_collapse(epoch: float, steps: int) -> Pair:
    """Healthy until epoch 10, and again with two steps; after epoch 20 the gap is wide."""
    if steps == 2 or epoch <= 10:
        return HEALTHY
    return WEAK if epoch <= 20 else COLLAPSED


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(("every", "rings"), [(1, 21), (5, 25)])
def test_it_goes_to_the_last_healthy_evaluation_whatever_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, rings: int, ema: float | None
) -> None:
    script = Script(slow_collapse)
    run_script(monkeypatch, script)
    weights: dict[str, torch.Tensor] = {}
    give_time = Watch.give_time

    def after_rollback(watch: Watch, step: int, *arguments: Any) -> None:
        weights.update({name: value.clone() for name, value in script.loop.clf.state_dict().items()})
        assert (watch.gap.best, watch.gap.lost, watch.healthy_step) == (0.5, 0, 10 * STEPS)
        give_time(watch, step, *arguments)

    monkeypatch.setattr(Watch, "give_time", after_rollback)
    path = train(config(evaluate_every=every, ema=ema), out=tmp_path / "run", progress=False).path
    assert remedied(path) == [("accuracy-gap", rings), ("rollback", 10)]
    (event,) = [event for event in RunDirectory.open(path).events() if event["name"] == "rollback"]
    assert event["message"] == (
        f"from step {rings * STEPS} to the checkpoint of step {10 * STEPS}, the last healthy evaluation"
    )
    assert differences(weights, script.weights[10 * STEPS]) == []
    assert script.stored <= NEWEST_STATES + OLDER_STATES
    rows = [row for row in RunDirectory.open(path).metrics() if row["kind"] == "epoch"]
    assert {(row["held_out_raw_fgsm"], row["held_out_raw_pgd10"]) for row in rows} == {HEALTHY}
    assert RunDirectory.open(path).status()["status"] == "finished"


@pytest.mark.parametrize(
    ("ill", "restored", "what"),
    [
        # as `digits/fgsm` at radius 0.3: it has learned nothing that one step does not find when the gap opens
        ({10: (0.18, 0.0), 20: (0.22, 0.0), 30: (0.39, 0.08)}, 20, "the last healthy evaluation"),
        ({10: (0.39, 0.08)}, 0, "the start: no evaluation was healthy"),
    ],
)
def test_a_run_that_was_never_robust_goes_to_before_its_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ill: dict[int, Pair], restored: int, what: str
) -> None:
    well = {10: (0.13, 0.05), 20: (0.3, 0.1), 30: (0.46, 0.2), 40: (0.58, 0.26)}
    script = Script(lambda epoch, steps: (ill if steps == 1 else well)[int(epoch)])
    run_script(monkeypatch, script)
    ladder = [["rollback", "pgd-2"], "stop"]
    path = train(config(ladder, epochs=40, evaluate_every=10), out=tmp_path / "run", progress=False).path
    assert remedied(path) == [("accuracy-gap", max(ill)), ("rollback", restored)]
    message = next(e["message"] for e in RunDirectory.open(path).events() if e["name"] == "rollback")
    assert message == (f"from step {max(ill) * STEPS} to the checkpoint of step {restored * STEPS}, {what}")
    assert RunDirectory.open(path).status()["step"] == 40 * STEPS


@pytest.mark.parametrize(
    ("later", "rings"),
    [
        # the gap stays wide, and PGD-10 accuracy rises
        ([(0.6, 0.3), (0.6, 0.32), (0.62, 0.32)], None),
        # it does not rise clearly
        ([(0.4, 0.21), (0.4, 0.21), (0.6, 0.21)], 40),
        # it has risen, and falls again
        ([(0.6, 0.32), (0.6, 0.32), (0.6, 0.2)], 40),
    ],
)
def test_a_gap_that_remains_beside_a_higher_accuracy_is_no_reason_for_the_next_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: list[Pair], rings: int | None
) -> None:
    # the alarm is that of epoch 20, and the evaluation at 25 is passed over
    before = [(0.2, 0.1), (0.3, 0.1), (0.4, 0.2), (0.6, 0.2), (0.6, 0.2)]
    accuracies = dict(zip(range(5, 45, 5), [*before, *later], strict=True))
    run_script(monkeypatch, Script(lambda epoch, steps: accuracies[round(epoch)]))
    sick = config(["pgd-2", "stop"], epochs=40, evaluate_every=5)
    path = train(sick, out=tmp_path / "run", progress=False).path
    alarms = [epoch for name, epoch in remedied(path) if name == "accuracy-gap"]
    assert alarms == [20, *([rings] if rings else [])]


@pytest.mark.parametrize("stop", [20 * STEPS + 1, 25 * STEPS])
def test_a_resumed_run_goes_to_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt_after: Interrupt, stop: int
) -> None:
    def ill_again(epoch: float, steps: int) -> Pair:
        return HEALTHY if epoch <= 10 or loop_noise(script) else WEAK if epoch <= 20 else COLLAPSED

    def loop_noise(script: Script) -> bool:
        return bool(script.loop.config.method.model_dump()["noise"] == 1.0)

    script = Script(ill_again)
    run_script(monkeypatch, script)
    ladder = [["rollback", "pgd-2"], ["rollback", {"set": {"method.noise": 1.0}}], "stop"]
    sick = config(ladder, epochs=28, evaluate_every=5, ema=0.9)
    whole = train(sick, out=tmp_path / "whole", progress=False).path
    expected = [("accuracy-gap", 25), ("rollback", 10), ("accuracy-gap", 25), ("rollback", 10)]
    assert remedied(whole) == expected
    interrupt_after(stop)
    with pytest.raises(KeyboardInterrupt):
        train(sick, out=tmp_path / "broken", progress=False)
    interrupt_after(0)
    broken = train(sick, out=tmp_path / "broken", resume=True, progress=False).path
    assert remedied(broken) == expected
    assert differences(state_of(whole), state_of(broken)) == []


def test_a_process_killed_before_the_copy_is_stored_loses_no_healthy_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_script(monkeypatch, Script(slow_collapse))
    store = Record.store_copy

    def killed(self: Record, state: Any) -> None:
        self.run.earlier_state(state.step).unlink(missing_ok=True)
        if state.step == 10 * STEPS:
            raise SystemExit
        store(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "store_copy", killed)
        with pytest.raises(SystemExit):
            train(config(evaluate_every=5), out=tmp_path / "run", progress=False)
    assert 10 * STEPS not in RunDirectory.open(tmp_path / "run").earlier_states()
    train(config(evaluate_every=5), out=tmp_path / "run", resume=True, progress=False)
    assert remedied(tmp_path / "run") == [("accuracy-gap", 25), ("rollback", 10)]


def test_states_that_a_killed_rollback_has_left_are_never_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_script(monkeypatch, Script(slow_collapse))
    delete = Record._delete_old_states

    def killed(self: Record, state: Any) -> None:
        if state.rollbacks:
            raise SystemExit
        delete(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "_delete_old_states", killed)
        with pytest.raises(SystemExit):
            train(config(evaluate_every=5), out=tmp_path / "run", progress=False)
    run = RunDirectory.open(tmp_path / "run")
    assert max(run.earlier_states()) > 10 * STEPS
    resume = Loop.resume
    after: list[int] = []

    def resuming(self: Loop, saved: Any) -> None:
        resume(self, saved)
        after.extend(run.earlier_states())

    monkeypatch.setattr(Loop, "resume", resuming)
    train(config(evaluate_every=5), out=run.path, resume=True, progress=False)
    assert max(after) == 10 * STEPS


def test_a_run_without_a_state_that_old_goes_to_its_oldest_and_its_counts_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt_after: Interrupt
) -> None:
    """As runs of earlier versions, which stored the last epochs alone."""
    script = Script(slow_collapse)
    run_script(monkeypatch, script)
    interrupt_after(19 * STEPS)
    with pytest.raises(KeyboardInterrupt):
        train(config(evaluate_every=5), out=tmp_path / "run", progress=False)
    interrupt_after(0)
    run = RunDirectory.open(tmp_path / "run")
    run.earlier_state(10 * STEPS).unlink()
    run.earlier_state(0).unlink(missing_ok=True)
    oldest = min(run.earlier_states())
    assert oldest > 10 * STEPS
    train(config(evaluate_every=5), out=run.path, resume=True, progress=False)
    (event,) = [event for event in run.events() if event["name"] == "rollback"]
    # at the time of the alarm the oldest one is the newest from before the horizon
    assert "the oldest one, after the onset at step 30" in event["message"]
    assert event["step"] >= oldest and run.status()["status"] == "finished"


@pytest.mark.parametrize("every", [1, 10])
def test_a_dead_network_has_time_to_recover_and_a_useless_remedy_is_followed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Two steps heal within ``needed`` epochs after the alarm, without a rollback."""
    epochs_to_heal = {"heals": 2 if every == 1 else 15, "does nothing": 100}
    first = 11 if every == 1 else 20
    found = {}
    for name, needed in epochs_to_heal.items():

        def accuracies(epoch: float, steps: int, needed: int = needed) -> Pair:
            if epoch <= 10:
                return HEALTHY
            return COLLAPSED if steps == 1 else RECOVERING if epoch <= first + needed else HEALTHY

        with monkeypatch.context() as patch:
            run_script(patch, Script(accuracies))
            sick = config(["pgd-2", "stop"], epochs=15 if every == 1 else 45, evaluate_every=every)
            found[name] = remedied(train(sick, out=tmp_path / name, progress=False).path)
    assert found["heals"] == [("accuracy-gap", first)]
    again = first + (3 if every == 1 else 20)
    assert found["does nothing"] == [("accuracy-gap", first), ("accuracy-gap", again), ("early-stop", again)]


@pytest.mark.parametrize(("weak_at", "restored"), [(None, 14), (15, 10)])
def test_an_alarm_between_evaluations_goes_no_further_than_the_last_healthy_one_if_the_next_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak_at: int | None, restored: int
) -> None:
    run_script(monkeypatch, Script(lambda epoch, steps: WEAK if epoch == weak_at else HEALTHY))

    def alarm(watch: Watch, step: int) -> list[Alarm]:
        rings = step == 15 * STEPS + 1 and watch.single_step
        return [Alarm("catastrophic-overfitting", "scripted", step, lag=STEPS)] if rings else []

    read_with(monkeypatch, alarm)
    sick = config(alarm="catastrophic-overfitting", epochs=18, evaluate_every=5)
    path = train(sick, out=tmp_path / "run", progress=False).path
    name = "catastrophic-overfitting"
    assert remedied(path, name) == [(name, 15), ("rollback", restored)]


def test_robust_overfitting_goes_to_the_best_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PGD-10 accuracy rises to 0.52 and falls to 0.45: every evaluation is healthy, but their mean has fallen."""

    def accuracies(epoch: float, steps: int) -> Pair:
        return (0.6, 0.4 + 0.01 * epoch if epoch <= 12 or steps == 2 else 0.45)

    run_script(monkeypatch, Script(accuracies))
    sick = config(alarm="robust-overfitting", epochs=20, ema=0.9)
    path = train(sick, out=tmp_path / "run", progress=False).path
    # the first mean of five evaluations that lies 0.04 below the best one
    assert remedied(path, "robust-overfitting") == [("robust-overfitting", 17), ("rollback", 12)]


@pytest.mark.parametrize("killed", [False, True])
def test_the_line_of_the_best_checkpoint_survives_the_rollback_that_undoes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """The average is best at epoch 11, after the last healthy evaluation of the training weights."""

    class Later(Script):
        def held_out(self, *arguments: Any, **options: Any) -> HeldOut:
            found = super().held_out(*arguments, **options)
            late = found.pgd10 == 0.5 and self.loop.state.epoch == 11 and self.loop.config.attack.steps == 1
            return found._replace(pgd10=0.55) if late else found

    def accuracies(epoch: float, steps: int) -> Pair:
        return HEALTHY if steps == 2 or epoch <= 10 else COLLAPSED

    run_script(monkeypatch, Later(accuracies))
    path, drop = tmp_path / "run", Record.drop_later_metrics

    def dying(self: Record, state: Any, undone: bool = False) -> None:
        if undone:
            raise SystemExit
        drop(self, state, undone)

    if killed:
        # After the restored state was saved, before the lines of the undone steps are removed.
        with monkeypatch.context() as patch:
            patch.setattr(Record, "drop_later_metrics", dying)
            with pytest.raises(SystemExit):
                train(config(epochs=14, ema=0.9), out=path, progress=False)
    train(config(epochs=14, ema=0.9), out=path, resume="auto", progress=False)
    run = RunDirectory.open(path)
    assert remedied(path) == [("accuracy-gap", 11), ("rollback", 10)]
    summary = run.summary()
    assert (summary["best_epoch"], summary["held_out_pgd10"]) == (11, 0.55)
    assert load(path).about["epoch"] == 11
    (line,) = [row for row in run.metrics() if row["kind"] == "best"]
    assert line["step"] == 11 * STEPS and line["selected"]
    assert [row["epoch"] for row in run.metrics() if row["kind"] == "epoch"] == list(range(1, 15))


def test_monitors_read_the_training_weights_and_users_get_the_average(tmp_path: Path) -> None:
    sick = tiny(
        "fgsm", {"epochs": 2, "ema": 0.97, "held_out_images": 200}, threat={"norm": "linf", "radius": "0.02"}
    )
    run = train(sick, out=tmp_path / "run", progress=False)
    row = [row for row in run.metrics if row["kind"] == "epoch"][-1]
    data = build_data(sick)
    raw = load(run.path)
    raw.load_state_dict(state_of(run.path)["weights"])
    raw = finished_classifier(raw, None, data.train, reestimate=True)
    found = held_out_accuracies(raw, data.held_out, 200, single_step=True)
    assert (row["held_out_raw_fgsm"], row["held_out_raw_pgd10"]) == (found.fgsm, found.pgd10)
    assert row["held_out_raw_pgd10"] != row["held_out_pgd10"]
