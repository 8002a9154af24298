"""Catastrophic overfitting as evaluations show it: FGSM accuracy far above PGD-10, or PGD-10 accuracy lost."""

from __future__ import annotations

import json

import pytest

from trilemma.monitors.accuracy_gap import AccuracyGapMonitor

# (FGSM, PGD-10) at evaluations of a run that learns
LEARNS = [(0.28, 0.22), (0.38, 0.30), (0.46, 0.36), (0.50, 0.40)]


def read(monitor: AccuracyGapMonitor, *evaluations, first: int = 1, **options):
    """The alarms; an evaluation every 100 steps."""
    return [
        alarm
        for place, (fgsm, pgd10) in enumerate(evaluations, first)
        for alarm in monitor.read(fgsm, pgd10, 100 * place, **options)
    ]


def steps(*evaluations, **options) -> list[tuple[int, int]]:
    """Step and onset of each alarm of a new monitor."""
    found = read(AccuracyGapMonitor(), *evaluations, **options)
    return [(alarm.step, alarm.onset) for alarm in found]


@pytest.mark.parametrize("gap", [0.26, 0.348, 0.5])
def test_a_wide_gap_alarms_at_once_and_the_last_healthy_evaluation_is_the_onset(gap: float) -> None:
    assert steps(*LEARNS, (0.35 + gap, 0.35)) == [(500, 400)]


def test_the_gaps_of_healthy_public_runs_do_not_alarm() -> None:
    assert steps(*((0.35 + gap, 0.35) for gap in (0.05, 0.187, 0.1, -0.02, 0.187, 0.25))) == []


def test_the_alarm_names_both_accuracies_and_the_best() -> None:
    *_, alarm = read(AccuracyGapMonitor(), *LEARNS, (0.8, 0.05))
    assert alarm.name == "accuracy-gap"
    assert alarm.message == "held-out accuracy 0.80 under FGSM, 0.05 under PGD, whose best was 0.40"


def test_accuracy_below_a_third_of_the_best_alarms_at_the_second_evaluation_in_a_row() -> None:
    assert steps(*LEARNS, (0.3, 0.13), (0.3, 0.13)) == [(600, 400)]
    assert steps(*LEARNS, (0.3, 0.13), (0.38, 0.3), (0.3, 0.13), (0.38, 0.3)) == []
    assert steps(*LEARNS, (0.3, 0.14), (0.3, 0.14), (0.3, 0.14)) == []


def test_a_log_without_fgsm_is_judged_by_pgd_alone() -> None:
    found = read(AccuracyGapMonitor(), *((None, pgd10) for _, pgd10 in LEARNS), (None, 0.05), (None, 0.04))
    assert [alarm.message for alarm in found] == ["held-out PGD accuracy 0.40 -> 0.04"]


def test_a_network_that_learns_crosses_chance_without_an_alarm_and_its_collapse_later_is_heard() -> None:
    """digits/fgsm at radius 0.3: 0.10 and 0.00 at epoch 7, before anything was learned."""
    learning = [(0.1, 0.1), (0.12, 0.11), (0.10, 0.0), (0.11, 0.0), (0.10, 0.02), (0.14, 0.10)]
    assert steps(*learning, *LEARNS) == []
    assert steps(*learning, *LEARNS, (0.2, 0.02), (0.2, 0.02)) == [(1200, 1000)]


def test_a_dead_network_alarms_though_one_answer_for_all_images_is_a_third_of_a_low_best() -> None:
    dies, known = [(0.3, 0.25), (0.1, 0.1), (0.1, 0.1)], {"chance": 0.1, "chance_is_known": True}
    assert steps(*dies, **known) == [(300, 100)]
    # at half of the best, or with FGSM accuracy above chance, a run may still be learning
    assert steps((0.2, 0.17), (0.1, 0.1), (0.1, 0.1), (0.1, 0.1), **known) == []
    assert steps((0.3, 0.25), (0.13, 0.1), (0.13, 0.1), (0.13, 0.1), **known) == []
    # of a hundred classes, an accuracy of 0.1 is no constant answer: a public run falls to it and learns again
    assert steps(*dies, chance=0.1) == steps(*dies, chance=0.01, chance_is_known=True) == []


def test_chance_is_that_of_the_data() -> None:
    fades = [(0.13, 0.12), (0.04, 0.02), (0.04, 0.02)]
    assert steps(*fades) == []
    assert steps(*fades, chance=0.01) == [(300, 100)]


