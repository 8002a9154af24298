"""Any log through the monitors of the training loop: what is read, what is refused, and what the verdict says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilemma import monitors
from trilemma.errors import ConfigError, DataError
from trilemma.monitors.accuracy_gap import AccuracyGapMonitor
from trilemma.monitors.decline import DeclineMonitor
from trilemma.monitors.evaluations import Evaluation, read_evaluation
from trilemma.monitors.log import column_key, read_log

LEARNS = [(0.28, 0.22), (0.38, 0.30), (0.46, 0.36), (0.50, 0.40), (0.51, 0.41), (0.5, 0.40)]
COLLAPSES = [*LEARNS, (0.9, 0.02), (0.9, 0.01)]


def rows(pairs, first: float = 1, step: float = 1) -> list[dict[str, Any]]:
    return [
        {"epoch": first + step * i, "clean": 0.9, "fgsm": fgsm, "pgd": pgd}
        for i, (fgsm, pgd) in enumerate(pairs)
    ]


def test_a_collapse_is_an_alarm_with_its_epoch_and_the_last_healthy_one() -> None:
    (alarm,) = monitors.replay(rows(COLLAPSES))
    assert (alarm.name, alarm.epoch, alarm.since, alarm.step) == ("accuracy-gap", 7, 6, 7)
    assert alarm.message == "held-out accuracy 0.90 under FGSM, 0.02 under PGD, whose best was 0.41"


def verdict(pairs, **options) -> tuple[str, str]:
    result = monitors.judge(rows(pairs), **options)
    return result.state, result.text


def test_the_verdict_names_the_epoch_and_the_best_one_to_keep() -> None:
    keep = "; best epoch to keep: 5, PGD 0.410"
    assert verdict(COLLAPSES) == ("collapsed", f"collapsed at epoch 7{keep}")
    assert verdict([*COLLAPSES, (0.5, 0.4)]) == ("collapsed", f"collapsed at epoch 7 and recovered{keep}")
    assert verdict(LEARNS) == ("healthy", f"healthy{keep}")
    falls = [*LEARNS, *[(0.45, 0.32)] * 6]
    assert verdict(falls) == ("overfit", f"overfit since epoch 7{keep}")
    assert verdict([*falls, *[(0.9, 0.02)] * 2]) == (
        "collapsed", f"collapsed at epoch 13, overfit since epoch 7{keep}"
    )  # fmt: skip
    assert verdict([(0.1, 0.1)] * 7) == (
        "not robust", "not robust: PGD never clearly above chance (0.1); best epoch to keep: 1, PGD 0.100"
    )  # fmt: skip
    assert "too short to judge overfitting: 6 evaluations needed" in verdict(LEARNS[:4])[1]


def test_the_best_epoch_is_a_healthy_one() -> None:
    """At a wide gap the accuracy under PGD may be high, and the next evaluation without it."""
    assert monitors.judge(rows([*LEARNS, (0.9, 0.45), (0.9, 0.0)])).best_epoch == 5


def test_classes_and_images_set_the_limits() -> None:
    fades = [(None, pgd) for pgd in (0.12, 0.1, 0.02, 0.02)]
    assert monitors.replay(rows(fades)) == []
    assert [alarm.epoch for alarm in monitors.replay(rows(fades), classes=100)] == [4]
    assert monitors.replay(rows(fades), held_out_images=60, classes=100) == []


def test_a_clean_accuracy_below_a_tenth_tells_of_more_classes() -> None:
    fades = rows([(None, pgd) for pgd in (0.12, 0.1, 0.02, 0.02)])
    for row, clean in zip(fades, (0.03, 0.2, 0.25, 0.3), strict=True):
        row["clean"] = clean
    assert [alarm.epoch for alarm in monitors.replay(fades)] == [4]
    assert monitors.replay(fades, classes=10) == []


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("PGD-10", "pgd10"), ("test_pgd_acc", "pgd"), ("pgd-50-10", "pgd5010"), ("Test Robust Acc", "robust"),
        ("held_out_pgd10", "pgd10"), ("Test Acc", ""), ("val/clean", "clean"), ("train_pgd", "trainpgd"),
    ],
)  # fmt: skip
def test_names_of_columns_are_read_without_filler_words(name: str, key: str) -> None:
    assert column_key(name) == key


def test_common_spellings_are_one_log() -> None:
    expected = [(row.epoch, row.clean, row.fgsm, row.pgd10) for row in read_log(rows(COLLAPSES))]
    for names in (
        ("epoch", "clean", "fgsm", "pgd10"), ("Epoch", "Test Acc", "test_fgsm", "Test Robust Acc"),
        ("epoch", "held_out_clean", "held_out_fgsm", "held_out_pgd10"), ("EPOCH", "natural", "FGSM", "PGD-20"),
    ):  # fmt: skip
        renamed = [dict(zip(names, row.values(), strict=True)) for row in rows(COLLAPSES)]
        assert [(row.epoch, row.clean, row.fgsm, row.pgd10) for row in read_log(renamed)] == expected


def test_of_a_run_the_training_weights_are_read_and_not_their_average() -> None:
    average = {
        "kind": "epoch",
        "epoch": 1,
        "held_out_clean": 0.8,
        "held_out_fgsm": 0.5,
        "held_out_pgd10": 0.4,
    }
    raw = {"held_out_raw_fgsm": 0.9, "held_out_raw_pgd10": 0.1}
    unread = {"held_out_raw_fgsm": None, "held_out_raw_pgd10": None}
    for added, expected in ((raw, (0.9, 0.1)), (unread, (0.5, 0.4)), ({}, (0.5, 0.4))):
        (evaluation,) = read_log([{**average, **added}])
        assert (evaluation.fgsm, evaluation.pgd10, evaluation.clean) == (*expected, 0.8)


def test_of_several_attacks_pgd_10_is_read() -> None:
    (evaluation,) = read_log([{"epoch": 1, "pgd": 0.4, "pgd-10": 0.5, "pgd-50-10": 0.3}])
    assert evaluation.pgd10 == 0.5


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_files_of_all_kinds_are_one_log(tmp_path: Path) -> None:
    log = rows(COLLAPSES)
    table = [["epoch", "clean", "fgsm", "pgd"], *(list(map(str, row.values())) for row in log)]
    lines = "".join(json.dumps(row) + "\n" for row in log)
    step = json.dumps({"kind": "step", "epoch": 0.5, "clean_accuracy": 0.3}) + "\n"
    run = tmp_path / "run"
    run.mkdir()
    ours = [
        {"kind": "epoch", "epoch": r["epoch"], "held_out_fgsm": r["fgsm"], "held_out_pgd10": r["pgd"]}
        for r in log
    ]
    write(run, "metrics.jsonl", step + "".join(json.dumps(row) + "\n" for row in ours) + '{"kind": "st')
    expected = monitors.replay(log)
    assert len(expected) == 1
    for path in (
        write(tmp_path, "a.csv", "\ufeff" + "\n".join(map(",".join, table)) + "\n"),
        write(tmp_path, "b.csv", "\n".join(map("; ".join, table))),
        write(tmp_path, "c.tsv", "\r\n".join(map("\t".join, table))),
        write(tmp_path, "d.json", json.dumps(log)),
        write(tmp_path, "e.jsonl", lines),
        run,
    ):
        assert monitors.replay(path) == monitors.replay(str(path)) == expected


def test_a_data_frame_is_a_log() -> None:
    pandas = pytest.importorskip("pandas")
    log = rows(COLLAPSES)
    log[0]["fgsm"] = None
    assert monitors.replay(pandas.DataFrame(log)) == monitors.replay(log)
    assert monitors.replay(iter(log)) == monitors.replay(log)


def test_values_that_are_not_there_are_no_evaluations() -> None:
    log: list[dict[str, Any]] = [
        {"epoch": 1, "pgd": "0.3", "fgsm": "", "clean": "nan"},
        {"epoch": 2, "pgd": "", "fgsm": "0.9"},
        {"epoch": 3, "pgd": float("nan")},
        {"epoch": 4, "pgd": 0.35, "fgsm": None, "images": 256, "chance": 0.2},
    ]
    first, last = read_log(log)
    assert (first.epoch, first.pgd10, first.fgsm, first.clean, first.images) == (1, 0.3, None, None, None)
    assert (last.epoch, last.images, last.chance) == (4, 256, 0.2)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ([], "log: is empty"),
        (
            [{"epoch": 1, "fgsm": 0.4}],
            r"no column 'pgd' \(accepted names: pgd10, pgd, .*\); it has epoch, fgsm",
        ),
        ([{"pgd": 0.4}], "no column 'epoch'"),
        ([{"epoch": 1, "pgd": "high"}], "log, row 1: pgd is 'high', not a number$"),
        ([{"epoch": 1, "pgd": "45%"}], "pgd is '45%', not a number; percentages must be divided"),
        (
            [{"epoch": 1, "pgd": 0.4}, {"epoch": 2, "pgd": 45.0}],
            "row 2: pgd is 45, .* percentages must be divided",
        ),
        ([{"epoch": 1, "pgd": 0.4, "clean": 91}], "clean is 91, but an accuracy lies in"),
        ([{"epoch": 1, "pgd": -0.1}], r"pgd is -0.1, but an accuracy lies in \[0, 1\]$"),
        ([{"epoch": 1, "pgd": float("inf")}], "pgd is inf; give a finite number"),
        (
            [{"epoch": 1, "pgd": 0.4}, {"epoch": 1, "pgd": 0.4}],
            "epoch 1 follows epoch 1; epochs must increase",
        ),
        ([{"epoch": None, "pgd": 0.4}], "row 1: no value of 'epoch'"),
        ([{"epoch": 1, "pgd": None}], "no row has a value of 'pgd'"),
        ([{"epoch": 1, "val_pgd": 0.4, "test_pgd": 0.3}], "two columns of pgd, 'val_pgd' and 'test_pgd'"),
        ([(1, 0.4)], "a row is tuple .*, not a mapping"),
        ({"epoch": [1], "pgd": [0.3]}, "log: dict; give a list with one mapping per evaluation"),
        (3, "log: int; give a list"),
    ],
)
def test_a_log_that_cannot_be_judged_is_refused_in_one_line(log: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        monitors.replay(log)
    assert "\n" not in str(error.value)


def test_wrong_options_and_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="held_out_images=0: give a number of images"):
        monitors.replay(rows(LEARNS), held_out_images=0)
    with pytest.raises(ConfigError, match="classes=1: give at least 2"):
        monitors.replay(rows(LEARNS), classes=1)
    with pytest.raises(DataError, match=r"x\.jsonl: line 2 is not JSON"):
        monitors.replay(write(tmp_path, "x.jsonl", '{"epoch": 1, "pgd": 0.3}\noops\n{}\n'))


accuracies = st.floats(0, 1)
evaluations = st.lists(st.tuples(accuracies, accuracies), min_size=1, max_size=40)


@given(st.lists(accuracies, min_size=1, max_size=70), st.floats(0, 0.25))
def test_a_rising_curve_never_alarms(curve: list[float], gap: float) -> None:
    """The gap is at most the limit, and no accuracy is lost."""
    log = [(min(1.0, pgd + gap * 0.99), pgd) for pgd in sorted(curve)]
    assert monitors.replay(rows(log)) == []


@given(evaluations, st.integers(0, 1000), st.integers(1, 20))
def test_the_numbering_of_epochs_does_not_matter(pairs, first: int, step: int) -> None:
    plain = monitors.replay(rows(pairs))
    moved = monitors.replay(rows(pairs, first, step))
    assert [(a.name, a.message, first + step * (a.epoch - 1)) for a in plain] == [
        (a.name, a.message, a.epoch) for a in moved
    ]


@given(evaluations, st.integers(0, 40))
def test_no_later_evaluation_changes_an_alarm(pairs, cut: int) -> None:
    whole = monitors.replay(rows(pairs))
    part = monitors.replay(rows(pairs[: cut + 1]))
    assert part == [alarm for alarm in whole if alarm.epoch <= cut + 1]


@given(evaluations, st.integers(0, 40))
def test_monitors_saved_in_the_middle_say_the_same(pairs, cut: int) -> None:
    def read(gap: AccuracyGapMonitor, decline: DeclineMonitor, part, first: int) -> list[Any]:
        return [
            alarm
            for step, (fgsm, pgd) in enumerate(part, first)
            for alarm in read_evaluation(gap, decline, Evaluation(pgd, fgsm, images=300), step)
        ]

    first = AccuracyGapMonitor(), DeclineMonitor(20)
    second = AccuracyGapMonitor(), DeclineMonitor(20)
    found = read(*first, pairs[:cut], 1)
    for before, after in zip(first, second, strict=True):
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    found += read(*second, pairs[cut:], cut + 1)
    assert found == read(AccuracyGapMonitor(), DeclineMonitor(20), pairs, 1)
