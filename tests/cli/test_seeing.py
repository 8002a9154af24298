"""``evaluate``, ``generate``, ``diagnose``, ``report`` and ``compare`` on a run of random weights: small but whole."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trilemma as package
from trilemma.config.chains import PRESETS
from trilemma.runs.records import read_record


def test_evaluate_a_run_prints_rows_and_keeps_them(trilemma, run_folder):
    result = trilemma("evaluate", run_folder, "--protocol", "clean", "--json")
    rows = json.loads(result.stdout)
    assert rows["clean"]["count"] == 397
    assert read_record(run_folder / "evaluation" / "clean.json") == rows["clean"]


def test_evaluate_equals_the_library(trilemma, run_folder):
    row = json.loads(trilemma("evaluate", run_folder, "--images", 40, "--seed", 3, "--json").stdout)["pgd-20"]
    same = package.evaluate(package.load(run_folder), "digits", ["pgd-20"], images=40, seed=3)["pgd-20"]
    assert {**row, "seconds": 0} == {**same, "seconds": 0}


def test_evaluate_prints_interval_data_and_threat(trilemma, run_folder):
    lines = trilemma("evaluate", run_folder, "--images", 20, "--radius", "8/255").stdout.splitlines()
    (line,) = [line for line in lines if "pgd-20" in line]
    assert "linf 8/255" in line and "digits test" in line and "% to " in line


def test_evaluate_prints_best_and_last_where_both_exist(trilemma, run_folder):
    last = package.load(run_folder)
    last.about = {**last.about, "checkpoint": "last", "epoch": 9.0}
    last.save(run_folder / "checkpoints" / "last" / "classifier.safetensors")
    arguments = ("evaluate", run_folder, "--protocol", "clean", "--images", 20)
    lines = [line for line in trilemma(*arguments).stdout.splitlines() if line.strip().startswith("clean")]
    assert ["best" in line for line in lines] == [True, False] and "last, epoch 9" in lines[1]
    assert list(json.loads(trilemma(*arguments, "--json").stdout)) == ["clean", "clean@last"]
    only = json.loads(trilemma(*arguments, "--checkpoint", "best", "--json").stdout)
    assert list(only) == ["clean"]


def test_evaluate_a_file_on_the_data_it_names(trilemma, run_folder):
    file = run_folder / "checkpoints" / "best" / "classifier.safetensors"
    result = trilemma("evaluate", file, "--protocol", "clean", "--json")
    assert json.loads(result.stdout)["clean"]["data"]["name"] == "digits"


OWN = """
import torch
def network():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
def number():
    return 3
