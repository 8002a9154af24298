"""``trilemma export``: where the file goes, what it holds, and one line for each way it cannot be had."""

from __future__ import annotations

import json

import onnx
import pytest
import torch

import trilemma as package


def test_weights_go_into_the_run_folder_and_equal_the_classifier_on_its_test_images(trilemma, run_folder):
    result = trilemma("export", run_folder, "--state-dict")
    file = run_folder / "export" / "classifier.pt"
    assert result.exit_code == 0 and result.stdout == f"{file}\n"
    content = torch.load(file, weights_only=True)
    assert content["metadata"]["checked_on"] == {"data": "digits", "split": "test", "images": 397}
    clf = package.load(run_folder)
    for name, value in clf.network.state_dict().items():
        assert torch.equal(content["state_dict"][f"network.{name}"], value)


def test_the_last_checkpoint_is_exported_when_asked_for(trilemma, run_folder):
    last = package.load(run_folder)
    last.about = {**last.about, "checkpoint": "last"}
    last.save(run_folder / "checkpoints" / "last" / "classifier.safetensors")
    for checkpoint in ("best", "last"):
        arguments = ("--state-dict", "--checkpoint", checkpoint, "--out", f"{checkpoint}.pt", "--json")
        record = json.loads(trilemma("export", run_folder, *arguments).stdout)
        assert (record["file"], record["about"]["checkpoint"]) == (f"{checkpoint}.pt", checkpoint)


def test_a_classifier_file_becomes_onnx_in_the_current_folder(trilemma, run_folder, tmp_path):
    file = run_folder / "checkpoints" / "best" / "classifier.safetensors"
    result = trilemma("export", file, "--onnx", "--data", "digits")
    assert result.stdout == "classifier.onnx\n", result.output
    model = onnx.load(tmp_path / "classifier.onnx")
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "logits"]


@pytest.mark.parametrize("options", [[], ["--onnx", "--state-dict"]])
def test_one_kind_is_asked_for(mistake, run_folder, options):
    assert mistake("export", run_folder, *options) == "export: add either --onnx or --state-dict"


def test_a_second_export_does_not_write_over_the_first(trilemma, mistake, run_folder):
    trilemma("export", run_folder, "--state-dict")
    assert "classifier.pt: already exists; refusing to overwrite" in mistake(
        "export", run_folder, "--state-dict"
    )


def test_what_is_missing_or_does_not_fit_is_named(mistake, run_folder, tmp_path):
    assert "runs/x: no such run folder" in mistake("export", "runs/x", "--onnx")
    assert "has no last classifier" in mistake("export", run_folder, "--onnx", "--checkpoint", "last")
    (tmp_path / "file").touch()
    assert "cannot create the folder" in mistake("export", run_folder, "--state-dict", "--out", "file/a.pt")
    assert "neither a data set nor a path" in mistake("export", run_folder, "--onnx", "--data", "digit")
