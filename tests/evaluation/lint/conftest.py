"""Small classifiers of the digits that were really trained: a standard one, a robust one, and one of two classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trilemma import Classifier, Threat
from trilemma.attacks import pgd
from trilemma.data.sources import load_splits

Digits = tuple[Tensor, Tensor]
THREAT = Threat("linf", "0.2")


@pytest.fixture(scope="session")
def digits(shared_cache: None) -> Digits:
    """The 397 test images, float32, and their labels."""
    test = load_splits("digits").test.first(397)
    return test.float_images(), test.labels


@pytest.fixture(scope="session")
def few(digits: Digits) -> Digits:
    """The first 64 of them: enough for gross mistakes."""
    return digits[0][:64], digits[1][:64]


@pytest.fixture(scope="session")
def standard(shared_cache: None) -> Classifier:
    """About 99 % accurate, hardly 1 % at 0.2; with BatchNorm and dropout, in eval mode."""
    return trained(epochs=10)


@pytest.fixture(scope="session")
def robust(shared_cache: None) -> Classifier:
    """About 97 % accurate, more than half of it at 0.2."""
    return trained(epochs=12, radius=0.2)


@pytest.fixture(scope="session")
def even_or_odd(shared_cache: None) -> Classifier:
    """Two classes, standard training."""
    return trained(epochs=10, classes=2)


def trained(epochs: int, radius: float = 0.0, classes: int = 10) -> Classifier:
    train = load_splits("digits").train
    images, labels = train.float_images(), train.labels % classes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clf = Classifier(
            network(classes), classes, [float(images.mean())], [float(images.std())], threat=THREAT
        )
        optimiser = torch.optim.Adam(clf.parameters(), 0.003)
        steps = epochs * (len(images) // 100)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(images))[: len(images) // 100 * 100].split(100):
                inputs = images[rows]
                if radius:
                    inputs = pgd(clf, inputs, labels[rows], Threat("linf", radius), 2, 0.6 * radius)
                optimiser.zero_grad()
                cross_entropy(clf.train().logits(inputs), labels[rows]).backward()
                optimiser.step()
                schedule.step()
    return clf.eval()


def network(classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, classes),
    )  # fmt: skip


class Around(nn.Module):
    """A network with something done to its images before it, or to its logits after it."""

    def __init__(self, inner: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, images: Tensor) -> Tensor:
        images = images if self.before is None else self.before(images)
        outputs: Tensor = self.inner(images)
        return outputs if self.after is None else self.after(outputs)


@pytest.fixture(scope="session")
def around() -> Callable[..., Classifier]:
    """``around(clf, before, after)``: the same classifier, a mistake planted before its normalisation or after it."""

    def make(clf: Classifier, before: Any = None, after: Any = None) -> Classifier:
        inside = Around(clf.network, lambda x: (x - clf.mean) / clf.std)
        return Classifier(
            Around(inside, before, after), clf.num_classes, threat=clf.threat, image_shape=(1, 8, 8)
        ).eval()

    return make
