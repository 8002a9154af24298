"""Exported classifiers give the logits of the original, without trilemma; what would not is never written."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import trilemma
from trilemma.classifier.foreign_weights import load_weights, read_weights
from trilemma.data.image_set import ImageSet
from trilemma.errors import CheckpointError, DataError, MissingExtraError, NotStoredError, RunError, UserError
from trilemma.evaluation.evaluate import evaluate
from trilemma.evaluation.export import export_onnx, export_state_dict
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallResNetOptions

Export = Callable[..., dict[str, Any]]
EXPORTS = {"pt": export_state_dict, "onnx": export_onnx}
OPTIONS = SmallResNetOptions(width=4)


@pytest.fixture(scope="module")
def clf() -> trilemma.Classifier:
    """A network with BatchNorm that has seen images, normalisation, names and a threat."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_network(OPTIONS, 3, (1, 8, 8))
        clf = trilemma.Classifier(
            network, 3, [0.4], [0.3], class_names=("ant", "bee", "cow"), image_shape=(1, 8, 8),
            threat=trilemma.Threat("l2", "0.5"), network_config=OPTIONS.model_dump(),
        )  # fmt: skip
        clf.train()(torch.rand(64, 1, 8, 8))
    clf.about = {"checkpoint": "best", "epoch": 3.0}
    return clf.eval()


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = torch.randint(0, 256, (11, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    return ImageSet(pixels.to(torch.uint8), torch.arange(11) % 3, ("ant", "bee", "cow"), "insects", "test")


@pytest.fixture(scope="module")
def onnx_file(clf, images, tmp_path_factory) -> Path:
    """Exported once: tracing takes seconds."""
    path: Path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    before = {name: value.clone() for name, value in clf.state_dict().items()}
    clf.train()
    export_onnx(clf, path, images)
    assert clf.training and all(p.requires_grad for p in clf.parameters())
    assert all(torch.equal(value, before[name]) for name, value in clf.state_dict().items())
    clf.eval()
    return path


def test_weights_give_the_same_logits_bit_for_bit_in_plain_torch(clf, images, tmp_path):
    class Plain(nn.Module):
        mean: Tensor
        std: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = create_network(OPTIONS, 3, (1, 8, 8))
            self.register_buffer("mean", torch.zeros(1, 1, 1, 1))
            self.register_buffer("std", torch.ones(1, 1, 1, 1))

        def forward(self, batch: Tensor) -> Tensor:
            logits: Tensor = self.network((batch - self.mean) / self.std)
            return logits

    export_state_dict(clf, tmp_path / "plain.pt", images)
    plain = Plain()
    content = torch.load(tmp_path / "plain.pt", weights_only=True)
    plain.load_state_dict(content["state_dict"])
    batch = images.float_images()
    with torch.no_grad():
        assert torch.equal(plain.eval()(batch), clf(batch))
    again = Plain()
    load_weights(
        again, read_weights(tmp_path / "plain.pt")
    )  # as `trilemma evaluate plain.pt --model ...` reads it
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in again.state_dict().items())


def test_onnx_gives_the_same_logits_for_any_batch_size(clf, images, onnx_file):
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    for count in (1, 2, 7, 11):
        batch = images.float_images(range(count))
        (logits,) = session.run(["logits"], {"images": batch.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, clf(batch).numpy(), atol=1e-5)


def test_metadata_name_classes_threat_input_and_checkpoint(clf, images, onnx_file, tmp_path):
    metadata = export_state_dict(clf, tmp_path / "net.pt", images)
    assert metadata["class_names"] == ["ant", "bee", "cow"]
    assert metadata["threat"] == {"norm": "l2", "radius": "0.5"}
    assert "[0, 1]" in metadata["input"] and metadata["about"]["checkpoint"] == "best"
    assert metadata["checked_on"] == {"data": "insects", "split": "test", "images": 11}
    assert torch.load(tmp_path / "net.pt", weights_only=True)["metadata"] == metadata
    texts = {p.key: p.value for p in onnx.load(onnx_file).metadata_props}
    assert json.loads(texts["trilemma"]) == metadata
    assert json.loads(texts["class_names"]) == ["ant", "bee", "cow"]


def test_an_onnx_file_names_no_path_of_the_machine_it_was_made_on(onnx_file):
    assert str(Path(trilemma.__file__).parent).encode() not in onnx_file.read_bytes()


def test_the_classifier_is_left_as_it_was(clf, images, tmp_path):
    before = {name: value.clone() for name, value in clf.state_dict().items()}
    clf.train()
    export_state_dict(clf, tmp_path / "net.pt", images)
    assert clf.training and all(p.requires_grad for p in clf.parameters())
    assert all(torch.equal(value, before[name]) for name, value in clf.state_dict().items())
    clf.eval()


def test_a_classifier_without_normalisation_is_exported_too(clf, images, tmp_path):
    bare = trilemma.Classifier(clf.network, 3, image_shape=(1, 8, 8)).eval()
    export_state_dict(bare, tmp_path / "bare.pt", images)
    state = torch.load(tmp_path / "bare.pt", weights_only=True)["state_dict"]
    assert (state["mean"].item(), state["std"].item()) == (0.0, 1.0)


class Moody(nn.Module):
    """Adds chance to its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.linear(batch.flatten(1)) + torch.rand(1)
        return logits


def refused(
    error: type[UserError], export: Export, clf: trilemma.Classifier, path: Path, images: ImageSet
) -> str:
    before = sorted(path.parent.iterdir())
    with pytest.raises(error) as caught:
        export(clf, path, images)
    assert sorted(path.parent.iterdir()) == before, "nothing may be left behind"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_would_give_other_logits_is_not_written(images, tmp_path):
    clf = trilemma.Classifier(Moody(), 3).eval()
    line = refused(CheckpointError, export_state_dict, clf, tmp_path / "moody.pt", images)
    assert (
        "not written: the exported file gives other logits than the classifier (largest difference " in line
    )


def test_a_file_that_is_there_is_never_written_over(clf, images, tmp_path):
    for kind, export in EXPORTS.items():
        path = tmp_path / f"taken.{kind}"
        path.write_text("mine")
        assert "already exists; refusing to overwrite it" in refused(RunError, export, clf, path, images)
        assert path.read_text() == "mine"


def test_images_of_another_shape_or_other_classes_are_refused(clf, images, tmp_path):
    wide = ImageSet(images.images.repeat(1, 1, 1, 2), images.labels, images.class_names, "wide", "test")
    assert "1x8x16" in refused(DataError, export_state_dict, clf, tmp_path / "a.pt", wide)
    more = ImageSet(images.images, images.labels, tuple("abcd"), "more", "test")
    assert "has 4 classes" in refused(DataError, export_onnx, clf, tmp_path / "a.onnx", more)


def test_without_the_extra_the_line_names_it(clf, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = refused(MissingExtraError, export_onnx, clf, tmp_path / "a.onnx", images)
    assert "pip install -e '.[onnx]'" in line
    export_state_dict(clf, tmp_path / "a.pt", images)


def test_a_network_that_onnx_cannot_express_is_one_line(clf, images, tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nand a page of graph")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    line = refused(CheckpointError, export_onnx, clf, tmp_path / "a.onnx", images)
    assert "this network cannot be exported to ONNX (RuntimeError: no such operator" in line
    assert line.endswith("; use --state-dict")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            NotStoredError,
            "cannot be written (No space left on device)",
        ),
        (ValueError("too large\nfor protobuf"), CheckpointError, "not written: ValueError: too large"),
        (KeyError("graph"), CheckpointError, "not written: KeyError: 'graph'"),
    ],
)
def test_whatever_a_writer_raises_is_one_line(clf, images, tmp_path, monkeypatch, error, expected, message):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert message in refused(expected, export_state_dict, clf, tmp_path / "a.pt", images)
    monkeypatch.setattr("trilemma.evaluation.export._onnx_model", lambda *_: onnx.ModelProto())
    monkeypatch.setattr(onnx, "save", fail)
    assert message in refused(expected, export_onnx, clf, tmp_path / "a.onnx", images)


def test_the_disk_is_written_by_pythons_own_files(clf, images, tmp_path, monkeypatch):
    """torch's writer of archives reports a full disk as a RuntimeError of its own."""
    save = torch.save

    def to_memory(content: Any, file: Any) -> None:
        assert not isinstance(file, str | Path)
        save(content, file)

    monkeypatch.setattr(torch, "save", to_memory)
    export_state_dict(clf, tmp_path / "a.pt", images)


def test_logits_inside_a_dict_and_wrappers_are_not_in_the_file(clf, images, tmp_path):
    class Whole(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            return {"features": x, "logits": self.inner(x)}

    network = nn.DataParallel(Whole(clf.network))
    whole = trilemma.Classifier(network, 3, clf.mean.flatten(), clf.std.flatten(), output="logits").eval()
    export_state_dict(whole, tmp_path / "a.pt", images)
    names = torch.load(tmp_path / "a.pt", weights_only=True)["state_dict"].keys()
    assert all(name in ("mean", "std") or name.startswith("network.inner.") for name in names)
    export_onnx(whole, tmp_path / "a.onnx", images)


def test_an_export_is_evaluated_like_the_original(clf, images, tmp_path):
    export_state_dict(clf, tmp_path / "net.pt", images)
    network = create_network(OPTIONS, 3, (1, 8, 8))
    state = torch.load(tmp_path / "net.pt", weights_only=True)["state_dict"]
    network.load_state_dict(
        {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
    )
    other = trilemma.Classifier(network, 3, state["mean"].flatten(), state["std"].flatten()).eval()
    rows = [evaluate(c, images, ["clean", "pgd-20"], trilemma.Threat("linf", "0.1")) for c in (clf, other)]
    assert [row["value"] for row in rows[0].values()] == [row["value"] for row in rows[1].values()]
