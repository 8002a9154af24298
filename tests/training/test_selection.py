"""Which checkpoint is the best: one above chance precedes one at chance, whatever their accuracies under attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.support import TREE, tiny

from trilemma.classifier.classifier import Classifier
from trilemma.config.recipe import build_config
from trilemma.data.image_set import ImageSet
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.selection import HeldOut, at_chance, held_out_accuracies, passed_over, score
from trilemma.training.train import train

# (clean, PGD-10) per epoch on 300 images of three classes: a constant classifier first, then useful ones.
HISTORY = [(1 / 3, 1 / 3), (0.7, 0.1), (0.8, 0.2), (1 / 3, 1 / 3), (0.9, 0.15)]


def held_out(clean: float, robust: float) -> HeldOut:
    return HeldOut(clean, robust, chance=1 / 3, images=300, answers=3)


def test_a_constant_classifier_is_never_preferred_to_one_above_chance() -> None:
    best: list[float] = []
    selected, decided_by_chance = [], []
    for epoch, (clean, robust) in enumerate(HISTORY, 1):
        given = score(held_out(clean, robust), "pgd-10")
        if passed_over(given, best):
            decided_by_chance.append(epoch)
        if given > best:
            best = given
            selected.append(epoch)
    assert selected == [1, 2, 3]
    # once against the constant best, once against a later constant checkpoint
    assert decided_by_chance == [2, 4]


def test_among_checkpoints_above_chance_the_criterion_decides() -> None:
    robust, accurate = held_out(0.6, 0.4), held_out(0.9, 0.2)
    assert score(robust, "pgd-10") > score(accurate, "pgd-10")
    assert score(accurate, "clean") > score(robust, "clean")
    assert not passed_over(score(robust, "pgd-10"), score(accurate, "pgd-10"))


@pytest.mark.parametrize(
    ("clean", "chance", "images", "above"),
    # two standard errors: 0.1 + 2 sqrt(0.09 / 512) = 0.1265; of an imbalanced pair 0.9 + 2 sqrt(0.09 / 100) = 0.96
    [
        (0.12, 0.1, 512, False), (0.13, 0.1, 512, True), (0.95, 0.9, 100, False), (0.97, 0.9, 100, True),
        (1.0, 1.0, 9, False),
    ],
)  # fmt: skip
def test_clearly_above_chance_is_two_standard_errors(
    clean: float, chance: float, images: int, above: bool
) -> None:
    assert HeldOut(clean, chance=chance, images=images).above_chance is above


class Constant(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 2.0, 1.0]).expand(len(images), 3) + 0 * images.sum()


def test_chance_is_the_share_of_the_largest_class_of_the_images_used(toy: Any) -> None:
    images = toy.image_set()
    uneven = ImageSet(images.images[:9], images.labels[:9].clamp(max=1), images.class_names, "toy", "train")
    found = held_out_accuracies(Classifier(Constant(), 3), uneven, 9)
    largest = int(torch.bincount(uneven.labels).max()) / 9
    assert (found.chance, found.images, found.answers) == (largest, 9, 1)
    assert found.clean == int((uneven.labels == 1).sum()) / 9


def test_a_run_that_learns_nothing_says_that_it_answers_one_class(tmp_path: Path) -> None:
    # the network keeps its random weights
    config = build_config(
        {**TREE, "method": "standard", "optimiser": {"weight_decay": 0.0},
         "training": {**TREE["training"], "epochs": 1, "lr": 1e-12, "reestimate_bn": False}}
    )  # fmt: skip
    run = train(config, out=tmp_path / "run", progress=False)
    (event,) = [event for event in RunDirectory(run.path).events() if event["kind"] == "warning"]
    (row,) = [row for row in run.metrics if row["kind"] == "epoch"]
    assert event["name"] == "at-chance" and event["message"] == at_chance(row)
    assert "the best checkpoint, of epoch 1," in event["message"]
    assert row["held_out_clean"] < 0.2 and row["held_out_chance"] == pytest.approx(0.1, abs=0.03)


def test_a_run_that_learns_says_nothing(tmp_path: Path) -> None:
    run = train(tiny("standard"), out=tmp_path / "run", progress=False)
    assert RunDirectory(run.path).events() == []
    assert all(row["held_out_answers"] > 1 for row in run.metrics if row["kind"] == "epoch")


def test_in_a_run_the_constant_epoch_is_replaced_and_the_event_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = iter(HISTORY)
    monkeypatch.setattr(
        "trilemma.training.loop.held_out_accuracies", lambda *_, **__: held_out(*next(history))
    )
    run = train(tiny("pgd-at", {"epochs": 5}, attack={"steps": 1}), out=tmp_path / "run", progress=False)
    assert [row["selected"] for row in run.metrics if row["kind"] == "epoch"] == [
        True,
        True,
        True,
        False,
        False,
    ]
    messages = [event["message"] for event in RunDirectory(run.path).events() if event["kind"] == "selection"]
    assert messages == [
        "this checkpoint (PGD-10 10.0%) is preferred over the best one so far (PGD-10 33.3%), whose clean accuracy is "
        "not clearly above chance",
        "the best one so far (PGD-10 20.0%) is preferred over this checkpoint (PGD-10 33.3%), whose clean accuracy is "
        "not clearly above chance",
    ]
    assert run.classifier.about["epoch"] == 3.0
