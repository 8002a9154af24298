"""``trilemma push``: the files of a run or a classifier, and one line for what cannot be pushed."""

from __future__ import annotations

import json
import sys


def test_a_run_is_written_to_a_folder_and_nothing_is_uploaded(trilemma, run_folder, tmp_path):
    result = trilemma("push", run_folder, "owner/net", "--license", "mit", "--out", "files", "--json")
    assert json.loads(result.stdout) == {"repository": "owner/net", "target": "files"}, result.output
    assert (tmp_path / "files" / "checkpoints" / "best" / "classifier.safetensors").is_file()
    assert "license: mit" in (tmp_path / "files" / "README.md").read_text()
    file = run_folder / "checkpoints" / "best" / "classifier.safetensors"
    assert trilemma("push", file, "owner/net", "--out", "alone").stdout == "alone\n"
    assert not (tmp_path / "alone" / "config.yaml").exists()


def test_what_cannot_be_pushed_is_named(mistake, run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # makes importing it fail
    assert "pip install -e '.[hub]'" in mistake("push", run_folder, "owner/net")
    assert mistake("push", run_folder, "net").startswith("net: write OWNER/NAME")
    assert "no such run folder" in mistake("push", "runs/x", "owner/net")
    assert "has no last classifier" in mistake("push", run_folder, "owner/net", "--checkpoint", "last")
