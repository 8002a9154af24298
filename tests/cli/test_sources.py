"""One description of a classifier in every command: the same options, the same classifier, and the same refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import trilemma as package
from trilemma.classifier.source import ClassifierSource
from trilemma.errors import CheckpointError, ConfigError
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallResNetOptions

NETS = """
import torch
from torch import nn
class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    def forward(self, images):
        return {"features": images, "logits": self.net(images)}
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def parts():
    torch.manual_seed(0)
    return Parts()
"""
NAMES = [f"digit {k}" for k in range(10)]
OPTIONS = "small-resnet,width=4,norm=group,activation=silu"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of networks, an image, and a file of weights with normalisation apart."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sourcenets.py").write_text(NETS)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    options = SmallResNetOptions(width=4, norm="group", activation="silu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_network(options, 10, (1, 8, 8))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pt")
    return tmp_path


def expected_logits(place: Path) -> torch.Tensor:
    network = create_network(
        SmallResNetOptions(width=4, norm="group", activation="silu"), 10, (1, 8, 8)
    ).eval()
    network.load_state_dict(torch.load(place / "weights.pt")["state_dict"])
    image = torch.from_numpy(np.asarray(Image.open(place / "image.png")).copy()).float()[None, None] / 255
    with torch.no_grad():
        logits: torch.Tensor = network((image - 0.5) / 0.25)
    return logits


WEIGHTS = ["weights.pt", "--network", OPTIONS, "--mean", "0.5", "--std", "0.25"]


def test_predict_and_score_need_no_data_to_know_the_classes(trilemma, place):
    names = ",".join(NAMES)
    logits = expected_logits(place)
    for command in ("predict", "score"):
        result = trilemma(command, *WEIGHTS, "--size", 8, "--classes", names, "image.png", "--json")
        (row,) = json.loads(result.stdout)
        assert row["class"] == NAMES[int(logits.argmax())]
        assert row["marginal energy"] == pytest.approx(-float(logits.logsumexp(1)), abs=1e-5)


def test_every_command_takes_the_weights_of_a_named_network(trilemma, place):
    data = ["--data", "digits"]
    threat = ["--radius", "0.1"]
    commands: dict[str, list[object]] = {
        "evaluate": [*data, "--images", 10, "--protocol", "clean", "--no-lint", "--out", "rows"],
        "lint": [*data],
        "diagnose": [*data, *threat, "--images", 10, "--attack", "pgd"],
        "generate": ["--size", 8, "--per-class", 1, "--steps", 1, "--start", "uniform"],
        "export": [*data, "--state-dict", "--out", "again.pt"],
    }
    for command, options in commands.items():
        result = trilemma(command, *WEIGHTS, *options)
        assert result.exit_code == 0, (command, result.output)
    row = json.loads((place / "rows" / "evaluation" / "clean.json").read_text())
    source = row["checkpoint"]["source"]
    assert source["source"] == "weights.pt" and source["network"] == OPTIONS and source["classes"] == 10
    assert source["mean"] == [0.5] and source["std"] == [0.25] and len(source["sha256"]) == 64
    # What was exported knows its network, its normalisation and its classes.
    assert torch.equal(
        package.load("again.pt")(torch.rand(2, 1, 8, 8) * 0),
        package.load("weights.pt", network=OPTIONS, mean=0.5, std=0.25)(torch.zeros(2, 1, 8, 8)),
    )


@pytest.mark.parametrize("name", ["robust.pt", "robust.safetensors"])
def test_an_exported_file_needs_neither_network_nor_radius(trilemma, run_folder, place, name):
    assert trilemma("export", run_folder, "--state-dict", "--out", name).exit_code == 0
    arguments = ("--images", 40, "--protocol", "pgd-20", "--data", "digits", "--no-lint", "--json")
    rows = [json.loads(trilemma("evaluate", source, *arguments).stdout) for source in (run_folder, name)]
    ours, exported = (row["pgd-20"] for row in rows)
    assert exported["value"] == ours["value"] and exported["threat"] == ours["threat"]
    clf, again = package.load(run_folder), package.load(name)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(clf(images), again(images))
    assert again.class_names == clf.class_names and again.network_config == clf.network_config
    assert again.about["recipe"] == "digits/standard"


def test_a_function_can_be_the_source(trilemma, place):
    arguments = ("--data", "digits", "--protocol", "clean", "--images", 50, "--json", "--no-lint")
    named, source = (
        json.loads(trilemma("evaluate", *how, *arguments).stdout)["clean"]
        for how in (("--model", "sourcenets:linear"), ("sourcenets:linear",))
    )
    assert (
        named["value"] == source["value"] and source["checkpoint"]["source"]["model"] == "sourcenets:linear"
    )
    rows = [
        json.loads(trilemma("predict", *how, "--size", 8, "--json").stdout)
        for how in (("sourcenets:linear", "image.png"), ("--model", "sourcenets:linear", "image.png"))
    ]
    assert rows[0] == rows[1] and rows[0][0]["class"] in map(str, range(10))


def test_logits_inside_a_dictionary_are_selected_by_name(trilemma, mistake, place):
    arguments = ("--data", "digits", "--protocol", "clean", "--images", 50, "--no-lint")
    line = mistake("evaluate", "sourcenets:parts", *arguments)
    assert "--output features" in line or "--output logits" in line
    value = json.loads(
        trilemma("evaluate", "sourcenets:parts", "--output", "logits", *arguments, "--json").stdout
    )
    plain = json.loads(trilemma("evaluate", "sourcenets:linear", *arguments, "--json").stdout)
    assert value["clean"]["value"] == plain["clean"]["value"]
    clf = package.load(model="sourcenets:parts", output="logits", size=8)
    assert clf.num_classes == 10 and clf.image_shape == (1, 8, 8)


def test_python_takes_the_same_description(place):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    clf = package.load(model=network, classes=["a", "b", "c"], mean=[0.5] * 3, std=[0.5] * 3, size=2)
    assert clf.network is network and clf.class_names == ("a", "b", "c") and clf.image_shape == (3, 2, 2)
    (place / "names.txt").write_text("x\ny\n\nz\n")
    assert package.load(model=lambda: network, classes="names.txt", size=2).class_names == ("x", "y", "z")
    source = ClassifierSource(model=network, size=2)
    assert (
        source.open().num_classes == 3 and package.predict(source, torch.zeros(1, 3, 2, 2))[0]["image"] == 0
    )


def test_the_classes_of_stored_classifiers_can_be_named_but_not_changed(run_folder):
    clf = package.load(run_folder)
    file = run_folder / "checkpoints" / "best" / "classifier.safetensors"
    assert clf.class_names == tuple(map(str, range(10)))
    assert package.load(file, classes=NAMES).class_names == tuple(NAMES)
    with pytest.raises(ConfigError, match=r"has 10 classes \(0, 1, 2, 3, 4, \.\.\.\); remove the option"):
        package.load(file, classes=3)


MISTAKES = {
    "missing": (
        ["weights.ptt", "--network", "small-resnet"],
        "no such run folder or classifier file. Did you mean",
    ),
    "wrong network": (["weights.pt", "--network", "wide-resnet"], "weights of another architecture"),
    "count": (
        [*WEIGHTS, "--classes", "3"],
        "--classes: 3 classes, but the weights of weights.pt have 10 outputs",
    ),
    "one class": ([*WEIGHTS, "--classes", "1"], "a classifier has 2 to 100,000 classes"),
    "no file": ([*WEIGHTS, "--classes", "cat"], "neither a number, nor NAME,NAME,..., nor a text file"),
    "std": (["weights.pt", "--network", OPTIONS, "--mean", "0.5"], "give both mean and std, or neither"),
    "hub": (["hub:someone"], "write hub:OWNER/NAME"),
    "two networks": (
        ["timm:resnet18", "--model", "sourcenets:linear"],
        "timm:resnet18 is a network of its own",
    ),
    "no function": (["sourcenets:linaer"], "has no function 'linaer'. Did you mean 'linear'?"),
    "run": (["run", "--size", "16"], "--size: run is a run, which stores it; remove --size"),
    "nothing": ([], "no classifier given"),
}


@pytest.mark.parametrize(
    "command", ["evaluate", "lint", "diagnose", "predict", "score", "export", "generate"]
)
def test_mistakes_are_the_same_in_every_command(mistake, place, run_folder, command):
    more = {
        "predict": ["image.png"], "score": ["image.png"], "export": ["--state-dict", "--data", "digits"],
        "generate": [],
    }.get(command, ["--data", "digits", "--radius", "0.1"])  # fmt: skip
    for arguments, expected in MISTAKES.values():
        if not arguments and command in ("predict", "score"):
            continue
        assert expected in mistake(command, *arguments, *more), (command, arguments)


def test_the_checkpoint_of_a_run_can_be_chosen(run_folder):
    last = package.load(run_folder)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(2)
    last.save(run_folder / "checkpoints" / "last" / "classifier.safetensors")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(package.load(run_folder, checkpoint="last")(images), last.eval()(images))
    assert not torch.equal(package.load(run_folder)(images), last(images))
    (run_folder / "checkpoints" / "last" / "classifier.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no last classifier"):
        package.load(run_folder, checkpoint="last")
