from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import trilemma
from trilemma.classifier.classifier import Classifier
from trilemma.errors import CheckpointError, NotStoredError
from trilemma.files import CLASSIFIER
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallResNetOptions
from trilemma.runs.digests import classes_digest

OPTIONS = SmallResNetOptions(width=4)


def small(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    clf = Classifier(
        create_network(OPTIONS, 3, (1, 8, 8)),
        3,
        mean=[0.4],
        std=[0.3],
        class_names=["ant", "bee", "cat"],
        image_shape=(1, 8, 8),
        threat=trilemma.Threat("linf", "8/255"),
        network_config=OPTIONS.model_dump(mode="json"),
    )
    clf.statistics = {
        "energy_mean": torch.tensor([1.0, 2.0, 3.0]),
        "energy_std": torch.tensor([0.5, 0.25, 0.5]),
    }
    clf.about = {"recipe": "digits/pgd-at", "step": 7, "epoch": 0.5}
    return clf.train()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    clf = small()
    clf.logits(torch.rand(4, 1, 8, 8))  # running statistics of their own
    clf.save(tmp_path / "new" / "model.safetensors")
    loaded = trilemma.load(tmp_path / "new" / "model.safetensors")
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(images), clf.eval()(images))
    assert not any(module.training for module in loaded.modules())
    assert loaded.class_names == ("ant", "bee", "cat")
    assert loaded.num_classes == 3 and loaded.image_shape == (1, 8, 8)
    assert loaded.threat == trilemma.Threat("linf", "8/255") and loaded.threat.radius == "8/255"
    source = loaded.about.pop("source")
    assert source["source"] == str(tmp_path / "new" / "model.safetensors")
    assert loaded.about == clf.about and loaded.network_config == clf.network_config
    assert loaded.statistics.keys() == clf.statistics.keys()
    assert all(torch.equal(loaded.statistics[name], value) for name, value in clf.statistics.items())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_a_network_of_ones_own_is_passed_when_loading(tmp_path: Path, toy) -> None:
    clf = toy.mlp(seed=1)
    clf.save(tmp_path / "mine.safetensors")
    loaded = Classifier.load(tmp_path / "mine.safetensors", network=toy.mlp(seed=2).network)
    assert torch.equal(loaded(toy.images()), clf(toy.images()))
    with pytest.raises(CheckpointError, match=r"pass it: Classifier\.load\(path, network=\.\.\.\)"):
        Classifier.load(tmp_path / "mine.safetensors")


def test_tied_and_strided_weights_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.register_buffer("turned", torch.arange(6.0).view(2, 3).T)

        def forward(self, images):
            return self.second(self.first(images.flatten(1)))

    clf = Classifier(Tied(), 4)
    clf.save(tmp_path / "tied.safetensors")
    loaded = Classifier.load(tmp_path / "tied.safetensors", network=Tied())
    images = torch.rand(2, 1, 2, 2)
    assert torch.equal(loaded(images), clf(images))


def test_saving_again_does_not_disturb_who_has_the_old_file_open(tmp_path: Path) -> None:
    small(0).save(tmp_path / "model.safetensors")
    loaded = trilemma.load(tmp_path / "model.safetensors")
    before = loaded.network.get_parameter("stem.weight").clone()
    small(1).save(tmp_path / "model.safetensors")
    assert torch.equal(loaded.network.get_parameter("stem.weight"), before)


def refused(path: Path, network=None) -> str:
    with pytest.raises(CheckpointError) as error:
        Classifier.load(path, network=network)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line


