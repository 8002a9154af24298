"""``robustbench:NAME``: files in RobustBench's layout, and one line for missing files and other names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import trilemma
from trilemma.classifier.opening import network_options
from trilemma.classifier.robustbench import ENTRIES, find
from trilemma.errors import CheckpointError, UnknownNameError
from trilemma.networks.create import create_network

RICE = "cifar10/L2/Rice2020Overfitting"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "robustbench"


def published(path: Path, classes: int = 10, **more: torch.Tensor) -> torch.nn.Module:
    """Writes a file as RobustBench has it, in our own parameter names, behind ``module.``; returns the network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_network(network_options("preact-resnet"), classes, (3, 32, 32)).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state | more}, path)
    return network


def test_a_file_in_the_cache_becomes_a_classifier_with_the_normalisation_of_its_authors(cache: Path) -> None:
    network = published(cache / f"{RICE}.pt")
    clf = trilemma.load(f"robustbench:{RICE}")
    assert clf.mean is not None and clf.std is not None
    assert clf.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(clf(images), network((images - clf.mean) / clf.std))
    assert clf.threat == trilemma.Threat("l2", "0.5") and clf.image_shape == (3, 32, 32)
    assert clf.network_config is not None and clf.network_config["name"] == "preact-resnet"
    assert clf.about["data"] == "cifar10" and clf.about["source"]["source"] == f"robustbench:{RICE}"
    assert len(clf.about["source"]["sha256"]) == 64


def test_a_normalisation_in_the_file_replaces_that_of_the_table(cache: Path) -> None:
    half = torch.full((1, 3, 1, 1), 0.5)
    published(cache / f"{RICE}.pt", mu=half, sigma=half / 2)
    clf = trilemma.load(f"robustbench:{RICE}")
    assert clf.mean is not None and clf.mean.flatten().tolist() == [0.5] * 3


def test_a_path_names_its_network_by_its_last_parts(tmp_path: Path) -> None:
    published(tmp_path / "cifar100" / "Linf" / "Addepalli2021Towards_PARN18.pt", classes=100)
    clf = trilemma.load(f"robustbench:{tmp_path}/cifar100/Linf/Addepalli2021Towards_PARN18.pt")
    assert clf.num_classes == 100 and clf.threat == trilemma.Threat("linf", "8/255") and clf.mean is None


def test_a_missing_file_is_named_with_its_place_and_address(cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        trilemma.load("robustbench:Carmon2019Unlabeled")
    line = str(caught.value)
    assert f"no file {cache / 'cifar10' / 'Linf' / 'Carmon2019Unlabeled.pt'}; download https://" in line
    assert "\n" not in line and ENTRIES["cifar10", "Linf"]["Carmon2019Unlabeled"].drive in line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Carmon2019Unlabelled", "Did you mean 'Carmon2019Unlabeled'?"),
        ("mnist/Linf/Some", "write robustbench:DATA/NORM/NAME, DATA/NORM one of cifar10/Linf, "),
        ("Linf/Some", "write robustbench:DATA/NORM/NAME"),
        (
            "Gowal2020Uncovering_70_16",
            "no network 'Gowal2020Uncovering_70_16' of cifar10, Linf that trilemma can",
        ),
    ],
)
def test_other_names_are_answered_in_one_line(name: str, message: str, cache: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_network_of_the_table_has_options_that_are_valid() -> None:
    for entry in [entry for entries in ENTRIES.values() for entry in entries.values()]:
        assert network_options(entry.network).name in ("wide-resnet", "preact-resnet")
        assert len(entry.drive) == 33