"""


def test_evaluate_a_network_of_ones_own(trilemma, tmp_path):
    (tmp_path / "ownnets.py").write_text(OWN)
    options = ["--data", "digits", "--images", "20", "--radius", "0.1", "--json"]
    rows = json.loads(trilemma("evaluate", "--model", "ownnets:network", *options).stdout)
    assert rows["pgd-20"]["threat"] == {"norm": "linf", "radius": "0.1"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "ownnets", "--data", "digits"], "model ownnets: not of the form MODULE:FUNCTION"),
        (
            ["--model", "ownnets:netwrk", "--data", "digits"],
            "has no function 'netwrk'. Did you mean 'network'?",
        ),
        (["--model", "nowhere:network", "--data", "digits"], "no module named 'nowhere'"),
        (["--model", "ownnets:number", "--data", "digits"], "returned int; return a torch.nn.Module"),
        (["--model", "ownnets:network"], "the number of classes of this network is not known; add --classes"),
        (
            ["--model", "ownnets:network", "--data", "digits"],
            "no threat model is stored with this classifier",
        ),
        (["--model", "ownnets:network", "--data", "digits", "--norm", "l2"], "--norm l2: requires --radius"),
        (["--model", "ownnets:network", "--data", "digit"], "'digit' is neither a data set nor a path"),
    ],
)
def test_mistakes_about_ones_own_network(mistake, tmp_path, arguments, expected):
    (tmp_path / "ownnets.py").write_text(OWN)
    assert expected in mistake("evaluate", *arguments)


def test_generate_writes_images_and_prints_the_figures_of_start_and_sample(trilemma, run_folder):
    result = trilemma("generate", run_folder, "--per-class", 1, "--start", "uniform", "--steps", 2)
    assert result.exit_code == 0, result.output
    grid, folder = (line.split(": ")[1] for line in result.stdout.splitlines()[-2:])
    with Image.open(grid) as picture:
        assert picture.width > 0
    assert len(list((run_folder / "samples").glob("*/*.png"))) == 10
    assert folder.startswith(str(run_folder / "samples"))
    assert [line.split()[0] for line in result.stdout.splitlines()[2:-2]] == ["start", "sample", "real"]


def test_generate_is_a_function_of_its_seed(trilemma, run_folder):
    def samples(seed: int, out: str) -> Any:
        trilemma("generate", run_folder, "--per-class", 1, "--steps", 2, "--seed", seed, "--out", out)
        (file,) = run_folder.parent.glob(f"{out}/*.npz")
        return np.load(file)["samples"]

    first, again, other = samples(1, "a"), samples(1, "b"), samples(2, "c")
    assert (first == again).all()
    assert (first != other).any()


def test_generate_takes_a_step_size(trilemma, run_folder):
    arguments = ("generate", run_folder, "--per-class", 1, "--sampler", "normalised", "--steps", 1, "--json")
    for step_size in (None, 0.5):
        given = () if step_size is None else ("--step-size", step_size)
        record = json.loads(trilemma(*arguments, *given).stdout)
        assert record["options"] == ({} if step_size is None else {"step_size": 0.5})


def test_generate_runs_a_preset_with_options_over_it_and_says_what_stopping_saved(trilemma, run_folder):
    arguments = ("generate", run_folder, "--per-class", 2, "--preset", "der", "--steps", 30, "--clamp", 0.5)
    record = json.loads(trilemma(*arguments, "--start", "local-pca:k=20", "--json").stdout)
    chain = PRESETS["der"].chain() | {"steps": 30, "start": "local-pca:k=20"}
    assert {key: record[key] for key in ("preset", "start", "sampler", "energy", "steps")} == {
        key: ({"preset": "der"} | chain)[key] for key in ("preset", "start", "sampler", "energy", "steps")
    }
    assert record["options"] == PRESETS["der"].step() | {"clamp": 0.5}
    assert set(record["stopping"]) == {"stopped", "mean_steps", "forward_passes", "without_stopping"}
    lines = trilemma(*arguments).stdout.splitlines()
    assert sum(line.startswith("stopping: ") and "of 30 steps on average" in line for line in lines) == 1
    assert json.loads(trilemma(*arguments, "--no-stop", "--json").stdout)["stopping"] is None


def test_generate_from_a_file_needs_the_data_that_it_names(trilemma, mistake, run_folder):
    file = run_folder / "checkpoints" / "best" / "classifier.safetensors"
    arguments = ("generate", file, "--per-class", 1, "--steps", 1, "--start", "local-pca", "--out", "o")
    assert mistake(*arguments, "--quiet") == (
        "start: 'local-pca' needs training images; pass data=... (on the command line --data)"
    )
    result = trilemma(*arguments, "--data", "digits", "--json")
    assert json.loads(result.stdout)["reference"] == {"name": "digits", "images": 1200}
    assert "needs the chains of training" in mistake("generate", file, "--start", "replay-buffer", "--quiet")


def test_generate_refuses_a_classifier_as_its_own_judge(mistake, run_folder):
    line = mistake("generate", run_folder, "--per-class", 1, "--steps", 1, "--namer", run_folder)
    assert "cannot evaluate its own samples" in line


def test_diagnose_writes_figures_and_prints_three_sets(trilemma, run_folder):
    result = trilemma("diagnose", run_folder, "--images", 10)
    assert result.exit_code == 0, result.output
    first = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert {"clean", "adversarial", "generated"} <= set(first)
    assert (run_folder / "figures" / "energies.json").is_file()


def test_diagnose_prints_and_draws_the_attacks_that_were_asked_for(trilemma, run_folder):
    result = trilemma("diagnose", run_folder, "--images", 20, "--attack", "square", "--attack", "fab-t")
    assert result.exit_code == 0, result.output
    first = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert [name for name in first if name in ("none", "square", "fab-t", "pgd")] == [
        "square", "fab-t", "none", "square", "fab-t",
    ]  # fmt: skip
    assert "500 queries" in result.stdout and "dE is clean minus attacked" in result.stdout
    for name in ("energy-attacks", "energy-deltas"):
        assert (run_folder / "figures" / f"{name}.png").is_file()


def test_report_prints_the_path_of_its_page(trilemma, run_folder):
    result = trilemma("report", run_folder)
    assert result.stdout == f"{run_folder / 'report.html'}\n"
    assert (run_folder / "report.html").is_file()


def test_compare_prints_a_table_and_writes_the_page(trilemma, run_folder, tmp_path):
    trilemma("evaluate", run_folder, "--protocol", "clean", "--images", 20)
    result = trilemma("compare", run_folder, "--out", "side/by-side.html")
    assert result.stdout.splitlines()[-1] == "side/by-side.html"
    assert (tmp_path / "side" / "by-side.html").is_file()
    shown = [line for line in result.stdout.splitlines() if str(run_folder) in line]
    assert len(shown) == 1 and "clean v1" in shown[0] and "%" in shown[0]


def test_compare_does_not_write_a_page_over_a_folder(mistake, run_folder, tmp_path):
    assert mistake("compare", run_folder, "--out", tmp_path).startswith(f"{tmp_path}: is a folder")


@pytest.mark.parametrize("form", ["markdown", "csv", "json", "latex"])
def test_compare_prints_or_writes_the_table_in_the_format_asked_for(trilemma, run_folder, tmp_path, form):
    trilemma("evaluate", run_folder, "--protocol", "clean", "--images", 20)
    printed = trilemma("compare", run_folder, "--format", form).stdout
    assert "clean" in printed and "first 20 of 397" in printed
    assert not (tmp_path / "compare.html").exists()
    ending = {"markdown": "md", "latex": "tex"}.get(form, form)
    trilemma("compare", run_folder, "--out", f"table.{ending}")
    assert (tmp_path / f"table.{ending}").read_text() == printed
    if form == "json":
        assert json.loads(printed)["columns"][0]["protocol"] == "clean"


def test_compare_json_has_the_table_too(trilemma, run_folder):
    trilemma("evaluate", run_folder, "--protocol", "clean", "--images", 20)
    found = json.loads(trilemma("compare", run_folder, "--json").stdout)
    assert found["page"] == "compare.html"
    assert found["runs"][0]["accuracy"]["clean"] == found["table"]["rows"][0]["values"][0]["value"]


def test_compare_refuses_an_ending_that_names_no_format(mistake, run_folder):
    assert "unknown suffix; use .html, " in mistake("compare", run_folder, "--out", "table.txt")
