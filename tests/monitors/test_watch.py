"""All monitors of a run together: what a checkpoint stores of them, and which of them reports a loss of robustness."""

from __future__ import annotations

from tests.training.support import tiny

from trilemma.monitors.watch import Watch


def test_the_keys_of_the_saved_state_stay_the_same() -> None:
    """Checkpoints of earlier versions are loaded by these names."""
    once = {"present": {}, "quiet_until": 0}
    assert Watch(tiny("n-fgsm"), steps_per_epoch=30).state_dict() == {
        "divergence": {"apart": 0, "saturated": 0},
        "cosine": {"count": 0, "mean": 0.0, "height": 0.0, "once": once},
        "overfitting": {
            "fast": {}, "slow": {}, "count": 0, "last": None, "highest": None, "jumped": False, "lowest": 1.0,
            "rested": 0, "once": once,
        },
        "gap": {
            "best": 0.0, "best_fgsm": 0.0, "lost": 0, "healthy": 0, "is_healthy": False, "present": False,
            "quiet_until": 0, "last": None, "remedied_at": None,
        },
        "decline": {
            "recent": [], "best_mean": 0.0, "best_step": 0, "best_level": None, "present": False, "quiet_until": 0,
        },
    }  # fmt: skip


def watch(
    *accuracies: tuple[float | None, float], adversarial: bool = True
) -> tuple[Watch, list[tuple[str, int]]]:
    """A watch after evaluations at steps 1, 2, ..., and the names and steps of the alarms."""
    whole = Watch(tiny("n-fgsm", training={"epochs": 12}), steps_per_epoch=30)
    if adversarial:
        whole.overfitting.fast = {"delta_marginal": 0.0}
    found = [
        (alarm.name, alarm.step)
        for step, pair in enumerate(accuracies, 1)
        for alarm in whole.read_evaluation(*pair, step)
    ]
    return whole, found


LEARNS = [(0.4, 0.3), (0.5, 0.4), (0.5, 0.42), (0.52, 0.44), (0.52, 0.44), (0.52, 0.44)]


def test_a_slow_decline_of_single_step_training_is_robust_overfitting() -> None:
    _, found = watch(*LEARNS, (0.5, 0.4), (0.48, 0.38), (0.47, 0.38), (0.46, 0.37), (0.46, 0.36))
    assert found == [("robust-overfitting", 11)]


def test_a_collapse_is_reported_once_also_if_it_takes_three_evaluations_or_heals() -> None:
    sudden = [*LEARNS, *[(0.8, 0.02)] * 6]
    gradual = [*LEARNS, (0.5, 0.36), (0.5, 0.2), (0.4, 0.05), (0.4, 0.0), (0.4, 0.0), (0.4, 0.0)]
    heals = [*LEARNS, (0.8, 0.02), *[(0.5, 0.42)] * 6]
    for run, at in ((sudden, 7), (gradual, 8), (heals, 7)):
        assert watch(*run)[1] == [("accuracy-gap", at)]


def test_the_verdict_on_an_evaluation_is_that_of_the_gap_monitor() -> None:
    assert watch(*LEARNS)[0].healthy and not watch(*LEARNS, (0.8, 0.4))[0].healthy


def test_a_method_without_adversarial_images_has_no_robustness_to_lose() -> None:
    assert watch(*((None, pgd10) for pgd10 in (0.4, 0.0, 0.0)), adversarial=False)[1] == []
    assert watch(*((None, pgd10) for pgd10 in (0.4, 0.0, 0.0)))[1] == [("accuracy-gap", 3)]
