"""``trilemma counterfactual``: what it writes and prints, which files it skips, and its mistakes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from trilemma.data.sources import load_images
from trilemma.runs.records import read_record


@pytest.fixture
def scans(tmp_path):
    """A folder of four images of digits."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for k, image in enumerate(load_images("digits").first(4).images):
        Image.fromarray(image[0].numpy()).save(folder / f"{k}.png")
    return folder


def test_images_are_moved_and_written_and_the_json_has_every_number(trilemma, run_folder, scans):
    command = [
        "counterfactual",
        "scans",
        "--model",
        run_folder,
        "--target",
        "7",
        "--budget",
        "0.8",
        "--steps",
        3,
    ]
    result = trilemma(*command, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    rows = record["images"]
    assert [row["image"] for row in rows] == [f"scans/{k}.png" for k in range(4)]
    assert all(row["distance"] <= 0.8 + 1e-5 and row["target"] == "7" for row in rows)
    assert all(len(row["trajectory"]["target energy"]) == len(row["trajectory"]["step"]) for row in rows)
    assert read_record(run_folder / "counterfactuals" / "to-7_l2_0.8.json") == {
        key: value for key, value in record.items() if key != "folder"
    }
    assert not list((run_folder / "counterfactuals").rglob("*.webp"))
    # The other order of the arguments, an archive, the other norm, the least distance, and animations.
    archive = shutil.make_archive("packed", "zip", ".", "scans")
    result = trilemma(
        "counterfactual", run_folder, archive, "--target", 7, "--norm", "linf", "--least", "--tolerance", "0.1",
        "--steps", 2, "--animate", "--out", "moved",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "figure: moved/to-7_linf_least.png" in result.stdout
    assert len(list((scans.parent / "moved").rglob("*.webp"))) == 4


def test_what_cannot_be_read_is_skipped_with_a_line_and_counted(trilemma, run_folder, scans):
    (scans / "notes.png").write_text("no pixels here")
    Image.fromarray(np.zeros((12, 9), np.uint8)).save(scans / "wide.png")
    command = ["counterfactual", run_folder, "--target", 7, "--budget", 0.1, "--steps", 1, "--quiet"]
    result = trilemma(*command, "scans", "missing.png", "--json")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["images"]) == 4
    lines = result.stderr.splitlines()
    assert lines[0] == "skipped: missing.png: no such image file"
    assert lines[1].startswith("skipped: scans/notes.png: cannot be decoded as an image")
    assert lines[2].startswith("skipped: scans/wide.png: 9 x 12 pixels, but the classifier takes 8 x 8")
    assert lines[3:] == ["skipped 3 of 7 images, which cannot be read"]
    assert trilemma(*command, scans / "wide.png", "--resize").exit_code == 0


MISTAKES = {
    "class": (["--target", "frog"], "target 'frog': no class of this classifier"),
    "no target": ([], "Missing option '--target'"),
    "no budget": (["--target", "7", "--budget", "0"], "--budget: '0' must be above 0"),
    "negative budget": (["--target", "7", "--budget", "-1"], "--budget: '-1' must be above 0"),
    "both": (["--target", "7", "--budget", "1", "--least"], "--budget and --least: a budget, or the least"),
    "tolerance": (["--target", "7", "--tolerance", "-1"], "--tolerance"),
    "norm": (["--target", "7", "--norm", "l1"], "Invalid value for '--norm'"),
    "steps": (["--target", "7", "--steps", "-2"], "Invalid value for '--steps'"),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_are_one_line(mistake, run_folder, scans, arguments, expected):
    assert expected in mistake("counterfactual", run_folder, scans, "--quiet", *arguments)


def test_images_of_which_none_can_be_read_are_a_mistake(mistake, run_folder, tmp_path):
    Image.fromarray(np.zeros((12, 9), np.uint8)).save(tmp_path / "wide.png")
    command = ["counterfactual", "--model", run_folder, "--target", 7]
    assert mistake(*command, "wide.png").startswith("none of the 1 images can be read")
    assert "no such image file" in mistake(*command, "missing.png")
    assert "both are a classifier" in mistake(*command, run_folder, "wide.png")
    assert "runs/x: no such run folder" in mistake(
        "counterfactual", "wide.png", "--model", "runs/x", "--target", 7
    )
