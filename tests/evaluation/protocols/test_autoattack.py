"""The AutoAttack protocols: whole rows, costs by attack, few classes, interruption and resuming."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import trilemma
from trilemma.attacks.autoattack import FEW_CLASSES, STANDARD
from trilemma.cli.main import app
from trilemma.config.presets import AUTOATTACK
from trilemma.config.registry import PROTOCOLS
from trilemma.errors import ConfigError
from trilemma.runs.run_directory import RunDirectory

THREAT = trilemma.Threat("linf", 0.2)
WORK = {"attacked", "broken", "unconfirmed", "seconds", "forwards_per_image", "backwards_per_image"}


@pytest.fixture(autouse=True)
def short_attacks(change_attack):
    """Every attack at 6 steps or 20 queries."""
    for name in AUTOATTACK:
        short: dict[str, Any] = {"queries": 20} if name == "square" else {"steps": 6}
        change_attack(name, lambda search, short=short: partial(search, **short))


@pytest.fixture
def interrupt(change_attack):
    """``interrupt("fab-t")``: that attack is interrupted as it begins."""

    def at(name: str) -> None:
        def stop(*arguments: object, **settings: object) -> torch.Tensor:
            raise KeyboardInterrupt

        change_attack(name, lambda search: stop)

    return at


def same(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its times."""
    attacks = {name: work | {"seconds": 0} for name, work in row["facts"]["attacks"].items()}
    return row | {"seconds": 0, "facts": row["facts"] | {"attacks": attacks}}


def test_a_row_says_what_each_attack_did(toy):
    clf, images = toy.mlp(classes=5), toy.images(30)
    labels = clf(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    rows = trilemma.evaluate(
        clf, (images, labels), ["clean", "pgd-20", "autoattack-standard"], trilemma.Threat("linf", 0.08)
    )
    row = rows["autoattack-standard"]
    assert set(row) == set(rows["pgd-20"]) and row["version"] == 1
    assert row["facts"]["attacked"] == 29 and list(row["facts"]["attacks"]) == list(STANDARD)
    left = 29
    for work in row["facts"]["attacks"].values():
        assert set(work) == WORK
        assert work["attacked"] == left and work["unconfirmed"] == 0
        left -= work["broken"]
    assert row["value"] == left / 30 < rows["clean"]["value"]
    square = row["facts"]["attacks"]["square"]
    assert square["backwards_per_image"] == 0 and square["forwards_per_image"] <= 21 * 1.5


def test_two_classes_have_a_protocol_of_another_name(clf, grey):
    with pytest.raises(ConfigError, match=r"not defined for 2 classes.*use autoattack-few-classes"):
        trilemma.evaluate(clf, grey, ["clean", "autoattack-standard"], THREAT)
    row = trilemma.evaluate(clf, grey, ["autoattack-few-classes"], THREAT)["autoattack-few-classes"]
    assert row["value"] == 0.4  # a shift of 0.2 carries four of the eight over the border
    assert list(row["facts"]["attacks"]) == list(FEW_CLASSES)


def test_a_protocol_that_does_not_suit_is_refused_before_any_work(clf, grey, monkeypatch):
    monkeypatch.setattr("trilemma.evaluation.evaluate._row", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ConfigError):
        trilemma.evaluate(clf, grey, ["clean", "autoattack-standard"], THREAT)


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], prog_name="trilemma")


def test_the_command_line_is_interrupted_with_130_and_goes_on_with_resume(
    run_copy: Path, tmp_path: Path, change_attack
):
    name = "autoattack-standard"
    asked = (run_copy, "--protocol", name, "--images", 40, "--radius", "1/255", "--json", "--quiet")
    whole = json.loads(command(*asked).stdout)[name]
    assert 0 < whole["value"] < 1 and whole["facts"]["attacks"]["fab-t"]["attacked"] > 0
    state = run_copy / "evaluation" / f"{name}.state.safetensors"
    assert not state.exists()
    searches: dict[str, Any] = {}

    def stop(*arguments: object, **settings: object) -> torch.Tensor:
        raise KeyboardInterrupt

    def stopped(search: Any) -> Any:
        searches["fab-t"] = search
        return stop

    change_attack("fab-t", stopped)
    left = command(*asked)
    assert left.exit_code == 130 and left.stdout == ""
    assert "repeat the command with --resume" in left.stderr and state.is_file()
    change_attack("fab-t", lambda search: searches["fab-t"])
    for attack in ("apgd-ce", "apgd-t"):  # what was done is not done again
        change_attack(attack, lambda search: stop)
    resumed = json.loads(command(*asked, "--resume").stdout)[name]
    assert same(resumed) == same(whole) and not state.exists()


def test_a_classifier_file_keeps_its_rows_and_its_state_where_it_is_told(
    run_copy: Path, tmp_path: Path, interrupt
):
    file = RunDirectory(run_copy).best_classifier
    out, name = tmp_path / "out", "autoattack-standard"
    asked = (file, "--protocol", name, "--images", 20, "--quiet")
    kept = (*asked, "--out", out)
    assert command(*kept).exit_code == 0
    row = json.loads((out / "evaluation" / f"{name}.json").read_text())
    assert row["count"] == 20 and [path.name for path in (out / "evaluation").iterdir()] == [f"{name}.json"]
    refused = command(*asked, "--resume")
    assert refused.exit_code == 2 and "add --out DIR" in refused.stderr
    refused = command(run_copy, "--out", out)
    assert refused.exit_code == 2 and "remove --out" in refused.stderr
    interrupt("apgd-ce")
    left = command(*asked)
    assert (
        left.exit_code == 130 and "nothing is saved; with --out DIR, AutoAttack can be resumed" in left.stderr
    )
    left = command(*kept)
    assert left.exit_code == 130 and "with --resume" in left.stderr


def test_both_are_listed():
    assert {"autoattack-standard", "autoattack-few-classes"} <= set(PROTOCOLS.names())
