"""A user's mistake is one line: what, where, what to do."""

from __future__ import annotations

import pickle

import pytest

MISTAKES = {
    "misspelt command": (
        ["trian"],
        "No such command 'trian'. Did you mean 'train'?; see `trilemma --help`",
    ),
    "unknown option": (["train", "digits/standard", "--epoch", "3"], "No such option: --epoch"),
    "missing argument": (["train"], "Missing argument 'RECIPE'; see `trilemma train --help`"),
    "misspelt recipe": (
        ["train", "digits/standart"],
        "unknown recipe 'digits/standart'. Did you mean 'digits/standard'?",
    ),
    "missing recipe file": (["train", "mine.yaml"], "recipe file mine.yaml does not exist"),
    "unknown key": (
        ["train", "digits/standard", "training.epoch=3"],
        "digits/standard: training.epoch: unknown key. Did you mean 'epochs'? Allowed here: epochs",
    ),
    "wrong type": (
        ["train", "digits/standard", "training.epochs=many"],
        "digits/standard: training.epochs: ",
    ),
    "override without =": (
        ["train", "digits/standard", "training.epochs"],
        "override 'training.epochs' is not of the form key=value",
    ),
    "unknown method": (["validate", "digits/standard", "method.name=pgdat"], "Did you mean 'pgd-at'?"),
    "resume of nothing": (
        ["train", "digits/standard", "--resume"],
        "runs/digits-standard: no such run folder",
    ),
    "missing run": (
        ["evaluate", "runs/x"],
        "runs/x: no such run folder or classifier file. `trilemma train RECIPE` creates",
    ),
    "missing run to report": (["report", "runs/x"], "runs/x: no such run folder"),
    "missing run to compare": (["compare", "runs/x"], "runs/x: no such run folder"),
    "unknown protocol": (
        ["evaluate", "runs/x", "--protocol", "pgd20"],
        "unknown protocol 'pgd20'. Did you mean 'pgd-20'? Protocols: ",
    ),
    "unknown attack": (
        ["diagnose", "runs/x", "--attack", "fap"],
        "diagnose: unknown attack 'fap'. Did you mean 'fab'? Attacks: pgd, trades-kl, ",
    ),
    "unknown sampler": (["generate", "runs/x", "--sampler", "moment"], "Did you mean 'momentum'?"),
    "unknown preset": (
        ["generate", "runs/x", "--preset", "wheat"],
        "unknown preset 'wheat'. Did you mean 'weat'?",
    ),
    "unknown energy": (["generate", "runs/x", "--energy", "joined"], "Did you mean 'joint'?"),
    "unknown start": (["generate", "runs/x", "--start", "local-pc:k=9"], "Did you mean 'local-pca'?"),
    "unknown schedule": (["generate", "runs/x", "--noise-schedule", "cos"], "Did you mean 'cosine'?"),
    "weights of starts": (
        ["generate", "runs/x", "--start", "uniform:0.5,class-pca:0.6"],
        "the weights of 'uniform:0.5,class-pca:0.6' sum to 1.1; they must sum to 1",
    ),
    "negative steps": (["generate", "runs/x", "--steps", "-1"], "Invalid value for '--steps'"),
    "unknown kind": (["list", "metods"], "unknown kind 'metods'. Did you mean 'methods'? Kinds: recipes, "),
    "nothing to evaluate": (["evaluate"], "no classifier given; add a run folder"),
    "missing image": (["predict", "runs/x", "a.png"], "a.png: no such image file"),
    "a count of nothing": (["evaluate", "runs/x", "--images", "0"], "Invalid value for '--images'"),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_named_in_one_line(mistake, arguments, expected):
    assert expected in mistake(*arguments)


@pytest.mark.parametrize("command", ["evaluate", "generate", "diagnose", "report", "compare"])
def test_a_folder_that_is_no_run(mistake, tmp_path, command):
    (tmp_path / "photos").mkdir()
    assert mistake(command, "photos").startswith("photos: not a run folder (no config.yaml)")


def test_a_misspelt_run_names_the_nearest(mistake, run_folder):
    assert "Did you mean 'run'?" in mistake("evaluate", run_folder.parent / "rum")


class Bomb:
    """Code that runs when a pickle of it is loaded."""

    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize("command", [["evaluate"], ["generate"], ["diagnose"]])
def test_a_pickle_offered_as_checkpoint_is_refused_and_not_run(mistake, tmp_path, command):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb()))
    assert "reading it could run code, so it is refused" in mistake(*command, "model.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_run_that_has_no_classifier_yet(mistake, run_folder):
    (run_folder / "checkpoints" / "best" / "classifier.safetensors").unlink()
    # A selected one that is lost is another mistake.
    assert "give the classifier again, or --checkpoint last" in mistake("evaluate", run_folder)
    (run_folder / "metrics.jsonl").unlink()
    assert "has no finished classifier yet" in mistake("evaluate", run_folder)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there(mistake, run_folder, device):
    assert mistake("evaluate", run_folder, "--device", device).startswith(f"--device {device}: ")


@pytest.mark.parametrize("command", ["generate", "diagnose"])
def test_an_output_folder_that_is_a_file(mistake, run_folder, tmp_path, command):
    (tmp_path / "taken").touch()
    assert mistake(command, run_folder, "--out", "taken").startswith("taken: cannot create the folder")
