"""Figures show the data they are given, at the place they are given for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.quiver import Quiver

from trilemma.figures.confusion import confusion_key, draw_confusion
from trilemma.figures.counterfactual import draw_way
from trilemma.figures.energy_landscape import (
    draw_deltas,
    draw_histograms,
    draw_moves,
    draw_plane,
    draw_quiver,
    energy_range,
    spread_out,
)
from trilemma.figures.robustness import draw_robustness, robustness_curves
from trilemma.figures.sample_grid import draw_grid
from trilemma.figures.style import DARK, LIGHT, render
from trilemma.figures.trade_off import draw_generation, draw_trade_off
from trilemma.figures.training_curves import CURVES, draw_accuracy, draw_log, draw_loss
from trilemma.metrics.energy_landscape import EnergyPoints

ROWS = [
    {
        "kind": "step",
        "step": s,
        "epoch": s / 10,
        "loss": 1 / s,
        "energy_clean": -1.0,
        "delta_marginal": 0.1,
        "delta_joint": 0.2,
    }
    for s in range(1, 50)
]
EVENTS = [
    {"epoch": 2.0, "kind": "alarm", "name": "divergence"},
    {"epoch": 3.0, "kind": "alarm", "name": "divergence"},
    {"epoch": 3.0, "kind": "warning", "name": "slow"},
]


def _points(shift: float) -> EnergyPoints:
    marginal = torch.randn(100, generator=torch.Generator().manual_seed(0)) + shift
    return EnergyPoints(marginal, marginal + 1)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve[0])
def test_every_curve_draws_in_both_themes(curve):
    light, dark = render(lambda theme: curve[1](ROWS, EVENTS, theme))
    assert light.startswith(b"\x89PNG")
    assert light != dark


def test_alarms_are_marked_where_they_rang_and_named():
    (axes,) = draw_loss(ROWS, EVENTS, LIGHT).axes
    marks = [np.asarray(line.get_xdata()) for line in axes.lines if line.get_color() == LIGHT.alarm]
    assert [tuple(mark) for mark in marks] == [(2.0, 2.0), (3.0, 3.0)]
    assert [text.get_text() for text in axes.texts] == ["divergence", "divergence"]


def test_remedies_and_ends_are_told_apart_from_alarms():
    events = [
        {"epoch": 1.0, "kind": "remedy", "name": "rollback"},
        {"epoch": 1.0, "kind": "remedy", "name": "der"},
        {"epoch": 2.0, "kind": "alarm", "name": "gradient-cosine"},
        {"epoch": 4.0, "kind": "stop", "name": "early-stop"},
        {"epoch": 3.0, "kind": "stop", "name": "interrupted"},
    ]
    (axes,) = draw_loss(ROWS, events, LIGHT).axes
    marks = {
        (line.get_color(), line.get_linestyle()): np.asarray(line.get_xdata())[0]
        for line in axes.lines
        if len(np.asarray(line.get_xdata())) == 2
    }
    assert marks[(LIGHT.alarm, "-")] == 2.0 and (LIGHT.muted, ":") in marks
    assert [text.get_text() for text in axes.texts] == ["rollback, der", "early-stop", "gradient-cosine"]


def test_accuracy_under_one_step_stands_beside_that_under_ten():
    rows = [*ROWS, {"kind": "epoch", "step": 40, "epoch": 4.0, "held_out_clean": 0.9, "held_out_pgd10": 0.1,
                    "held_out_fgsm": 0.6}]  # fmt: skip
    (axes,) = draw_accuracy(rows, [], LIGHT).axes
    points = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert points["FGSM, held out"] == [0.6] and points["PGD-10, held out"] == [0.1]


def test_the_training_weights_stand_beside_their_average_where_there_is_one():
    row = {"kind": "epoch", "step": 40, "epoch": 4.0, "held_out_clean": 0.9, "held_out_pgd10": 0.4,
           "held_out_fgsm": 0.5, "held_out_raw_pgd10": 0.1, "held_out_raw_fgsm": 0.6}  # fmt: skip
    (axes,) = draw_accuracy([*ROWS, row], [], LIGHT).axes
    points = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert points["PGD-10, held out"] == [0.4]
    assert (points["FGSM, raw"], points["PGD-10, raw"]) == ([0.6], [0.1])
    same = row | {"held_out_raw_pgd10": 0.4, "held_out_raw_fgsm": 0.5}
    (axes,) = draw_accuracy([*ROWS, same], [], LIGHT).axes
    assert not any("raw" in str(line.get_label()) for line in axes.lines)


def test_values_that_are_not_finite_do_not_hide_the_others():
    rows = [*ROWS, {"kind": "step", "step": 50, "epoch": 5.0, "loss": float("nan")}]
    (axes,) = draw_loss(rows, [], LIGHT).axes
    assert all(np.isfinite(line.get_ydata()).all() for line in axes.lines)


def test_histograms_hold_every_image_also_those_beyond_the_axis():
    points = {
        "clean": _points(0),
        "generated": EnergyPoints(torch.full((50,), -1e4), torch.full((50,), -1e4)),
    }
    figure = draw_histograms(points, DARK, {"marginal": (-3, 3), "joint": (-3, 3)})
    for axes in figure.axes:
        for outline in axes.patches:
            assert np.asarray(outline.get_path().vertices)[:, 1].max() > 0
        assert axes.get_xlim() == (-3, 3)


def test_an_energy_axis_covers_all_sets():
    low, high = energy_range({"clean": _points(0), "adversarial": _points(20)}, "joint")
    assert low < 0
    assert high > 20


def test_arrows_go_from_clean_to_adversarial():
    figure = draw_quiver(_points(0), _points(2), LIGHT)
    (quiver,) = [c for c in figure.axes[0].collections if isinstance(c, Quiver)]
    np.testing.assert_allclose(np.asarray(quiver.U), 2, atol=1e-5)
    np.testing.assert_allclose(np.asarray(quiver.V), 2, atol=1e-5)
    np.testing.assert_allclose(np.asarray(quiver.get_array()), 8**0.5, atol=1e-5)


def _move(aim: str, marginal: float, joint: float) -> dict[str, object]:
    return {"aim": aim, "marginal": {"mean": marginal}, "joint": {"mean": joint}}


def test_the_plane_has_a_point_per_image_and_shows_single_images_far_away_too():
    sets = {name: _points(seed) for seed, name in enumerate(("clean", "adversarial", "generated"))}
    far = EnergyPoints(torch.tensor([40.0]), torch.tensor([-90.0]))
    for theme in (LIGHT, DARK):
        (axes,) = draw_plane(sets, {"mine": far}, theme).axes
        lines = {line.get_label(): line for line in axes.lines}
        for name, points in sets.items():
            assert np.asarray(lines[name].get_xdata()).tolist() == points.marginal.tolist()
            assert np.asarray(lines[name].get_ydata()).tolist() == points.joint.tolist()
            assert lines[name].get_color() == theme.sets[name]
        (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert low < 40 < high and bottom < -90 < top
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [*sets, "mine"]


def test_the_way_of_a_counterfactual_has_its_energies_above_its_confidences():
    keys = (
        "marginal energy", "original energy", "target energy", "original confidence", "target confidence", "distance",
    )  # fmt: skip
    way = {key: [float(number), number + 0.5] for number, key in enumerate(keys)}
    energies, confidences = draw_way(way, ("cat", "dog"), "distance").axes
    shown = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in energies.lines}
    assert shown == {"E(x)": [0, 0.5], "E(x, cat)": [1, 1.5], "E(x, dog)": [2, 2.5]}
    assert {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in confidences.lines} == {
        "cat": [3, 3.5], "dog": [4, 4.5],
    }  # fmt: skip
    assert all(np.asarray(line.get_xdata()).tolist() == [5, 5.5] for line in energies.lines)


def test_each_attack_is_a_named_point_at_its_means_and_its_aim_a_marker():
    moves = {
        "clean": _move("", -9, -9),
        "attacks": {"pgd": _move("loss", -12, 0), "fab": _move("class", -6, -5)},
    }
    (axes,) = draw_moves(moves, LIGHT).axes
    points = {
        (line.get_marker(), *np.concatenate(line.get_data()).tolist())
        for line in axes.lines
        if len(np.asarray(line.get_xdata())) == 1
    }
    assert points == {("s", -9, -9), ("o", -12, 0), ("D", -6, -5)}
    assert {"pgd", "fab"} <= {text.get_text() for text in axes.texts}
    legend = axes.get_legend()
    assert legend is not None and len(legend.get_texts()) == 3


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_histograms_of_deltas_hold_every_image_on_the_right_side(shift):
    figure = draw_deltas(_points(0), {"pgd": _points(shift), "square": _points(-shift)}, DARK)
    assert [axes.get_ylabel() for axes in figure.axes] == ["pgd", "", "square", ""]
    for axes, mean in zip(figure.axes, (-shift, -shift, shift, shift), strict=True):
        bars = [patch for patch in axes.patches if patch.get_height() > 0]  # type: ignore[attr-defined]
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1)  # type: ignore[attr-defined]
        assert all(bar.get_x() <= mean <= bar.get_x() + bar.get_width() for bar in bars)  # type: ignore[attr-defined]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted), st.floats(0.01, 0.3))
def test_labels_stand_apart_in_order_and_inside(heights, gap):
    found = spread_out(heights, gap, 0.96)
    room = min(gap, 0.96 / max(len(heights) - 1, 1))
    assert all(after - before >= room - 1e-9 for before, after in pairwise(found))
    assert found[0] >= -1e-9 and found[-1] <= 0.96


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_has_one_labelled_row_per_class_start_left_sample_right(channels):
    labels = torch.arange(3).repeat_interleave(2)
    starts, samples = torch.zeros(6, channels, 4, 4), torch.ones(6, channels, 4, 4)
    left, right = draw_grid(starts, samples, labels, ["cat", "dog", "owl"], 7, DARK).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["cat", "dog", "owl"]
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("start", "after 7 steps")
    dark, bright = (np.asarray(axes.images[0].get_array()) for axes in (left, right))
    assert dark[:4, :4].max() == 0
    assert bright[:4, :4].min() == 1
    assert dark.shape == bright.shape == (3 * 5 - 1, 2 * 5 - 1, 3)


def test_the_trade_off_shows_each_run_at_its_values():
    rows = [{"value": v, "lower": v - 0.05, "upper": v + 0.05} for v in (0.9, 0.5, 0.8, 0.6)]
    (axes,) = draw_trade_off([("a", rows[0], rows[1]), ("b", rows[2], rows[3])], "pgd-20", LIGHT).axes
    places = [tuple(float(v[0]) for v in container[0].get_data()) for container in axes.containers]
    assert places == [(0.9, 0.5), (0.8, 0.6)]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_generation_stands_at_its_values_with_less_to_the_right_and_no_invented_interval():
    robust = {"value": 0.5, "lower": 0.45, "upper": 0.55}
    figures = [{"value": v, "lower": None, "upper": None} for v in (1.5, 2.5)]
    runs = [(name, figure, robust) for name, figure in zip("ab", figures, strict=True)]
    (axes,) = draw_generation(runs, "distance", "pgd-20", LIGHT, run_indices=[0, 2]).axes
    places = [tuple(float(v[0]) for v in container[0].get_data()) for container in axes.containers]
    assert places == [(1.5, 0.5), (2.5, 0.5)]
    assert axes.get_xlim()[0] > 2.5 and axes.get_xlim()[1] == 0
    assert [len(container[2]) for container in axes.containers] == [1, 1]  # bars of the robust accuracy alone
    assert axes.containers[1][0].get_color() == LIGHT.runs[2]


def test_the_confusion_matrix_shows_shares_of_true_classes_and_names_both_axes():
    (axes,) = draw_confusion([[3, 1], [0, 0]], ["cat", "$dog$"], DARK).axes
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), np.array([[0.75, 0.25], [0, 0]]))
    assert [text.get_text() for text in axes.texts] == ["75", "25"]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [text.get_text() for text in labels] == ["cat", "$dog$"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "answered class")


def test_a_large_confusion_matrix_has_class_numbers_and_its_key_all_names():
    names = [f"class {k}" for k in range(100)]
    (axes,) = draw_confusion(np.eye(100, dtype=int).tolist(), names).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [str(k) for k in range(0, 100, 10)]
    assert len(axes.texts) == 0
    assert confusion_key(names)[42] == ("42", "class 42") and len(confusion_key(names)) == 100
    assert confusion_key(["cat", "dog"]) == []


def _attacked(radius: str, value: float, **other: object) -> dict[str, object]:
    return {
        "protocol": "pgd-20", "version": 1, "threat": {"norm": "linf", "radius": radius}, "value": value,
        "lower": value - 0.1, "upper": value + 0.1, "count": 10, "data": "a", "checkpoint": {}, "chance": 0.25, **other,
    }  # fmt: skip


def test_a_robustness_curve_goes_from_clean_through_its_radii_in_order():
    rows = [_attacked("8/255", 0.3), _attacked("4/255", 0.5), _attacked("0.5", 0.2, data="other images")]
    curves = robustness_curves([*rows, {**_attacked("1", 0.9), "threat": None}])
    assert [row["value"] for row in curves["linf"]["pgd-20"]] == [0.5, 0.3]
    (axes,) = draw_robustness(curves["linf"], {"value": 0.9, "lower": 0.8, "upper": 1.0}).axes
    line = axes.containers[0][0]
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [0, 4 / 255, 8 / 255])
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [0.9, 0.5, 0.3])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "4/255", "8/255"]
    assert 0.25 in [np.asarray(other.get_ydata())[0] for other in axes.lines]


def test_of_two_checkpoints_the_first_has_the_curve():
    rows = [
        _attacked(radius, value, checkpoint=name)
        for name in "ab"
        for radius, value in (("1", 0.3), ("2", 0.1))
    ]
    assert {row["checkpoint"] for row in robustness_curves(rows)["linf"]["pgd-20"]} == {"a"}


def test_one_radius_is_no_curve():
    assert robustness_curves([_attacked("8/255", 0.3), _attacked("8/255", 0.3, version=2)]) == {}


def test_a_log_has_a_line_per_accuracy_a_mark_per_alarm_and_a_ring_at_the_best_epoch():
    rows = [{"epoch": e, "clean": 0.9, "fgsm": None if e == 1 else 0.5, "pgd": 0.1 * e} for e in (1, 2, 3)]
    (axes,) = draw_log(rows, [{"kind": "alarm", "name": "accuracy-gap", "epoch": 2}], 3).axes
    lines = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert lines["PGD"] == [[1, 0.1], [2, 0.2], [3, pytest.approx(0.3)]]
    assert lines["FGSM"] == [[2, 0.5], [3, 0.5]]
    assert lines["best epoch"] == [[3, pytest.approx(0.3)]]
    assert [text.get_text() for text in axes.texts] == ["accuracy-gap"]
