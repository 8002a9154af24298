"""``trilemma list`` shows every name of every registry, for people and for machines."""

from __future__ import annotations

import json

import pytest

from trilemma.cli.list import KINDS, REGISTRIES
from trilemma.config.chains import PRESETS
from trilemma.config.recipe import recipe_names


@pytest.mark.parametrize("kind", KINDS)
def test_json_covers_the_registry(trilemma, kind):
    rows = json.loads(trilemma("list", kind, "--json").stdout)
    names = recipe_names() if kind == "recipes" else REGISTRIES[kind].names()
    assert [row["name"] for row in rows] == names
    assert all(row["summary"] for row in rows)


@pytest.mark.parametrize("kind", list(REGISTRIES))
def test_rows_carry_paper_and_cost(trilemma, kind):
    rows = {row["name"]: row for row in json.loads(trilemma("list", kind, "--json").stdout)}
    for name, row in REGISTRIES[kind].rows().items():
        assert (rows[name]["paper"], rows[name]["cost"]) == (row.paper, row.cost)


def test_json_of_everything_has_every_kind(trilemma):
    assert tuple(json.loads(trilemma("list", "--json").stdout)) == KINDS


def test_a_row_is_a_line_that_can_be_searched(trilemma):
    lines = trilemma("list", "methods").stdout.splitlines()
    assert (
        sum("arXiv 2505.19459" in line and line.split()[0] == "eb-jdat" for line in lines if line.strip())
        == 1
    )


def test_a_row_added_at_run_time_is_listed(trilemma, monkeypatch):
    registry = REGISTRIES["methods"]
    monkeypatch.setattr(registry, "_rows", dict(registry._rows))
    registry.add("mine", "my.module:Mine", summary="my own")
    assert "my own" in trilemma("list", "methods").stdout


def test_published_results_are_listed_by_leaderboard(trilemma):
    text = trilemma("list", "published").stdout
    assert text.startswith("RobustBench (https://robustbench.github.io) of 2025-03-31, MIT licence")
    for title in ("cifar10, linf 8/255", "cifar10, l2 0.5", "cifar10, corruptions", "imagenet, linf 4/255"):
        assert title in text.splitlines()
    line = next(line for line in text.splitlines() if line.startswith(" Carmon2019Unlabeled"))
    assert line.split() == ["Carmon2019Unlabeled", "89.7%", "59.5%", "WRN-28-10"]
    rows = json.loads(trilemma("list", "published", "--json").stdout)
    assert (
        len(rows) == 211
        and rows[0]["clean"] == 0.9368
        and rows[0]["link"] == "https://arxiv.org/abs/2404.09349"
    )


def test_presets_of_samplers_are_listed_with_numbers_and_source(trilemma):
    lines = trilemma("list", "samplers").stdout.splitlines()
    for name, preset in PRESETS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert (
            preset.source in line
            and f"{preset.steps} steps" in line
            and f"step_size {preset.step_size:g}" in line
        )
    rows = json.loads(trilemma("list", "samplers", "--json").stdout)
    listed = {preset["name"]: (row["name"], preset) for row in rows for preset in row["presets"]}
    assert set(listed) == set(PRESETS)
    for name, preset in PRESETS.items():
        sampler, row = listed[name]
        assert sampler == preset.sampler and row["source"] == preset.source
        assert row.items() >= preset.chain().items()
