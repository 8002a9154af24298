"""``evaluate`` on networks and weights from elsewhere: what works, and one line for each way it cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import trilemma as package
from trilemma.classifier.load import load
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallResNetOptions

OWN = """
import torch
import trilemma
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
def whole():
    return trilemma.Classifier(network(), 10, [0.5], [0.25], threat=trilemma.Threat("linf", "0.1"))
def colour():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10))
def two():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
def sized(width, depth=2):
    return network()
def broken():
    raise ValueError("no weights here")
ready = network()
"""
QUICK = ["--data", "digits", "--protocol", "clean", "--images", "50", "--json"]


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules of networks; a process imports a module of one name only once."""
    for name in ("theirnets", "badnets", "farnets", "runnets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "theirnets.py").write_text(OWN)
    return tmp_path


def linear(seed: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def value(result) -> float:
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout).values()
    return float(row["value"])


def expected(network: nn.Module, mean=None, std=None) -> float:
    clf = package.Classifier(network, 10, mean, std).eval()
    return float(package.evaluate(clf, "digits", ["clean"], images=50)["clean"]["value"])


def test_a_state_dict_with_its_architecture_as_a_function(trilemma, nets):
    network = linear()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, nets / "w.pt")
    assert value(trilemma("evaluate", "w.pt", "--model", "theirnets:network", *QUICK)) == expected(network)


def test_a_state_dict_of_one_of_our_networks_by_name_and_options(trilemma, tmp_path):
    network = create_network(SmallResNetOptions(width=4, norm="none"), 10, (1, 8, 8))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    found = value(trilemma("evaluate", "w.pth", "--network", "small-resnet,width=4,norm=none", *QUICK))
    assert found == expected(network)


def test_weights_go_into_the_classifier_that_the_function_gives(trilemma, nets):
    network = linear()
    torch.save(network.state_dict(), nets / "w.pt")
    found = value(trilemma("evaluate", "w.pt", "--model", "theirnets:whole", *QUICK))
    assert found == expected(network, [0.5], [0.25])


def test_a_file_of_ours_goes_into_the_classifier_that_the_function_gives(trilemma, nets):
    network = linear()
    package.Classifier(network, 10, [0.5], [0.25], image_shape=(1, 8, 8)).save(nets / "w.safetensors")
    for function in ("network", "whole"):
        found = value(trilemma("evaluate", "w.safetensors", "--model", f"theirnets:{function}", *QUICK))
        assert found == expected(network, [0.5], [0.25])


@pytest.mark.parametrize("prefix", ["", "normalize."])
def test_a_normalisation_in_the_file_is_used_and_said(trilemma, nets, prefix):
    network = linear()
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    weights |= {
        f"{prefix}mean": torch.full((1, 1, 1, 1), 0.5), f"{prefix}std": torch.full((1, 1, 1, 1), 0.25),
    }  # fmt: skip
    torch.save(weights, nets / "w.pt")
    result = trilemma("evaluate", "w.pt", "--model", "theirnets:network", *QUICK)
    assert value(result) == expected(network, [0.5], [0.25])
    assert "using its normalisation, mean [0.5], std [0.25]" in result.stderr


def test_mean_and_std_normalise_before_the_network(nets, monkeypatch):
    monkeypatch.chdir(nets)
    network = linear()
    torch.save(network.state_dict(), nets / "w.pt")
    clf = load("w.pt", model="theirnets:network", classes=10, mean=0.9, std=0.5)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(clf(images), network((images - 0.9) / 0.5))


def test_the_run_folders_weights_in_a_network_of_ones_own(trilemma, nets, run_folder):
    network = package.load(run_folder).network
    (nets / "runnets.py").write_text(
        "from trilemma.networks.small_resnet import SmallResNet\ndef net():\n    return SmallResNet(10, 1, width=4)\n"
    )
    clf = package.load(run_folder)
    found = value(trilemma("evaluate", run_folder, "--model", "runnets:net", *QUICK))
    assert found == expected(network, clf.mean, clf.std)


