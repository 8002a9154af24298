"""What several rooms' tests share: a decoded-data cache, a run folder that took no training, and toy networks."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trilemma import workers
from trilemma.classifier.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet

# What the processes of later tests need is imported once, by whichever test starts the first one.
workers._PRELOADED += [
    "lightning_fabric",
    "trilemma.training.train",
    "trilemma.training.loop",
    "trilemma.cli.train",
]
# Tiny tensors: threads only wait for each other, ten times as long as they work on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data go into a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILEMMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, shared_cache: None) -> Path:
    """A complete ``pgd-at`` run of the digits: random weights, written metrics with an alarm. Do not write into it."""
    from trilemma.config.recipe import load_config
    from trilemma.data.sources import load_splits
    from trilemma.runs.run_directory import RunDirectory
    from trilemma.training.build import build_classifier
    from trilemma.training.statistics import attach

    config = load_config("digits/pgd-at", {"network.width": 4})
    run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "pgd-at", config)
    data = load_splits("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clf = build_classifier(config, data.train).eval()
    attach(clf, data.train)
    clf.about = {
        "recipe": "digits/pgd-at", "data": "digits", "method": "pgd-at", "checkpoint": "best", "step": 40,
        "epoch": 4.0, "select": "pgd-10",
    }  # fmt: skip
    clf.save(run.best_classifier)
    for step in range(10, 50, 10):
        row = {"step": step, "epoch": step / 10, "minutes": step / 100}
        run.add_metrics(
            row | {"kind": "step", "loss": 2.0 / step, "clean_accuracy": 0.5, "robust_accuracy": None,
                   "energy_clean": -2.0, "energy_adversarial": -1.5, "energy_generated": None,
                   "delta_marginal": -0.5, "delta_joint": -1.0}
        )  # fmt: skip
        run.add_metrics(
            row | {"kind": "epoch", "held_out_clean": 0.6, "held_out_pgd10": 0.3, "selected": True}
        )
    event = {"step": 30, "epoch": 3.0, "minutes": 0.3}
    run.add_event(event | {"kind": "alarm", "name": "divergence", "message": "loss <b>not</b> finite"})
    run.add_event(event | {"kind": "remedy", "name": "rollback", "message": "back to step 20"})
    run.write_status(
        status="finished", step=40, epochs=4, minutes=0.4, seconds_per_step=0.1, peak_memory_mb=100
    )
    return run.path


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A fresh copy of :func:`finished_run` that a test may write into."""
    return Path(shutil.copytree(finished_run, tmp_path / "pgd-at"))


@dataclasses.dataclass(frozen=True)
class CompleteRun:
    """A run folder with rows, samples and figures, and what the diagnosis returned."""

    path: Path
    diagnosis: dict[str, Any]


@pytest.fixture(scope="session")
def complete_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> CompleteRun:
    """A copy of :func:`finished_run` that was evaluated, diagnosed and sampled from. Do not write into it."""
    from trilemma.evaluation.diagnose import diagnose
    from trilemma.evaluation.evaluate import evaluate_run
    from trilemma.evaluation.samples import generate

    path = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("complete") / "full"))
    evaluate_run(path, images=20)
    diagnosis = diagnose(path, images=20, attacks=["pgd", "apgd-t"])
    generate(path, per_class=2, steps=2)
    return CompleteRun(path, diagnosis)


class Toy:
    """Networks that run in microseconds, one of them with its forward pass written out in NumPy."""

    shape = (1, 4, 4)

    @classmethod
    def mlp(
        cls, classes: int = 3, shape: tuple[int, int, int] = shape, seed: int = 0, **options: Any
    ) -> Classifier:
        """``W2 tanh(W1 (x - 0.5) / 0.25 + b1) + b2`` in eval mode, with weights large enough to be attacked."""
        pixels = shape[0] * shape[1] * shape[2]
        network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8), nn.Tanh(), nn.Linear(8, classes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        mean, std = [0.5] * shape[0], [0.25] * shape[0]
        return Classifier(network, classes, mean, std, image_shape=shape, **options).eval()

    @staticmethod
    def logits64(clf: Classifier, images: Tensor) -> np.ndarray:
        """The logits of :meth:`mlp` in NumPy float64, ``[N, K]``."""
        _, first, _, second = clf.network.children()
        w1, b1, w2, b2 = (p.detach().double().numpy() for p in (*first.parameters(), *second.parameters()))
        x = (images.detach().double().numpy().reshape(len(images), -1) - 0.5) / 0.25
        logits: np.ndarray = np.tanh(x @ w1.T + b1) @ w2.T + b2
        return logits

    @classmethod
    def conv(
        cls, classes: int = 3, shape: tuple[int, int, int] = shape, seed: int = 0, dropout: float = 0.0
    ) -> Classifier:
        """Convolution, BatchNorm with used statistics, dropout, linear; in train mode."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            norm = nn.BatchNorm2d(4)
            network = nn.Sequential(
                nn.Conv2d(shape[0], 4, 3, padding=1),
                norm,
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Flatten(),
                nn.Linear(4 * shape[1] * shape[2], classes),
            )
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
        return Classifier(network, classes, image_shape=shape)

    @staticmethod
    def images(count: int = 6, shape: tuple[int, int, int] = shape, seed: int = 1) -> Tensor:
        return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))

    @staticmethod
    def labels(count: int = 6, classes: int = 3) -> Tensor:
        return torch.arange(count) % classes

    @classmethod
    def batch(cls, count: int = 6, shape: tuple[int, int, int] = shape, classes: int = 3) -> Batch:
        """Images, labels, and an un-augmented view that differs from the images."""
        views = {"unaugmented": cls.images(count, shape, seed=2)}
        return Batch(cls.images(count, shape), cls.labels(count, classes), views)

    @staticmethod
    def image_set(classes: int = 3, shape: tuple[int, int, int] = shape, per_class: int = 5) -> ImageSet:
        count, generator = classes * per_class, torch.Generator().manual_seed(3)
        images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
        names = tuple(f"class {k}" for k in range(classes))
        return ImageSet(images, torch.arange(count) % classes, names, "toy", "train")


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    return Toy


@pytest.fixture
def change_attack(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Any], Any]], None]:
    """``change_attack("fab-t", lambda search: other)``: that attack of an ensemble searches in another way."""
    module = sys.modules["trilemma.attacks.autoattack"]

    def change(name: str, changed: Callable[[Any], Any]) -> None:
        make = module.ensemble_attack

        def made(table: Any, asked: str) -> Any:
            attack = make(table, asked)
            return dataclasses.replace(attack, search=changed(attack.search)) if asked == name else attack

        monkeypatch.setattr(module, "ensemble_attack", made)

    return change