def test_a_weight_average_that_has_not_learned_yet_has_nothing_to_lose() -> None:
    """The average of a public run on 100 classes: up to 0.05 in its first epochs, back to 0.01, then 0.3."""
    assert steps((0.05, 0.05), (0.02, 0.01), (0.01, 0.01), (0.1, 0.09), (0.35, 0.3), chance=0.01) == []


def test_few_images_widen_both_conditions() -> None:
    wide, low = [*LEARNS, (0.61, 0.35)], [(0.25, 0.2), (0.1, 0.06), (0.1, 0.06)]
    assert len(steps(*wide, images=512)) == len(steps(*low, images=512)) == 1
    assert steps(*wide, images=100) == steps(*low, images=40) == []


def test_an_alarm_repeats_only_after_the_gap_has_closed_and_the_accuracy_is_back() -> None:
    again = (0.75, 0.35)
    assert steps((0.75, 0.35), (0.63, 0.35), again, (0.45, 0.35), again) == [(100, 0), (500, 400)]
    # a dead network closes the gap too, which is no recovery
    assert steps(*LEARNS, (0.7, 0.1), (0.1, 0.1), again) == [(500, 400)]
    assert steps(*LEARNS, (0.7, 0.1), (0.4, 0.3), again) == [(500, 400), (700, 400)]


def test_after_a_remedy_in_place_there_is_silence_and_then_a_second_alarm() -> None:
    monitor = AccuracyGapMonitor()
    read(monitor, (0.3, 0.2), (0.6, 0.2))
    monitor.silence(500)
    found = read(monitor, *[(0.6, 0.2)] * 3, first=3)
    assert [(alarm.step, alarm.onset) for alarm in found] == [(500, 100)]


def verdicts(*evaluations, **options) -> list[bool]:
    monitor = AccuracyGapMonitor()
    answers = []
    for step, (fgsm, pgd10) in enumerate(evaluations, 1):
        monitor.read(fgsm, pgd10, step, **options)
        answers.append(monitor.is_healthy)
    return answers


def test_healthy_needs_four_fifths_of_the_best_a_gap_without_alarm_and_an_fgsm_accuracy_that_lives() -> None:
    assert verdicts(*LEARNS) == [True] * 4
    assert verdicts(*LEARNS, (0.4, 0.325), (0.4, 0.315), (0.66, 0.4)) == [True] * 5 + [False] * 2
    # collapsed from the first evaluation on: the best is not worth keeping, nor is a gap closed by a dead accuracy
    assert verdicts((0.5, 0.02), (0.06, 0.03), (0.1, 0.1), (0.12, 0.12)) == [False] * 4
    # accuracies that have died from far above, at an equal share of a low best
    assert verdicts((0.9, 0.16), (0.2, 0.16)) == [False, False]
    assert verdicts((None, 0.3), (None, 0.35), (None, 0.2)) == [True, True, False]


def test_before_a_network_has_learned_nothing_is_healthy() -> None:
    assert verdicts((0.1, 0.1), (0.14, 0.12), (0.2, 0.18)) == [False, False, True]
    assert verdicts((0.02, 0.012), (0.06, 0.05), (0.1, 0.09), chance=0.01) == [False, False, True]
    assert verdicts((0.2, 0.18), images=50) == [False]


RUN = [*LEARNS, (0.7, 0.2), (0.1, 0.1), (0.4, 0.33), (0.3, 0.1), (0.3, 0.1), (0.5, 0.4), (0.9, 0.1)]


@pytest.mark.parametrize("cut", range(len(RUN)))
def test_a_saved_monitor_goes_on_as_if_never_stopped(cut: int) -> None:
    first, second = AccuracyGapMonitor(), AccuracyGapMonitor()
    found = read(first, *RUN[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.is_healthy == first.is_healthy
    assert found + read(second, *RUN[cut:], first=cut + 1) == read(AccuracyGapMonitor(), *RUN)


def test_the_state_of_an_earlier_version_is_read() -> None:
    monitor = AccuracyGapMonitor()
    monitor.load_state_dict({"doubled": 2, "healthy": 300, "present": False, "quiet_until": 0})
    (alarm,) = monitor.read(0.7, 0.2, 400)
    assert alarm.onset == 300