MISTAKES = {
    "both": (["--model", "theirnets:network", "--network", "small-resnet"], "both set the network; use one"),
    "no weights": (["--network", "small-resnet"], "has no weights; add a weights file"),
    "misspelt": (["w.pt", "--network", "small-resent"], "unknown network 'small-resent'. Did you mean 'small-resnet'"),
    "option": (["w.pt", "--network", "small-resnet,widht=4"], "widht: extra inputs are not permitted; options of "),
    "form": (["w.pt", "--network", "small-resnet,4"], "'4' is not of the form key=value"),
    "keys": (["w.pt", "--network", "small-resnet"], "w.pt: weights of another architecture ("),
    "missing": (["v.pt", "--model", "theirnets:network"], "v.pt: no such run folder or classifier file"),
    "alone": (["w.pt"], "w.pt: holds weights but does not say which network they belong to; add --network NAME"),
    "mean": (["w.pt", "--model", "theirnets:network", "--mean", "0.5"], "give both mean and std, or neither"),
    "twice": (
        ["n.pt", "--model", "theirnets:whole"],
        "n.pt: contains a normalisation, which conflicts with the classifier",
    ),
    "three times": (
        ["n.pt", "--model", "theirnets:network", "--mean", "0", "--std", "1"],
        "which conflicts with --mean and --std",
    ),
    "numbers": (
        ["w.pt", "--model", "theirnets:network", "--mean", "a", "--std", "1"],
        "--mean a: expects numbers separated",
    ),
    "whole": (
        ["w.pt", "--model", "theirnets:whole", "--mean", "0", "--std", "1"],
        "of --model stores its own normalisation; remove both",
    ),
    "shape": (["--model", "theirnets:colour"], "digits: images are 1x8x8 (C, H, W), but the network takes 3x8x8"),
    "classes": (["--model", "theirnets:two"], "network: returned [1, 2] for 1 image and 10 classes, which"),
    "arguments": (["--model", "theirnets:sized"], "requires arguments (width); name a function that needs none"),
    "raises": (["--model", "theirnets:broken"], "theirnets:broken: raised ValueError: no weights here ("),
    "no function": (["--model", "theirnets:ready"], "theirnets has no function 'ready'."),
    "syntax": (["--model", "badnets:network"], "raised SyntaxError: "),
    "import": (["--model", "farnets:network"], "no module named 'nowhere'"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), MISTAKES.values(), ids=list(MISTAKES))
def test_what_cannot_be_evaluated_is_said_in_one_line(mistake, nets, arguments, line):
    (nets / "badnets.py").write_text("def network(:\n")
    (nets / "farnets.py").write_text("import nowhere\n")
    torch.save(linear().state_dict(), nets / "w.pt")
    torch.save(linear().state_dict() | {"mean": torch.zeros(1), "std": torch.ones(1)}, nets / "n.pt")
    assert line in mistake("evaluate", *arguments, *QUICK)


def test_a_run_knows_its_network_and_normalisation(mistake, run_folder):
    assert "is a run, which stores its network" in mistake(
        "evaluate", run_folder, "--network", "small-resnet"
    )
    file = run_folder / "checkpoints" / "best" / "classifier.safetensors"
    assert "stores its own normalisation" in mistake("evaluate", file, "--mean", "0", "--std", "1")
    assert "already stored in the classifier file" in mistake(
        "evaluate", file, "--network", "small-resnet", *QUICK
    )


def test_data_are_asked_for_where_nothing_names_them(mistake, nets):
    torch.save(linear().state_dict(), nets / "w.pt")
    line = mistake("evaluate", "w.pt", "--model", "theirnets:network")
    assert line.startswith("the number of classes of this network is not known; add --classes")
    line = mistake("evaluate", "w.pt", "--model", "theirnets:network", "--classes", 10)
    assert "not a known data set (not stored); add --data NAME" in line
