"""Rows of purified images: equal to plain ones without a step, never in their place, and never without an attack."""

from __future__ import annotations

import json

import pytest

import trilemma
from trilemma.defences import Purification
from trilemma.errors import ConfigError
from trilemma.evaluation.evaluate import evaluate_run
from trilemma.evaluation.lint.rows import purification_findings
from trilemma.figures.robustness import robustness_curves
from trilemma.pages.gather import comparison_table
from trilemma.pages.html import key_metrics, ordered_rows, write_report
from trilemma.runs.read import read_contents

THREAT = trilemma.Threat("linf", "0.03")


@pytest.fixture
def data(toy):
    """24 images, labelled as the network answers, except every sixth."""
    images = toy.images(24)
    labels = toy.mlp()(images).argmax(1)
    labels[::6] = (labels[::6] + 1) % 3
    return images, labels


def test_without_a_step_the_rows_are_those_of_the_plain_classifier(toy, data):
    names = ["clean", "pgd-20", "pgd-50-10"]
    plain = trilemma.evaluate(toy.mlp(), data, names, THREAT, seed=3)
    purified = trilemma.evaluate(toy.mlp(), data, names, THREAT, seed=3, purify=0)
    assert list(purified) == [f"purify-0:{name}" for name in names]
    keys = ("value", "lower", "upper", "chance", "count", "data", "threat", "checkpoint", "quantity")
    for name in names:
        assert {key: purified[f"purify-0:{name}"][key] for key in keys} == {
            key: plain[name][key] for key in keys
        }
        assert (
            "purification" not in plain[name] and purified[f"purify-0:{name}"]["purification"]["steps"] == 0
        )
    assert 0 < plain["pgd-20"]["value"] < plain["clean"]["value"] < 1
    assert purified["purify-0:pgd-20"]["facts"]["attacked"] == plain["pgd-20"]["facts"]["attacked"]
    assert "purified-not-attacked" not in str(purified["purify-0:clean"]["lint"])


def test_rows_are_functions_of_the_seed_and_not_of_the_batch_size(toy, data):
    settings = Purification(2, 0.02, 0.2, draws=2, judgements=3, gradient="bpda")
    data = data[0][:9], data[1][:9]

    def rows(seed: int, size: int) -> dict[str, object]:
        found = trilemma.evaluate(
            toy.mlp(),
            data,
            ["clean", "pgd-20"],
            THREAT,
            seed=seed,
            batch_size=size,
            lint=False,
            purify=settings,
        )
        return {name: [row["value"], row["also"]] for name, row in found.items()}

    assert rows(0, 24) == rows(0, 24)
    assert rows(0, 4) == rows(0, 24)
    assert rows(1, 24) != rows(0, 24)


def test_the_strongest_attack_of_each_image_counts(toy, data):
    settings = Purification(2, 0.05, 0, gradient="both")
    (row,) = trilemma.evaluate(toy.mlp(), data, ["pgd-20"], THREAT, lint=False, purify=settings).values()
    assert row["value"] <= min(row["also"].values()) and row["also"]["clean"] > row["value"]
    # nothing is random, so that one purification is enough
    assert (row["purification"]["draws"], row["purification"]["judgements"]) == (1, 1)
    (bpda,) = trilemma.evaluate(
        toy.mlp(), data, ["pgd-20"], THREAT, lint=False, purify=Purification(2, 0.05, 0, gradient="bpda")
    ).values()
    assert list(bpda["also"]) == ["clean", "plain attack", "bpda"]
    assert bpda["also"]["bpda"] == row["also"]["bpda"] and bpda["value"] >= row["value"]
    json.dumps(row)


def test_settings_other_than_the_default_are_in_the_name():
    assert Purification(10).row_name("pgd-20", True) == "purify-10:pgd-20:eot-10"
    assert Purification(10).row_name("clean", False) == "purify-10:clean"
    other = Purification(4, 0.125, 0, gradient="bpda")
    assert other.row_name("pgd-20", True) == "purify-4,step-0.125,noise-0:pgd-20:bpda"
    assert Purification(4, draws=3).row_name("pgd-50-10", True) == "purify-4:pgd-50-10:eot-3"


