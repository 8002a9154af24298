"""The protocol ``ood:SET``: made and given sets, what is left out of them, and sets that are no outside."""

from __future__ import annotations

import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma
from trilemma.config.registry import PROTOCOLS
from trilemma.data.catalogue import CIFAR10, PACKS, Pack
from trilemma.data.image_set import ImageSet
from trilemma.errors import DataError, UnknownNameError
from trilemma.evaluation.evaluate import evaluate_run
from trilemma.evaluation.protocols.ood import SYNTHETIC, WORDNET, outside_images, without_overlap
from trilemma.files import file_sha256
from trilemma.runs.records import read_record


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_whole_row_of_every_made_set_in_any_batch_size(name, finished_run):
    clf, full = trilemma.load(finished_run), f"ood:{name}"
    one, two = (
        trilemma.evaluate(clf, "digits", [full], images=40, seed=2, batch_size=b)[full] for b in (40, 7)
    )
    assert (one["protocol"], one["quantity"], one["better"], one["count"]) == (full, "AUROC", "higher", 40)
    assert 0 <= one["lower"] <= one["value"] <= one["upper"] <= 1
    assert list(one["also"]) == ["max softmax", "-|grad E(x)|"]
    assert set(one["facts"]["intervals"]) == {"-E(x)", *one["also"]}
    assert one["facts"]["outside"]["name"] == name
    assert two["value"] == pytest.approx(one["value"], abs=2e-3)  # 1,600 pairs; rounding may turn a tie


def test_noise_lies_outside_for_a_density_that_says_so():
    """E(x) is the squared distance from grey: noise is far, flat grey images are near."""

    class Bowl(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            depth = -self.scale * (images - 0.5).flatten(1).square().sum(1)
            return torch.stack([depth, depth], 1)

    flat = (
        torch.linspace(0.4, 0.6, 12).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(),
        torch.arange(12) % 2,
    )
    row = trilemma.evaluate(trilemma.Classifier(Bowl(), 2), flat, ["ood:uniform-noise"])["ood:uniform-noise"]
    assert row["value"] == 1.0
    assert row["also"]["max softmax"] == 0.5  # both classes alike everywhere: it cannot tell
    assert row["also"]["-|grad E(x)|"] == 1.0


def test_permuted_images_keep_the_colours_of_each_image():
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found, about = outside_images("permuted", trilemma.Classifier(torch.nn.Flatten(), 48), images, seed=1)
    assert about["dropped"] == [] and not torch.equal(found, images)
    for before, after in zip(images.flatten(2), found.flatten(2), strict=True):
        assert sorted(map(tuple, before.T.tolist())) == sorted(map(tuple, after.T.tolist()))
    again, _ = outside_images("permuted", trilemma.Classifier(torch.nn.Flatten(), 48), images, seed=1)
    assert torch.equal(found, again)


def folder(path, names, size=12, per_class=3):
    """Colour pictures of one brightness each."""
    for level, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for k in range(per_class):
            pixels = np.full((size, size, 3), (37 * level + 11 * k + 5) % 256, np.uint8)
            Image.fromarray(pixels).save(path / name / f"{k}.png")
    return path


def test_a_folder_is_resized_made_grey_and_named_by_its_content(run_copy, tmp_path):
    place = folder(tmp_path / "other", ["a", "b"])
    rows = evaluate_run(run_copy, [f"ood:{place}"], images=20)
    (row,) = rows.values()
    about = row["facts"]["outside"]
    assert about["name"].startswith("imagefolder:") and about["name"].endswith("@8")
    assert row["protocol"] == f"ood:{about['name']}"  # a path on this machine is no name
    assert (about["images"], about["split"], row["count"]) == ("all 6", "all", 20)
    (file,) = (run_copy / "evaluation").glob("ood-imagefolder-*@8.json")
    assert read_record(file) == row


def test_two_archives_of_one_known_name_are_two_rows_in_two_files(run_copy, tmp_path, monkeypatch):
    archives = [tmp_path / "train.tar", tmp_path / "val.tar"]
    for count, archive in enumerate(archives, 2):
        with tarfile.open(archive, "w") as tar:
            tar.add(folder(tmp_path / f"of{count}", ["a", "b"], per_class=count), ".")
        monkeypatch.setitem(PACKS, file_sha256(archive), Pack("twins", numbered=False))
    rows = evaluate_run(run_copy, [f"ood:{archive}" for archive in archives], images=20)
    names = [row["protocol"] for row in rows.values()]
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"ood:twins:[0-9a-f]{6}@8", name) for name in names)
    assert len(list((run_copy / "evaluation").glob("ood-twins-*@8.json"))) == 2
    again = evaluate_run(run_copy, [f"ood:{archives[1]}"], images=20)
    assert [row["protocol"] for row in again.values()] == names[1:]