class Trap:
    """Unpickling this creates a file: what a hostile checkpoint could do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("how", ["torch", "torch-legacy", "pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    mark, path = tmp_path / "executed", tmp_path / "model.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(mark)))
    else:
        torch.save(Trap(mark), path, _use_new_zipfile_serialization=how == "torch")
    assert "a pickled checkpoint, which can run code when loaded, so it is refused" in refused(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists(), "the trap itself must work"


def test_a_file_of_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    small().save(tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    version = CLASSIFIER.version
    metadata = {"format": "trilemma-classifier", "version": str(version + 1), "header": json.dumps({})}
    save_file(tensors, tmp_path / "newer.safetensors", metadata)
    line = refused(tmp_path / "newer.safetensors")
    assert f"format version {version + 1}, but this trilemma reads up to {version}; upgrade trilemma" in line


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    small().save(tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(share * len(whole))])
    assert "cut short" in refused(tmp_path / "cut.safetensors")


def test_weights_of_another_architecture_are_counted(tmp_path: Path) -> None:
    small().save(tmp_path / "model.safetensors")
    other = create_network(SmallResNetOptions(width=8), 3, (1, 8, 8))
    line = refused(tmp_path / "model.safetensors", other)
    assert "weights of another architecture (0 tensors missing, 0 unknown, " in line
    assert "pass the network they belong to" in line
    deeper = create_network(SmallResNetOptions(width=4, depth=14), 3, (1, 8, 8))
    assert "0 tensors missing" not in refused(tmp_path / "model.safetensors", deeper)


def test_plain_safetensors_weights_say_how_to_wrap_them(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    line = refused(tmp_path / "weights.safetensors")
    assert (
        "without trilemma's header; build the network and wrap it: trilemma.Classifier(network, ...)" in line
    )


def test_what_is_no_checkpoint_at_all_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "not a classifier file, or cut short" in refused(tmp_path / "notes.txt")
    assert "no such file" in refused(tmp_path / "missing.safetensors")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "model.safetensors", tmp_path / "folder"):
        with pytest.raises(NotStoredError, match=r"cannot be written \(.*\); choose another path"):
            small().save(place)
    assert not list((tmp_path / "folder").iterdir())


def test_load_finds_the_best_classifier_of_a_run_then_the_last(tmp_path: Path) -> None:
    best, last = small(0), small(1)
    last.save(tmp_path / "checkpoints" / "last" / "classifier.safetensors")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(trilemma.load(tmp_path)(images), last.eval()(images))
    best.save(tmp_path / "checkpoints" / "best" / "classifier.safetensors")
    assert torch.equal(trilemma.load(tmp_path)(images), best.eval()(images))


def test_a_folder_without_a_classifier_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        trilemma.load(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(
        CheckpointError, match="no finished classifier yet; resume it with `trilemma train --resume`"
    ):
        trilemma.load(tmp_path)


def test_a_pretrained_network_is_rebuilt_without_a_download(tmp_path: Path, monkeypatch) -> None:
    clf = small()
    clf.network_config = {"name": "timm", "model": "small", "pretrained": True}
    clf.save(tmp_path / "model.safetensors")
    asked = []

    def create(options, num_classes, shape, **_):
        asked.append(options.pretrained)
        return create_network(OPTIONS, num_classes, shape)

    monkeypatch.setattr("trilemma.classifier.file.create_network", create)
    trilemma.load(tmp_path / "model.safetensors")
    assert asked == [False]


def test_the_digest_of_the_weights_is_of_what_the_logits_depend_on(tmp_path: Path, toy) -> None:
    clf = small()
    digest = clf.weights_digest()
    clf.save(tmp_path / "a.safetensors")
    header = CLASSIFIER.read_header(tmp_path / "a.safetensors")
    loaded = trilemma.load(tmp_path / "a.safetensors")
    assert digest is not None and digest == header.weights == loaded.weights_digest()
    classes = classes_digest(clf.class_names)
    assert loaded.provenance() == {**loaded.about, "weights": digest, "classes": classes}
    # Names, statistics and modes leave the logits as they are.
    loaded.class_names, loaded.statistics = ("a", "b", "c"), {}
    assert loaded.train().weights_digest() == digest and loaded.provenance()["classes"] != classes
    loaded.mean = torch.full((1, 1, 1, 1), 0.41)
    assert loaded.weights_digest() != digest
    with torch.no_grad():
        next(clf.parameters()).view(-1)[0] += 1e-6
    assert clf.weights_digest() not in (digest, small(1).weights_digest())
    assert Classifier(nn.Flatten(), 64).weights_digest() is None
