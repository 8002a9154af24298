"""Calibration, out-of-distribution detection and sets of samples on the command line, and on the page of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import trilemma as package
from trilemma.runs.records import read_record


@pytest.fixture
def other_run(run_folder: Path) -> Path:
    """A copy of the run with another classifier in it."""
    path = Path(shutil.copytree(run_folder, run_folder.parent / "other"))
    file = path / "checkpoints" / "best" / "classifier.safetensors"
    clf = package.Classifier.load(file)
    with torch.no_grad():
        next(clf.parameters()).add_(0.1)
    clf.save(file)
    return path


def test_rows_of_every_kind_have_their_own_table_and_file(trilemma, run_folder):
    names = ["clean", "ece", "ece-pgd-20", "ood:permuted"]
    asked = [part for name in names for part in ("--protocol", name)]
    lines = trilemma("evaluate", run_folder, "--images", 20, *asked).stdout.splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] in names] == names
    (line,) = [line for line in lines if line.split()[0] == "ood:permuted"]
    assert "AUROC, higher is better" in line and " to 0." in line and "max softmax 0." in line
    files = {file.stem for file in (run_folder / "evaluation").glob("*.json")}
    assert files == {"clean", "ece", "ece-pgd-20", "ood-permuted"}


def test_the_page_shows_what_was_measured_beside_accuracy(trilemma, run_folder, other_run):
    trilemma("evaluate", run_folder, "--images", 20, "--protocol", "ece", "--protocol", "ood:uniform-noise")
    trilemma("generate", run_folder, "--per-class", 2, "--steps", 1, "--extractor", other_run)
    assert trilemma("report", run_folder).exit_code == 0
    text = (run_folder / "report.html").read_text()
    for expected in (
        "Other metrics",
        "ECE, lower is better",
        "by chance",
        "FD-standard-digits",
        "without selection",
    ):
        assert expected in text
    assert (run_folder / "figures" / "reliability.png").is_file()
    # they are no accuracies: comparisons of accuracy do not see them
    result = trilemma("compare", run_folder, "--json")
    assert json.loads(result.stdout)["runs"][0]["accuracy"] == {}


def test_generate_judges_its_samples_beside_their_starts(trilemma, run_folder, other_run):
    result = trilemma(
        "generate", run_folder, "--per-class", 2, "--steps", 1, "--extractor", other_run, "--json"
    )
    row = json.loads(result.stdout)["generation"]
    assert list(row["facts"]["sets"]) == ["start", "sample", "real"]
    assert row["protocol"] == "FD-standard-digits:class-pca_momentum_joint_1:20-fresh:digits-train-1200"
    (file,) = (run_folder / "evaluation").glob("FD-standard-digits-*.json")
    assert read_record(file) == row


def test_samples_made_before_are_judged_the_same(trilemma, run_folder, other_run):
    trilemma("generate", run_folder, "--per-class", 2, "--steps", 1)
    samples = run_folder / "samples" / "class-pca_momentum_joint_1"
    rows = []
    for arguments in ([run_folder], ["--data", "digits"]):
        given = (*arguments, "--samples", samples, "--extractor", other_run, "--json")
        (row,) = json.loads(trilemma("evaluate", *given).stdout).values()
        rows.append({**row, "seconds": 0})
    assert rows[0] == rows[1]
    lines = trilemma(
        "evaluate", run_folder, "--samples", samples, "--extractor", other_run
    ).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["start", "sample", "real"]
    lines = trilemma(
        "evaluate",
        run_folder,
        "--samples",
        samples,
        "--extractor",
        other_run,
        "--draws",
        5,
        "--reference",
        100,
    ).stdout.splitlines()
    assert " to " in lines[3] and " to " not in lines[4]
    assert "5x4-fresh:digits-train-100" in lines[5] and "5 draws of 4 images" in lines[6]


def test_several_radii_and_saved_images_in_one_call_each(trilemma, run_folder):
    options = ["--protocol", "pgd-20", "--images", 10, "--checkpoint", "best", "--no-lint"]
    result = trilemma("evaluate", run_folder, *options, "--radius", "0.1,0.2", "--radius", "0.3", "--json")
    assert list(json.loads(result.stdout)) == ["pgd-20@0.1", "pgd-20@0.2", "pgd-20@0.3"]
    result = trilemma("evaluate", run_folder, *options, "--save-adversarial", "new/images.npz")
    assert result.exit_code == 0 and "adversarial images: new/images.npz" in result.stderr
    trilemma("report", run_folder)
    assert (run_folder / "figures" / "robustness-linf.png").is_file()


def test_purified_rows_say_so_with_their_attack_and_its_draws(trilemma, run_folder):
    options = [
        "--images",
        10,
        "--checkpoint",
        "best",
        "--purify",
        1,
        "--purify-draws",
        2,
        "--purify-step-size",
        0.1,
    ]
    result = trilemma("evaluate", run_folder, "--protocol", "clean", "--protocol", "pgd-20", *options)
    assert "purify-1,step-0.1:clean" in result.stdout and "purify-1,step-0.1:pgd-20:eot-2" in result.stdout
    assert "under PGD through the purifier (bpda and unrolled, 2 draws of noise per step)" in result.stdout
    assert {file.name for file in (run_folder / "evaluation").glob("*.json")} == {
        "purify-1-step-0.1-clean.json", "purify-1-step-0.1-pgd-20-eot-2.json",
    }  # fmt: skip
    alone = trilemma("evaluate", run_folder, "--protocol", "clean", *options)
    assert "lint: error: purified-not-attacked" in alone.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "x"], "requires --extractor"),
        (["--extractor", "x"], "requires --samples"),
        (["--draws", "5"], "--draws 5: requires --samples"),
        (["--samples", "x", "--extractor", "y"], "add a run folder or --data"),
        (
            ["--samples", "x", "--extractor", "y", "--data", "digits"],
            "y: no such run folder or classifier file",
        ),
        (["--protocol", "ood"], "write ood:SET"),
        (["--protocol", "eec"], "Did you mean 'ece'?"),
        (["--protocol", "pgd-20", "--radius", "0.1,"], "'' is not a number"),
        (["--protocol", "clean", "--save-adversarial", "a.npz"], "needs one protocol that attacks"),
        (["--protocol", "clean", "--purify", "-1"], "--purify"),
        (["--protocol", "clean", "--purify-noise", "0.1"], "--purify-noise: requires --purify STEPS"),
        (
            ["--protocol", "clean", "--purify", "1", "--purify-step-size", "0"],
            "step_size=0.0; must be above 0",
        ),
        (
            ["--protocol", "pgd-20", "--purify", "1", "--purify-gradient", "exact"],
            "gradient='exact' is unknown",
        ),
        (
            ["--protocol", "autoattack-standard", "--purify", "1"],
            "autoattack-standard cannot be measured through a purifier; use clean, pgd-20, pgd-50-10",
        ),
    ],
)
def test_mistakes_are_one_line(mistake, run_folder, arguments, message):
    source = [run_folder] if "--protocol" in arguments else []
    assert message in mistake("evaluate", *source, *arguments)


def test_a_classifier_does_not_judge_its_own_samples(trilemma, mistake, run_folder):
    line = mistake("generate", run_folder, "--per-class", 1, "--steps", 1, "--extractor", run_folder)
    assert "extractor: a classifier cannot evaluate its own samples" in line
