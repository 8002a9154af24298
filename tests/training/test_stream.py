"""Training on tar shards: the run that was interrupted, the run of the resident images, and the recipe of ImageNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import Interrupt
from tests.training.support import TREE, differences, state_of, tiny

from trilemma.config.config import Config
from trilemma.config.recipe import load_config
from trilemma.data.sharding import shard_source
from trilemma.data.stream import ShardStream
from trilemma.errors import DataError
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.build import build_data
from trilemma.training.estimate import estimate
from trilemma.training.train import train

pytest.importorskip("webdataset", reason="needs the extra stream")


def arrays(folder: Path, classes: int, size: int, per_class: int) -> str:
    """An npz file of coloured noise whose mean is the class."""
    labels = np.arange(classes * per_class) % classes
    noise = np.random.default_rng(0).normal(0, 20, (len(labels), size, size, 3))
    images = (40 + 170 * labels[:, None, None, None] / classes + noise).clip(0, 255).astype(np.uint8)
    path = folder / "images.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[: 2 * classes], y_test=labels[: 2 * classes])
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return arrays(tmp_path_factory.mktemp("npz"), classes=4, size=8, per_class=60)


@pytest.fixture(scope="module")
def folder(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """216 training images, 24 held-out and 8 test images in shards of 50."""
    out = tmp_path_factory.mktemp("shards") / "out"
    shard_source(source, out, per_shard=50)
    return out


def streamed(folder: Path, method: str = "standard", **sections: Any) -> Config:
    data = {"name": "shards", "root": str(folder), "window": 60, "resident": 80}
    return tiny(method, {"epochs": 2}, data=data, **sections)


def test_a_run_interrupted_within_an_epoch_ends_as_if_it_had_not_been(
    folder: Path, tmp_path: Path, interrupt_after: Interrupt
) -> None:
    config = streamed(folder)
    whole = train(config, out=tmp_path / "whole", progress=False)
    interrupt_after(8)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(config, out=tmp_path / "broken", progress=False)
    assert RunDirectory.open(tmp_path / "broken").status()["step"] == 8
    interrupt_after(0)
    resumed = train(config, out=tmp_path / "broken", resume=True, progress=False)
    assert differences(state_of(whole.path), state_of(resumed.path)) == []
    assert differences(resumed.classifier.state_dict(), whole.classifier.state_dict()) == []
    assert differences(resumed.classifier.statistics, whole.classifier.statistics) == []


def test_a_stream_trains_to_the_weights_of_the_resident_images_in_its_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = streamed(folder, "pgd-at", attack={"steps": 1})
    stream = train(config, out=tmp_path / "stream", progress=False)
    splits = build_data(config)
    assert isinstance(splits.training, ShardStream) and len(splits.train) == 80
    pixels = torch.cat([*splits.training.batches([torch.arange(len(splits.training))])])

    def batches(self: ShardStream, wanted: list[torch.Tensor]) -> Any:
        return (pixels[index] for index in wanted)

    monkeypatch.setattr(ShardStream, "batches", batches)
    resident = train(config, out=tmp_path / "resident", progress=False)
    assert differences(state_of(stream.path), state_of(resident.path)) == []
    assert stream.classifier.about["data"].startswith("shards:")


def test_an_image_that_is_damaged_after_the_count_ends_the_run_with_one_line(
    source: str, tmp_path: Path
) -> None:
    shard_source(source, tmp_path / "shards", per_shard=50)
    path = tmp_path / "shards" / "train-000004.tar"
    config = streamed(tmp_path / "shards")
    # The held-out and resident images are decoded and kept before the damage.
    build_data(config)
    content = bytearray(path.read_bytes())
    for start in [k for k in range(0, len(content), 512) if content[k : k + 4] == b"\x89PNG"]:
        content[start + 8 : start + 40] = bytes(32)
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"train-000004.tar: its content does not match the checksum in shards.json"
    ) as error:
        train(config, out=tmp_path / "run", progress=False)
    assert "\n" not in str(error.value)


def test_an_estimate_counts_the_stream_and_the_memory_of_the_choice(folder: Path) -> None:
    result = estimate(streamed(folder), "cpu")
    assert all(check["ok"] for check in result["checks"]), result["checks"]
    data = next(check["message"] for check in result["checks"] if check["name"] == "data")
    assert "216 train, 24 held-out, 8 test images in 4 classes" in data
    assert "starts from 80 of the 216 training images" in data
    assert result["steps"] == 2 * (216 // TREE["training"]["batch_size"])


TINY = ["network={name: small-resnet, width: 2, depth: 8}", "attack.steps=1"]


def test_the_imagenet_recipe_is_estimated_before_there_are_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilemma.training.estimate.seconds_per_image", lambda *arguments: 0.001)
    config = load_config("imagenet/pgd-at", TINY)
    assert (config.threat.radius, config.data.size) == ("4/255", 224)  # type: ignore[union-attr]
    result = estimate(config, "cpu")
    assert all(check["ok"] for check in result["checks"]), result["checks"]
    message = next(check["message"] for check in result["checks"] if check["name"] == "data")
    assert (
        message
        == "not checked: data.root is not given; estimated for the 1,261,167 training images of imagenet"
    )
    assert result["steps"] == 90 * (1_261_167 // 512)
    # Of the images 20,000 are held decoded: 3.0 GB.
    assert 3.0 < result["memory_gb"] < 200
    assert result["hours"] == pytest.approx(result["steps"] * 5 * 512 * 0.001 / 3600)


def test_the_imagenet_recipe_trains_on_shards(tmp_path: Path) -> None:
    source = arrays(tmp_path, classes=4, size=12, per_class=12)
    shard_source(source, tmp_path / "shards", per_shard=9)
    small = ["data.size=16", "training.batch_size=8", "training.epochs=2", "schedule={name: constant}"]
    config = load_config("imagenet/pgd-at", [*TINY, *small, f"data.root={tmp_path / 'shards'}"])
    run = train(config, out=tmp_path / "run", progress=False)
    assert run.metrics[-1]["step"] == 2 * (44 // 8)
    assert run.classifier.image_shape == (3, 16, 16) and run.classifier.num_classes == 4
    assert run.classifier.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])  # type: ignore[union-attr]