def test_no_more_images_than_test_images_are_taken(finished_run, tmp_path):
    place = folder(tmp_path / "many", ["a", "b", "c"], per_class=10)
    images = torch.rand(9, 1, 8, 8)
    found, about = outside_images(str(place), trilemma.load(finished_run), images, seed=0)
    assert found.shape == images.shape and about["images"] == "first 9 of 30, stratified order"
    assert found.aminmax().min >= 0 and found.aminmax().max <= 1


def test_classes_that_cifar10_shows_are_left_out_for_a_classifier_of_cifar10(tmp_path):
    names = [WORDNET["dog"][0], "n01443537", WORDNET["truck"][1]]
    place = folder(tmp_path / "tiny", names)
    cifar = CIFAR10.class_names
    assert cifar is not None and set(WORDNET) <= set(cifar)
    clf = trilemma.Classifier(torch.nn.Flatten(), 10, class_names=cifar)
    images = torch.rand(30, 3, 8, 8)
    _, about = outside_images(str(place), clf, images, seed=0)
    assert (about["dropped"], about["images"]) == (sorted([names[0], names[2]]), "all 3")
    unnamed = trilemma.Classifier(torch.nn.Flatten(), 10)  # whose classes may be those of CIFAR-10
    assert outside_images(str(place), unnamed, images, seed=0)[1]["images"] == "all 3"
    other = trilemma.Classifier(torch.nn.Flatten(), 10, class_names="abcdefghij")
    assert outside_images(str(place), other, images, seed=0)[1]["images"] == "all 9"


def test_overlap_keeps_images_and_labels_together():
    names = ("n01443537", *WORDNET["frog"])
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    found, dropped = without_overlap(
        ImageSet(images, torch.arange(6) % 3, names, "set", "all"), CIFAR10.class_names or ()
    )
    assert (found.images.flatten().tolist(), dropped) == ([0, 3], list(WORDNET["frog"]))


def test_the_test_images_themselves_are_refused(finished_run):
    with pytest.raises(DataError, match="40 of 40 images are test images themselves"):
        trilemma.evaluate(trilemma.load(finished_run), "digits", ["ood:digits"], images=40)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ood", UnknownNameError, "write ood:SET"),
        ("ood:", UnknownNameError, "write ood:SET"),
        ("ood:uniform-nois", DataError, "Did you mean 'uniform-noise'"),
        ("clean:uniform-noise", UnknownNameError, "unknown protocol 'clean:uniform-noise'"),
    ],
)
def test_mistakes_get_one_line(name, error, message):
    with pytest.raises(error, match=message) as caught:
        PROTOCOLS.get(name)
    assert "\n" not in str(caught.value)


def test_images_that_are_not_square_have_made_sets_only(tmp_path):
    clf, images = trilemma.Classifier(torch.nn.Flatten(), 12), torch.rand(4, 1, 3, 4)
    with pytest.raises(DataError, match="use uniform-noise, permuted"):
        outside_images(str(folder(tmp_path / "x", ["a", "b"])), clf, images, seed=0)
    assert outside_images("phase-scrambled", clf, images, seed=0)[0].shape == images.shape
