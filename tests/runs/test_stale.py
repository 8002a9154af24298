"""Results are tied to weights: a row of other weights is marked, and a weaker measurement replaces no stronger one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trilemma import compare
from trilemma.classifier.classifier import Classifier
from trilemma.cli.common import run_results
from trilemma.errors import CheckpointError, DataError
from trilemma.evaluation.diagnose import diagnose
from trilemma.evaluation.evaluate import evaluate_into, evaluate_run
from trilemma.evaluation.protocols.generation import read_samples
from trilemma.evaluation.samples import generate
from trilemma.files import CLASSIFIER, read_npz, write_npz
from trilemma.pages.card import model_card
from trilemma.pages.comparison import write_comparison
from trilemma.pages.gather import with_held_out
from trilemma.pages.html import write_report
from trilemma.pages.table import as_csv, as_latex, as_tree
from trilemma.runs.digests import classes_digest, stored_weights_digest
from trilemma.runs.read import read_contents
from trilemma.runs.records import checkpoint_name, is_stale, keeps
from trilemma.runs.run_directory import RunDirectory


def changed(path: Path, **about: Any) -> Classifier:
    """Gives the classifier of a file other weights, and further values in ``about``."""
    clf = Classifier.load(path)
    with torch.no_grad():
        next(clf.parameters()).mul_(1.01)
    clf.about |= about
    clf.save(path)
    return clf


@pytest.fixture
def full(complete_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(complete_run.path, tmp_path / "full"))


def test_results_of_the_weights_that_a_run_holds_are_not_marked(full: Path) -> None:
    contents = read_contents(full)
    assert contents.diagnosis is not None and contents.samples
    results = [*contents.rows.values(), *contents.samples, contents.diagnosis]
    assert not any(map(is_stale, results))
    assert "tale" not in json.dumps(as_tree(compare([full])))


def test_after_more_training_every_result_is_marked_wherever_it_is_shown(full: Path) -> None:
    clf = changed(RunDirectory(full).best_classifier, step=60, epoch=6.0)
    contents = read_contents(full)
    assert contents.diagnosis is not None
    assert all(map(is_stale, [*contents.rows.values(), *contents.samples, contents.diagnosis]))
    assert checkpoint_name(contents.rows["clean"]["checkpoint"]) == "best, epoch 4 (stale)"
    table = compare([full])
    (note,) = table.entries[0].notes
    assert note.startswith("clean, pgd-20") and "measured on another classifier than the folder holds" in note
    assert all(cell["result"].endswith(", stale") for cell in table.by_value())
    assert "stale" in table.to_markdown() and "stale" in as_csv(table) and r"$^\ddagger$" in as_latex(table)
    assert as_tree(table)["rows"][0]["values"][0]["stale"] is True
    page = write_report(full).read_text()
    assert "Stale, measured on another classifier than the folder holds: clean, pgd-20" in page
    # A card of the new weights does not state the accuracy of the old ones.
    assert "Nothing was measured" in model_card("owner/net", clf, contents, None)
    evaluate_run(full, ["clean"], images=20)
    contents = read_contents(full)
    assert not is_stale(contents.rows["clean"]) and is_stale(contents.rows["pgd-20"])


def test_weights_from_elsewhere_under_the_same_name_and_epoch_are_noticed(full: Path) -> None:
    changed(RunDirectory(full).best_classifier)
    assert is_stale(read_contents(full).rows["clean"])


def test_a_comparison_page_says_which_of_its_results_are_stale(full: Path, tmp_path: Path) -> None:
    page = write_comparison([full], tmp_path / "page.html")
    assert "Stale, measured on" not in page.read_text()
    changed(RunDirectory(full).best_classifier)
    text = write_comparison([full], page).read_text()
    assert "Stale, measured on another classifier than the folder holds: clean, pgd-20" in text


def test_held_out_accuracies_of_another_checkpoint_are_marked(run_copy: Path) -> None:
    run = RunDirectory(run_copy)
    rows = with_held_out(read_contents(run_copy)).rows
    assert len(rows) == 2 and not any(map(is_stale, rows.values()))
    # The line of the selected checkpoint is lost, and the one before it takes its place.
    run.write_metrics(line for line in run.metrics() if line["step"] < 40)
    assert all(map(is_stale, with_held_out(read_contents(run_copy)).rows.values()))


def test_energies_without_their_diagnosis_are_not_shown(
    full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents, file = read_contents(full), full / "figures" / "energies.npz"
    assert contents.energies_file == file
    # A killed process leaves those of its diagnosis beside the record of the one before.
    write_npz(file, {"x": np.zeros(2)})
    assert read_contents(full).energies_file is None
    assert capsys.readouterr().err.startswith(f"warning: left out: {file}: damaged, or of another")
    (full / "figures" / "energies.json").unlink()
    assert read_contents(full).energies_file is None


def test_a_damaged_record_is_replaced_with_a_word(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = full / "figures" / "energies.json"
    file.write_text(file.read_text().replace('"count": 20', '"count": 30', 1))
    assert not keeps(file, {"count": 5}, "count")
    assert capsys.readouterr().err.endswith("measure again; it is replaced now\n")


def test_rows_of_earlier_versions_are_compared_by_step_and_epoch(full: Path) -> None:
    for file in (full / "evaluation").glob("*.json"):
        row = json.loads(file.read_text())
        del row["digest"], row["checkpoint"]["weights"]
        file.write_text(json.dumps(row))
    assert not is_stale(read_contents(full).rows["clean"])
    changed(RunDirectory(full).best_classifier, step=60)
    assert is_stale(read_contents(full).rows["clean"])


def without_digest(path: Path) -> None:
    """Writes a classifier file again as an earlier version did: no digest of the weights in its header."""
    header, tensors = CLASSIFIER.read(path)
    CLASSIFIER.write(path, tensors, {**header.content(), "weights": None})


def test_a_file_of_an_earlier_version_in_place_of_the_measured_one_is_noticed(full: Path) -> None:
    file = RunDirectory(full).best_classifier
    digest = Classifier.load(file).weights_digest()
    without_digest(file)
    header = CLASSIFIER.read_header(file).content()
    assert header["weights"] is None and stored_weights_digest(file, header) == digest
    # The same weights are recognised, and others under the same step and epoch.
    assert not is_stale(read_contents(full).rows["clean"])
    changed(file)
    without_digest(file)
    assert is_stale(read_contents(full).rows["clean"])
    # One that cannot be read is reported by its header.
    file.write_bytes(file.read_bytes()[:-100])
    assert stored_weights_digest(file.with_name("none"), header) is None


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_digest_of_a_file_is_that_of_its_classifier(tmp_path: Path, toy: Any, kind: torch.dtype) -> None:
    clf = toy.mlp()
    clf.network.to(kind)
    clf.network.register_buffer("steps", torch.tensor(3))
    clf.network.register_buffer("empty", torch.zeros(0, 2, dtype=torch.bool))
    clf.save(tmp_path / "classifier.safetensors")
    header = CLASSIFIER.read_header(tmp_path / "classifier.safetensors").content()
    is_half = kind in (torch.float16, torch.bfloat16)
    expected = None if is_half else header["weights"]
    assert stored_weights_digest(tmp_path / "classifier.safetensors", header) == expected
    # Half precision becomes float32 when it is loaded.
    assert header["weights"] == clf.weights_digest()
    if is_half:
        clf.network.float()
        assert header["weights"] == clf.weights_digest()


def test_other_class_names_of_the_same_weights_are_noticed(full: Path) -> None:
    file = RunDirectory(full).best_classifier
    clf = Classifier.load(file)
    clf.class_names = (*clf.class_names[1:], clf.class_names[0])
    clf.save(file)
    contents = read_contents(full)
    assert contents.diagnosis is not None
    assert all(map(is_stale, [*contents.rows.values(), *contents.samples, contents.diagnosis]))
    assert "Nothing was measured" in model_card("owner/net", clf, contents, None)
    # Rows of earlier versions record no class names.
    for path in (full / "evaluation").glob("*.json"):
        row = json.loads(path.read_text())
        del row["digest"], row["checkpoint"]["classes"]
        path.write_text(json.dumps(row))
    assert not is_stale(read_contents(full).rows["clean"])


def test_the_digest_of_class_names_depends_on_their_order_and_not_on_their_unicode_form() -> None:
    assert classes_digest(["caf\u00e9", "b"]) == classes_digest(["cafe\u0301", "b"])
    assert len({classes_digest(names) for names in (["a", "b"], ["b", "a"], ["ab", ""], ["a"])}) == 4


def test_rows_of_two_classifiers_in_one_folder_are_no_one_classifier(tmp_path: Path, toy: Any) -> None:
    for seed, protocol in ((0, "clean"), (1, "classes")):
        evaluate_into(tmp_path, toy.mlp(seed=seed), toy.image_set(), [protocol], lint=False)
    contents = read_contents(tmp_path)
    # Nothing says which of the two the folder is of, so the rows that differ from the first one are marked.
    rows = [*contents.rows.values(), *contents.measures.values()]
    assert sorted(map(is_stale, rows)) == [False, True]


def test_a_replaced_row_of_other_weights_is_named(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_run(run_copy, ["clean"], images=60, lint=False)
    changed(RunDirectory(run_copy).best_classifier)
    capsys.readouterr()
    evaluate_run(run_copy, ["clean"], images=5, lint=False)
    note = capsys.readouterr().err
    assert "clean.json: replaces a row of 60 images of another classifier, now in" in note
    assert read_contents(run_copy).rows["clean"]["count"] == 5


def test_fewer_samples_and_a_diagnosis_of_fewer_images_replace_nothing(
    full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = read_contents(full).samples
    capsys.readouterr()
    fewer = generate(full, per_class=1, steps=2)
    assert fewer.record["name"] == f"{record['name']}_1-per-class" and fewer.grid and fewer.grid.is_file()
    assert re.search(
        r"keeps samples of more images per class; the new one is in .*; delete", capsys.readouterr().err
    )
    diagnose(full, images=5, attacks=["pgd"])
    assert "keeps a diagnosis of more images; the new one is in" in capsys.readouterr().err
    contents = read_contents(full)
    assert contents.diagnosis is not None and contents.diagnosis["count"] == 20
    assert sorted(each["per_class"] for each in contents.samples) == [1, 2]
    assert (full / "figures" / "5-images" / "energies.json").is_file()
    # More images replace fewer.
    generate(full, per_class=3, steps=2)
    assert sorted(each["per_class"] for each in read_contents(full).samples) == [1, 3]


def lost(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[:-100])
    elif how == "cut in its header":
        path.write_bytes(content[:100])
    elif how == "folder":
        path.mkdir()


@pytest.mark.parametrize("how", ["missing", "truncated", "cut in its header", "folder"])
def test_a_lost_best_classifier_is_an_error_and_the_last_one_does_not_take_its_place(
    full: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(full)
    clf = Classifier.load(run.best_classifier)
    clf.about |= {"checkpoint": "last", "epoch": 9.0}
    clf.save(run.last_classifier)
    lost(run.best_classifier, how)
    readers: list[Callable[[], Any]] = [
        lambda: evaluate_run(full, ["clean"], images=5),
        lambda: evaluate_run(full, ["clean"], images=5, checkpoint="both"),
        lambda: generate(full, per_class=1, steps=1),
    ]
    for read in readers:
        with pytest.raises(CheckpointError) as caught:
            read()
        assert str(caught.value).startswith(f"{run.best_classifier}: ") and "\n" not in str(caught.value)
    assert evaluate_run(full, ["clean"], images=5, checkpoint="last")["clean"]["checkpoint"]["epoch"] == 9.0
    capsys.readouterr()
    contents = read_contents(full)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"warning: {run.best_classifier}: ")
    assert is_stale(contents.rows["clean"]) and contents.about.get("checkpoint") != "last"
    assert run_results([full])[0]["accuracy"].keys() >= {"clean"}


def test_a_run_that_never_selected_a_best_classifier_has_the_last_one(run_copy: Path) -> None:
    run = RunDirectory(run_copy)
    run.last_classifier.parent.mkdir()
    run.best_classifier.rename(run.last_classifier)
    run.write_metrics(())
    assert run.classifiers() == {"last": run.last_classifier}


def test_samples_of_other_weights_leave_no_image_of_the_old_ones(run_copy: Path) -> None:
    name = generate(run_copy, per_class=3, steps=1).record["name"]
    (run_copy / "samples" / name / "notes.png").touch()
    changed(RunDirectory(run_copy).best_classifier)
    assert generate(run_copy, per_class=1, steps=1).record["name"] == name
    files = {file.name for file in (run_copy / "samples" / name).iterdir()}
    assert files == {*(f"{label}-0000.png" for label in range(10)), "notes.png"}


def test_an_archive_of_samples_and_the_record_of_others_are_refused(full: Path) -> None:
    (file,) = (full / "samples").glob("*.npz")
    assert read_samples(str(file), None).origin == "fresh"
    arrays = read_npz(file)
    write_npz(file, {**arrays, "samples": arrays["starts"]})
    with pytest.raises(DataError, match=r"not the samples that .*\.json describes; generate them again"):
        read_samples(str(file), None)


def test_damaged_energies_are_left_out_of_a_comparison_and_named(
    full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = full / "figures" / "energies.npz"
    file.write_bytes(file.read_bytes()[:-30])
    compare([full], out=full.parent / "compare.html")
    assert f"warning: left out: {file}: damaged, or of another diagnosis" in capsys.readouterr().err
