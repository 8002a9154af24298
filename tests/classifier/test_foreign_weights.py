"""Weights from elsewhere: found wherever scripts put them, never by running code, and refused when they do not fit."""

from __future__ import annotations

import struct
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.foreign_weights import CONTAINERS, load_weights, read_weights
from trilemma.data import load_images
from trilemma.errors import CheckpointError, UserError
from trilemma.evaluation.export import plain


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


def averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other weights of the same shapes, so that a wrong choice is noticed."""
    return {name: value * 2 if value.is_floating_point() else value for name, value in state.items()}


AVERAGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "AveragedModel": (
        lambda state: {"n_averaged": torch.tensor(4)} | prefixed("module.")(averaged(state)),
        "an AveragedModel, using its average of 4 updates",
    ),
    **{
        key: (
            lambda state, key=key: {"state_dict": state, key: averaged(state), "epoch": 3},  # type: ignore[misc]
            f"using the averaged weights ({key}), not the weights of the last step (state_dict)",
        )
        for key in (
            "state_dict_ema",
            "ema_state_dict",
            "swa_state_dict",
            "model_ema",
            "averaged_model",
            "ema",
        )
    },
    "inside": (
        lambda state: {"model": state, "ema": {"decay": 0.99, "module": averaged(state)}},
        "using the averaged weights (ema), not the weights of the last step (model)",
    ),
    "two copies": (
        lambda state: {"state_dict": prefixed("model.")(state) | prefixed("ema_model.")(averaged(state))},
        "using the averaged weights (ema_model.*), not the other copy in the file",
    ),
}


@pytest.mark.parametrize("form", AVERAGES)
def test_an_average_in_the_file_is_taken_and_told(form: str, tmp_path: Path) -> None:
    content, note = AVERAGES[form]
    ours, theirs = Small(1), Small(0).state_dict()
    torch.save(content(theirs), tmp_path / "weights.pt")
    stored = read_weights(tmp_path / "weights.pt")
    load_weights(ours, stored)
    assert stored.notes == (note,)
    assert all(torch.equal(value, averaged(theirs)[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs, ours = Small(0).to(dtype), Small(1)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    stored = read_weights(tmp_path / "weights.pt")
    load_weights(ours, stored)
    assert stored.notes == (f"{str(dtype).removeprefix('torch.')} weights, converted to float32",)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name].to(value.dtype))


def test_plain_values_that_scripts_store_beside_the_weights_are_read(tmp_path: Path) -> None:
    beside = {"args": Namespace(lr=0.1), "best": np.float64(93.2), "top": np.float32(1), "epoch": np.int64(3)}
    torch.save({"state_dict": Small(0).state_dict(), **beside}, tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").tensors.keys() == Small(0).state_dict().keys()


def test_diverged_weights_are_refused(tmp_path: Path) -> None:
    state = Small(0).state_dict()
    state["body.3.bias"][1] = torch.nan
    torch.save(state, tmp_path / "weights.pt")
    assert "body.3.bias has values that are not finite" in refused(tmp_path / "weights.pt")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_called_one(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(Small(0).eval(), torch.rand(1, 1, 4, 4)), str(tmp_path / "script.pt"))
    assert "a TorchScript archive, which holds a program" in refused(tmp_path / "script.pt")


class Nested(nn.Module):
    """A network with a wrapped part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.part(images)
        return logits


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda network: torch.compile(nn.DataParallel(network), backend="eager"),
    "averaged": AveragedModel,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("nested", [False, True])
def test_names_of_wrappers_reach_no_file(wrapper: str, nested: bool, tmp_path: Path) -> None:
    network = Nested(WRAPPERS[wrapper](Small(0))) if nested else WRAPPERS[wrapper](Small(0))
    clf = Classifier(network, 3)
    clf.save(tmp_path / "saved.safetensors")
    inside = Nested(Small(1)) if nested else Small(1)
    Classifier.load(tmp_path / "saved.safetensors", network=inside)
    expected = {f"part.{name}" if nested else name: value for name, value in Small(0).state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in inside.state_dict().items())
    exported = plain(clf).state_dict().keys() - {"mean", "std"}
    assert exported == {f"network.{name}" for name in expected}


# The end of a zip archive that says that its beginning is on another disk; and one whose directory is cut.
OTHER_DISK = struct.pack("<4sLQL", b"PK\6\7", 1, 0, 2) + struct.pack(
    "<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0
)
CUT = b"PK\1\2" + bytes(20) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 24, 0, 0)


@pytest.mark.parametrize("end", [OTHER_DISK, CUT])
@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (Classifier.load, "x.safetensors", "not a classifier file, or cut short|a pickled checkpoint"),
        (read_weights, "x.pt", "not a file of weights, or cut short|holds more than tensors"),
        (load_images, "x.zip", "truncated or damaged archive"),
        (load_images, "x.npz", "truncated or damaged archive|not an .npz|damaged"),
    ],
)
def test_an_impossible_zip_archive_is_one_line(
    tmp_path: Path, end: bytes, read: Callable[[str], object], name: str, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(b"x" * 100 + end)
    with pytest.raises(UserError, match=message) as caught:
        read(str(file))
    assert "\n" not in str(caught.value)
