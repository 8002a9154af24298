"""Weights from elsewhere: found wherever scripts put them, never by running code, and refused when they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trilemma.classifier.foreign_weights import CONTAINERS, load_weights, read_weights
from trilemma.errors import CheckpointError


class Small(nn.Module):
    """A network with its normalisation inside, as RobustBench's are, and with BatchNorm."""

    mu: Tensor

    def __init__(self, seed: int, classes: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, classes)
            )
        self.register_buffer("mu", torch.tensor([0.5]).view(1, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images - self.mu)
        return logits


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {prefix + name: value for name, value in state.items()}


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    **{name: lambda state, name=name: {name: state, "epoch": 3} for name in CONTAINERS},  # type: ignore[misc]
    "nested": lambda state: {"model": {"state_dict": state}},
    "parallel": lambda state: {"state_dict": prefixed("module.")(state), "optimizer": {"lr": 0.1}},
    "wrapped twice": prefixed("module.model."),
    "some names only": lambda state: {
        name if name == "mu" else f"module.{name}": value for name, value in state.items()
    },
    "without its constants": lambda state: {
        name: value for name, value in state.items() if name not in ("mu", "body.1.num_batches_tracked")
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_and_fitted_wherever_scripts_put_them(form: str, tmp_path: Path) -> None:
    theirs, ours = Small(0).eval(), Small(1).eval()
    torch.save(FORMS[form](theirs.state_dict()), tmp_path / "weights.pt")
    load_weights(ours, read_weights(tmp_path / "weights.pt"))
    images = torch.rand(4, 1, 4, 4)
    assert torch.equal(ours(images), theirs(images))


def test_safetensors_weights_are_read_too(tmp_path: Path) -> None:
    theirs, ours = Small(0), Small(1)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    load_weights(ours, read_weights(tmp_path / "weights.safetensors"))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_a_prefix_that_the_network_has_itself_stays(tmp_path: Path) -> None:
    theirs, ours = (nn.Sequential() for _ in range(2))
    for seed, network in enumerate((theirs, ours)):
        network.add_module("model", Small(seed))
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    load_weights(ours, read_weights(tmp_path / "weights.pt"))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def refused(path: Path, network: nn.Module | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_weights(network or Small(0), read_weights(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_of_another_network_are_counted_and_the_first_names_given(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, tmp_path / "other.pt")
    line = refused(tmp_path / "other.pt")
    assert "8 tensors missing, 2 unknown, 0 of another shape" in line
    assert (
        "first missing: body.0.bias, body.0.weight, " in line and "; unknown: conv1.weight, fc.bias" in line
    )


def test_a_layer_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    torch.save(Small(0, classes=5).state_dict(), tmp_path / "five.pt")
    assert "2 of another shape; first shape: body.3.bias [5] for [3]" in refused(tmp_path / "five.pt")


class Trap:
    """Pickled, it leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return open, (self.mark, "w")


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Small(0).state_dict(), "args": Trap(tmp_path / "mark")}, tmp_path / "trap.pt")
    assert "holds more than tensors, and reading it could run code, so it is refused" in refused(
        tmp_path / "trap.pt"
    )
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"best": {"a": torch.zeros(1)}, "last": {}}, "no state dict at the top level or under state_dict, "),
        ({"best": {"a": torch.zeros(1)}, "last": {}}, "(found: best, last)"),
        ([1, 2], "(found: list)"),
        (torch.zeros(3), "(found: Tensor)"),
        ({}, "no state dict"),
    ],
)
def test_a_file_without_weights_says_what_it_has(content: Any, expected: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pt")
    assert expected in refused(tmp_path / "odd.pt")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_what_is_cut_short_or_no_weights_at_all_is_said_so(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(Small(0).state_dict(), path) if path.suffix == ".safetensors" else torch.save(
        Small(0).state_dict(), path
    )
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "not a file of weights, or cut short" in refused(path)


def test_text_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("hello")
    assert "notes.pt: " in refused(tmp_path / "notes.pt")
    with pytest.raises(CheckpointError, match="no such file; give the file with the weights"):
        read_weights(tmp_path / "missing.pt")
