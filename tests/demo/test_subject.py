"""Which classifier the page shows, which images it offers, and what it says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import trilemma
from trilemma.classifier.source import ClassifierSource
from trilemma.data.sources import load_splits
from trilemma.demo.packaged import ACCURACY, CLASSIFIER
from trilemma.demo.subject import OFFERED, open_subject
from trilemma.errors import DataError

README = CLASSIFIER.with_name("README.md").read_text()


def test_the_packaged_classifier_is_small_and_as_accurate_as_the_page_says(subject):
    assert CLASSIFIER.stat().st_size < 1_000_000
    assert str(subject.clf.threat) == "linf 0.2" and subject.clf.about["recipe"] == "digits/eb-jdat"
    test = load_splits("digits").test
    with torch.no_grad():
        share = float((subject.clf(test.float_images()).argmax(1) == test.labels).float().mean())
    assert ACCURACY[0] == ("clean", f"{100 * share:.1f} % of 397 test images")
    # The command that reproduces it, and the numbers, stand beside it.
    assert "trilemma train digits/eb-jdat" in README
    assert all(value.partition(" %")[0] in README for _, value in ACCURACY)


def test_the_first_test_images_are_offered(subject):
    first = load_splits("digits").test.first(OFFERED)
    pixels, label = subject.offered_image(7)
    assert torch.equal(pixels, first.float_images([7])[0]) and label == int(first.labels[7])
    assert dict(subject.facts())["threat"] == "L∞, radius 0.2"


def test_a_run_states_its_accuracies_and_offers_its_images(complete_run):
    subject = open_subject(ClassifierSource(complete_run.path))
    facts = dict(subject.facts())
    assert subject.train is not None and len(subject.train) == 1200
    assert [name for name, _ in subject.accuracy] == ["clean", "pgd-20"]
    assert all(facts[name].endswith(" of 20 test images") for name in ("clean", "pgd-20"))
    assert facts["method"] == "pgd-at"


def test_a_run_without_rows_says_that_nothing_was_measured(finished_run):
    assert dict(open_subject(ClassifierSource(finished_run)).facts())["accuracy"].startswith("not measured")


def saved(clf: trilemma.Classifier, path: Path, data: str) -> ClassifierSource:
    clf.about = {"data": data}
    clf.save(path)
    return ClassifierSource(path)


@pytest.fixture
def small(shared_cache):
    """A function that makes a classifier of a shape and a number of classes."""
    from trilemma.networks.create import create_network
    from trilemma.networks.options import SmallResNetOptions

    def make(shape, classes=10):
        options = SmallResNetOptions(width=4, depth=8)
        network = create_network(options, classes, shape)
        return trilemma.Classifier(
            network, classes, image_shape=shape, network_config=options.model_dump()
        ).eval()

    return make


def test_digits_are_offered_to_a_classifier_of_their_shape(small, tmp_path):
    subject = open_subject(saved(small((1, 8, 8)), tmp_path / "a.safetensors", "scans"))
    assert subject.test is not None and subject.test.name == "digits" and not subject.missing


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("mnist", "mnist is not on this machine, and the page downloads nothing"),
        ("scans", "the data of this classifier are not known"),
    ],
)
def test_without_images_only_an_upload_is_left_and_nothing_is_downloaded(
    small, tmp_path, monkeypatch, data, words
):
    monkeypatch.setattr("trilemma.data.locate.fetch", lambda *_: pytest.fail("a download"))
    subject = open_subject(saved(small((1, 28, 28)), tmp_path / "a.safetensors", data))
    assert subject.test is None and subject.offered is None
    assert words in subject.missing and subject.missing.endswith("Upload an image of your own.")


def test_given_data_have_the_size_and_the_channels_of_the_classifier(small, tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "scans" / split / name).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (20, 20), (number, 9, 9)).save(
                    tmp_path / "scans" / split / name / f"{number}.png"
                )
    clf = small((1, 8, 8), 2)
    clf.class_names = ("cat", "dog")
    source = saved(clf, tmp_path / "a.safetensors", "scans")
    subject = open_subject(source, data=str(tmp_path / "scans"))
    assert subject.test is not None and subject.train is not None
    assert subject.test.image_shape == subject.train.image_shape == (1, 8, 8)
    with pytest.raises(DataError, match=re.escape("--data mnist: not on this machine")):
        open_subject(source, data="mnist")
