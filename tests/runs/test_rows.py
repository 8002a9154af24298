"""Rows of a run: keyed by protocol, data and threat; the headline is the run's own test set with its own threat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trilemma.errors import ConfigError
from trilemma.pages.html import write_report
from trilemma.runs.read import read_contents
from trilemma.runs.records import file_stem, headline_stem, write_row
from trilemma.text_files import unsealed_text

OWN = {"norm": "linf", "radius": "0.2"}


def row(
    protocol: str = "clean", value: float = 0.9, count: int = 397, data: str = "digits", **other: Any
) -> dict[str, Any]:
    images = f"all {count}" if count == 397 else f"first {count} of 397, stratified order"
    return {
        "protocol": protocol, "version": 1, "quantity": "accuracy", "better": "higher", "value": value,
        "lower": value - 0.02, "upper": value + 0.02, "also": {}, "count": count,
        "data": {"name": data, "split": "test", "images": images},
        "threat": None if protocol == "clean" else OWN, "seed": 0,
        "checkpoint": {"checkpoint": "best", "epoch": 4.0, "data": "digits"}, "seconds": 1.0,
        "device": "cpu", "facts": {},
        **other,
    }  # fmt: skip


def names(run: Path, subfolder: str = "") -> set[str]:
    return {file.stem for file in (run / "evaluation" / subfolder).glob("*.json")}


@pytest.mark.parametrize("own_first", [True, False])
def test_a_row_of_other_data_never_becomes_the_headline(run_copy, own_first):
    rows = [row(), row(value=0.3, data="letters")]
    for each in rows if own_first else rows[::-1]:
        write_row(run_copy, each)
    contents = read_contents(run_copy)
    assert contents.rows["clean"]["value"] == 0.9
    assert [other["value"] for other in contents.others] == [0.3]
    assert names(run_copy) == {"clean", "clean@letters-test"}


def test_a_run_that_was_only_evaluated_on_other_data_has_no_headline(run_copy):
    write_row(run_copy, row(data="letters"))
    contents = read_contents(run_copy)
    assert contents.rows == {} and len(contents.others) == 1
    text = write_report(run_copy).read_text()
    assert "Not run yet: <code>trilemma evaluate" in text and "letters test, all 397" in text


def test_a_row_of_another_radius_stands_beside_the_headline_whatever_the_radius_is_written_like(run_copy):
    write_row(run_copy, row("pgd-20", 0.5))
    write_row(run_copy, row("pgd-20", 0.7, threat={"norm": "linf", "radius": "8/255"}))
    write_row(run_copy, row("pgd-20", 0.1, threat={"norm": "l2", "radius": "0.2"}))
    assert names(run_copy) == {"pgd-20", "pgd-20@digits-test@linf-8-255", "pgd-20@digits-test@l2-0.2"}
    assert read_contents(run_copy).rows["pgd-20"]["value"] == 0.5
    write_row(run_copy, row("pgd-20", 0.6, threat={"norm": "linf", "radius": "1/5"}))
    assert read_contents(run_copy).rows["pgd-20"]["value"] == 0.6


def test_fewer_images_stand_beside_more_with_a_word_and_more_replace_fewer(run_copy, capsys):
    write_row(run_copy, row(count=20))
    write_row(run_copy, row(count=397))
    assert capsys.readouterr().err == ""
    write_row(run_copy, row(count=30, value=0.1))
    assert (
        "clean.json: keeps its row of 397 images; the one of 30 is in clean@digits-test@30-images.json"
        in (capsys.readouterr().err)
    )
    contents = read_contents(run_copy)
    assert contents.rows["clean"]["count"] == 397
    assert [other["count"] for other in contents.others] == [30]
    assert names(run_copy, "earlier") == {"clean-1"}


def test_fewer_images_of_a_newer_checkpoint_replace_those_of_an_older_one_and_say_so(run_copy, capsys):
    write_row(run_copy, row())
    newer = {"checkpoint": "best", "epoch": 9.0, "data": "digits"}
    write_row(run_copy, row(count=30, checkpoint=newer))
    assert "replaces a row of 397 images of another classifier, now in" in capsys.readouterr().err
    assert read_contents(run_copy).rows["clean"]["count"] == 30
    assert names(run_copy, "earlier") == {"clean-1"}


def test_folders_of_one_file_per_protocol_are_read_by_what_the_rows_hold_and_move_on_the_next_row(run_copy):
    folder = run_copy / "evaluation"
    folder.mkdir()
    (folder / "clean.json").write_text(json.dumps(row(value=0.3, data="letters")))
    contents = read_contents(run_copy)
    assert contents.rows == {} and [other["value"] for other in contents.others] == [0.3]
    write_row(run_copy, row())
    assert names(run_copy) == {"clean", "clean@letters-test"}
    assert read_contents(run_copy).rows["clean"]["value"] == 0.9


def test_best_and_last_are_never_of_different_images(run_copy):
    last = {"checkpoint": "last", "epoch": 9.0, "data": "digits"}
    write_row(run_copy, row())
    write_row(run_copy, row(count=20, checkpoint=last), "last")
    contents = read_contents(run_copy)
    assert contents.last == {} and [other["count"] for other in contents.others] == [20]
    write_row(run_copy, row(value=0.8, checkpoint=last), "last")
    assert read_contents(run_copy).last["clean"]["value"] == 0.8


def test_training_on_fewer_images_does_not_make_the_test_set_another_one(run_copy):
    write_row(run_copy, row(checkpoint={"checkpoint": "best", "data": "digits[:300]"}))
    assert set(read_contents(run_copy).rows) == {"clean"}


def test_a_file_name_is_valid_and_of_bounded_length_and_tells_long_names_apart():
    stems = {headline_stem("ood:" + "\u732b/" * 200 + end) for end in "ab"}
    assert len(stems) == 2 and all(len(stem.encode()) <= 180 for stem in stems)
    assert file_stem(row("ood:x y", threat=None)) == "ood-x-y@digits-test"


def test_a_flipped_digit_in_a_row_is_found_and_the_other_rows_are_shown(run_copy, capsys):
    write_row(run_copy, row())
    write_row(run_copy, row("pgd-20", 0.5))
    file = run_copy / "evaluation" / "pgd-20.json"
    file.write_text(file.read_text().replace('"value": 0.5', '"value": 0.7'))
    contents = read_contents(run_copy)
    assert list(contents.rows) == ["clean"] and contents.others == []
    line = (
        f"warning: left out: {file}: damaged or edited: its content does not match the digest stored in it; "
    )
    assert capsys.readouterr().err == line + "delete it and measure again\n"
    # A new row does not destroy what may be repaired by hand.
    write_row(run_copy, row("pgd-20", 0.5))
    assert "moved to" in capsys.readouterr().err
    assert names(run_copy) == {"clean", "pgd-20"} and names(run_copy, "earlier") == {"pgd-20-1"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("{", "is not JSON (Expecting"),
        ("[]", "is not a JSON object"),
        ("\udcff", "line 1 is not UTF-8 (byte 0xff)"),
        ('{"protocol": "clean", "protocol": "pgd-20"}', "is not JSON ('protocol' is given twice)"),
    ],
)
def test_a_file_that_is_no_record_is_left_out_and_named(run_copy, capsys, text, reason):
    write_row(run_copy, row())
    damaged = run_copy / "evaluation" / "pgd-20.json"
    damaged.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert list(read_contents(run_copy).rows) == ["clean"]
    assert f"left out: {damaged}: {reason}" in capsys.readouterr().err


def test_a_row_of_an_earlier_version_has_no_digest_and_is_read(run_copy):
    (run_copy / "evaluation").mkdir()
    (run_copy / "evaluation" / "clean.json").write_text(json.dumps(row(value=0.25)))
    assert read_contents(run_copy).rows["clean"] == row(value=0.25)


def test_a_key_given_twice_in_the_configuration_of_a_run_is_an_error(run_copy):
    file = run_copy / "config.yaml"
    file.write_text(unsealed_text(file.read_text()) + "threat: {norm: l2, radius: 0.5}\n")
    with pytest.raises(
        ConfigError, match=r"config\.yaml: line \d+: threat is given a second time \(first on line"
    ):
        read_contents(run_copy)
