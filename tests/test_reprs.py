"""What a session prints of the library's objects fits a screen and states what they are."""

from __future__ import annotations

import torch
from torch import nn

import trilemma
from trilemma.data.image_set import Splits


def test_a_classifier_prints_one_line(toy) -> None:
    clf = toy.mlp(class_names=["cat", "dog", "fox"], threat=trilemma.Threat("linf", "8/255"))
    clf.about = {"recipe": "mine", "checkpoint": "best"}
    parameters = sum(p.numel() for p in clf.parameters())
    assert repr(clf) == (
        f"Classifier(Sequential, num_classes=3, image_shape=1x4x4, threat=linf 8/255, {parameters} parameters, "
        "class_names=(cat, dog, fox); mine, best)"
    )
    assert "Classifier(Sequential" in repr(nn.Sequential(clf))


def test_image_sets_and_splits_print_no_pixels(toy) -> None:
    images = toy.image_set(per_class=500)
    line = "ImageSet('toy', train: 1500 images 1x4x4 uint8, 3 classes: class 0, class 1, class 2)"
    assert repr(images) == line
    assert repr(Splits(images, images, images)).splitlines()[1] == f"  train={line},"


def test_a_threat_prints_norm_and_radius() -> None:
    assert repr(trilemma.Threat("linf", "8/255")) == "Threat(norm='linf', radius='8/255')"


def test_a_result_of_autoattack_prints_counts(toy) -> None:
    clf, images = toy.mlp(), toy.images(40)
    labels = clf(images).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    result = trilemma.attacks.autoattack(
        clf, images, labels, trilemma.Threat("linf", 0.1), attacks=["apgd-ce"], progress=False
    )
    head, columns, attack = repr(result).splitlines()
    assert (
        head
        == f"AutoAttackResult: {int(result.robust.sum())} of 40 images robust, 1 misclassified without attack"
    )
    assert columns.split() == ["attack", "attacked", "broken", "seconds"]
    assert attack.split()[:3] == ["apgd-ce", "39", str(39 - int(result.robust.sum()))]


def test_rows_of_evaluate_print_a_table(toy) -> None:
    rows = trilemma.evaluate(toy.mlp(), toy.image_set(), protocols=["clean"], lint=False)
    assert repr(rows).splitlines()[1].startswith("clean")
    assert rows == dict(rows) and torch.is_tensor(rows["clean"]["value"]) is False