@pytest.mark.parametrize(
    ("protocols", "settings", "message"),
    [
        (
            ["autoattack-standard"],
            {"purify": 5},
            "autoattack-standard cannot .* use clean, pgd-20, pgd-50-10",
        ),
        (["clean", "ece"], {"purify": 5}, "ece cannot be measured through a purifier"),
        (["clean"], {"purify": -1}, "steps=-1; must be at least 0"),
        (["pgd-20"], {"purify": 5, "save_adversarial": "new.npz"}, "--save-adversarial: not with --purify"),
    ],
)
def test_what_cannot_go_through_a_purifier_is_one_line(toy, data, protocols, settings, message):
    clf = toy.mlp(classes=4)
    with pytest.raises(ConfigError, match=message) as caught:
        trilemma.evaluate(clf, (data[0], data[1]), protocols, THREAT, **settings)
    assert "\n" not in str(caught.value)


def test_a_purified_row_without_an_attack_through_the_purifier_is_a_finding(toy, data):
    settings = Purification(1, 0.02, draws=2, judgements=2)
    rows = trilemma.evaluate(toy.mlp(), data, ["clean", "pgd-20"], THREAT, purify=settings)
    names = [finding["name"] for row in rows.values() for finding in row["lint"]["findings"]]
    assert "purified-not-attacked" not in names
    alone = trilemma.evaluate(toy.mlp(), data, ["clean"], THREAT, purify=settings)
    (row,) = alone.values()
    assert "purified-not-attacked" in [finding["name"] for finding in row["lint"]["findings"]]
    clean, attacked = rows.values()
    assert purification_findings([clean, attacked]) == []
    # another purifier has not been attacked
    other = {**clean, "purification": {**clean["purification"], "steps": 2}}
    assert "purify-1" in purification_findings([other, attacked])[0].seen
    # an attack on the classifier alone, as somebody may record it, is refused also beside the other row
    ignoring = {
        **attacked,
        "protocol": "mine",
        "purification": {**attacked["purification"], "attack": "plain"},
    }
    (finding,) = purification_findings([clean, attacked, ignoring])
    assert finding.severity == "error" and "mine" in finding.seen and "ignores the purifier" in finding.seen


def test_purified_rows_of_a_run_are_beside_the_plain_ones_and_never_for_them(run_copy):
    settings = Purification(1, draws=1, judgements=1, gradient="bpda")
    plain = evaluate_run(run_copy, images=10, lint=False)
    evaluate_run(run_copy, images=10, lint=False, purify=settings)
    radii = [trilemma.Threat("linf", radius) for radius in ("0.05", "0.1")]
    evaluate_run(run_copy, ["pgd-20"], threat=radii, images=10, lint=False, purify=settings)
    files = {file.name for file in (run_copy / "evaluation").glob("*.json")}
    assert {"clean.json", "pgd-20.json", "purify-1-clean.json", "purify-1-pgd-20-bpda-eot-1.json"} <= files
    run = read_contents(run_copy)
    assert {name: run.rows[name]["value"] for name in plain} == {n: row["value"] for n, row in plain.items()}
    shown = [row["protocol"] for row in ordered_rows(run)]
    assert shown == ["clean", "pgd-20", "purify-1:clean", "purify-1:pgd-20:bpda,eot-1"]
    assert [row["protocol"] for *_, row in key_metrics(run) if row] == ["clean", "pgd-20"]
    assert robustness_curves([*run.rows.values(), *run.others]) == {}
    columns = [column for column in comparison_table([run_copy]).columns if not column.purified]
    assert [column.protocol for column in columns] == ["clean", "pgd-20"]
    assert "purify-1:pgd-20:bpda,eot-1" in write_report(run_copy).read_text()
