"""The finished classifier: averaged weights, BatchNorm of clean images, chosen on held-out images alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.support import SMALL_CHAIN, tiny
from torch import Tensor, nn

from trilemma import energies
from trilemma.attacks.pgd import fgsm, pgd
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.config import Config
from trilemma.data.image_set import ImageSet, Splits
from trilemma.data.sources import load_splits
from trilemma.data.statistics import ClassPCA
from trilemma.methods.creation import create_from_config
from trilemma.runs.run_directory import RunDirectory
from trilemma.training import statistics
from trilemma.training import train as training
from trilemma.training.build import build_classifier
from trilemma.training.checkpoint import load_state
from trilemma.training.finish import finished_classifier
from trilemma.training.run import Run
from trilemma.training.selection import criterion, held_out_accuracies
from trilemma.training.train import train
from trilemma.updates.ema import EMA


@pytest.fixture(scope="module")
def data() -> Splits:
    """The data that :func:`tiny` trains on."""
    return load_splits("digits", train_images=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = tiny("pgd-at", {"ema": 0.9}, attack={"steps": 1})
    return train(config, out=tmp_path_factory.mktemp("runs") / "run", progress=False)


def raw_state(run: Run) -> dict[str, Any]:
    return load_state(RunDirectory(run.path).state_file)


@torch.no_grad()
def moments_seen(clf: Classifier, images: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over batches of each BatchNorm layer's input mean and unbiased variance, in train mode, by hooks."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    layers = {name: m for name, m in clf.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, layer in layers.items():
        layer.train()
        layer.register_forward_pre_hook(
            lambda module, inputs, name=name: seen.setdefault(name, []).append(
                (inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=True))
            )
        )
    for batch in images:
        clf.logits(batch)
    return {name: (mean_of([m for m, _ in v]), mean_of([s for _, s in v])) for name, v in seen.items()}


def mean_of(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)


def test_it_has_the_averaged_weights_and_the_moments_of_clean_images(run: Run, data: Splits) -> None:
    last = load(RunDirectory(run.path).last_classifier)
    average = raw_state(run)["ema"]["average"]
    for name, weight in last.named_parameters():
        assert torch.equal(weight, average[name])

    independent = build_classifier(RunDirectory(run.path).config(), data.train)
    independent.load_state_dict(average)
    images = data.train.first(4096).float_images().split(256)
    moments = moments_seen(independent.eval(), list(images))
    assert len(moments) == 7
    for name, (mean, variance) in moments.items():
        layer = last.get_submodule(name)
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, variance, rtol=1e-4, atol=1e-5)
        assert isinstance(layer.running_mean, Tensor)
        assert not torch.allclose(layer.running_mean, average[f"{name}.running_mean"], rtol=1e-2)


def test_making_it_leaves_the_raw_weights_and_their_average_alone(data: Splits) -> None:
    clf = build_classifier(tiny("standard"), data.train).train()
    ema = EMA(clf, 0.9)
    with torch.no_grad():
        for weight in clf.parameters():
            weight.add_(1e-3)
    ema.update(clf)
    before = [value.clone() for value in (*clf.state_dict().values(), *ema.average.values())]
    finished = finished_classifier(clf, ema, data.train, reestimate=True)
    after = [*clf.state_dict().values(), *ema.average.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(module.training for module in clf.modules())
    assert not any(module.training for module in finished.modules())


def test_without_reestimation_the_averaged_buffers_stay(data: Splits) -> None:
    clf = build_classifier(tiny("standard"), data.train)
    ema = EMA(clf, 0.9)
    finished = finished_classifier(clf, ema, data.train, reestimate=False)
    assert all(torch.equal(value, ema.average[name]) for name, value in finished.state_dict().items())


def test_it_carries_the_statistics_of_its_training_images(run: Run, data: Splits) -> None:
    clf = run.classifier
    assert clf.about == {
        "recipe": "run", "data": "digits[:300]", "method": "pgd-at", "checkpoint": "best",
        "step": clf.about["step"], "epoch": clf.about["epoch"], "select": "pgd-10", "attack_steps": 1,
    }  # fmt: skip
    assert str(clf.threat) == "linf 0.2" and clf.image_shape == (1, 8, 8) and not clf.training
    with torch.no_grad():
        joint = energies.joint_energy(clf(data.train.float_images()), data.train.labels)
    for k in range(10):
        own = joint[data.train.labels == k]
        assert float(clf.statistics["energy_mean"][k]) == pytest.approx(float(own.mean()), rel=1e-3)
        assert float(clf.statistics["energy_std"][k]) == pytest.approx(float(own.std()), rel=1e-3)
    state = {n.removeprefix("pca."): v for n, v in clf.statistics.items() if n.startswith("pca.")}
    pca = ClassPCA.from_state_dict(state)
    for k in range(10):
        mean = data.train.float_images(data.train.labels == k).flatten(1).mean(0)
        torch.testing.assert_close(pca.means[k], mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("classes", "side", "directions", "dtype"),
    [
        (10, 32, 64, torch.float32),
        (37, 32, 64, torch.float16),
        (100, 32, 23, torch.float16),
        (272, 32, None, None),
    ],
)
def test_a_class_pca_in_a_file_is_limited_in_bytes(
    classes: int,
    side: int,
    directions: int | None,
    dtype: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fit(data: ImageSet, max_components: int, **options: object) -> ClassPCA:
        size, pixels = len(data.class_names), 3 * side**2
        basis = torch.zeros(1, 1, 1).expand(size, max_components, pixels)
        counts = torch.full((size,), 100)
        singular = torch.ones(size, max_components)
        return ClassPCA(torch.zeros(size, pixels), basis, singular, counts, 0.99, data.image_shape)

    monkeypatch.setattr(ClassPCA, "fit", fit)
    labels = torch.arange(classes)
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(classes, 3, side, side)
    pca = statistics.fit_pca(ImageSet(images, labels, tuple(map(str, range(classes))), "made", "train"))
    if directions is None:
        assert pca is None
        return
    assert pca is not None and pca.components.shape[1] == directions
    stored = statistics._stored(pca)
    assert stored["pca.components"].dtype == stored["pca.means"].dtype == dtype
    assert sum(tensor.nbytes for tensor in stored.values()) < 15_100_000
    again = ClassPCA.from_state_dict({name.removeprefix("pca."): tensor for name, tensor in stored.items()})
    assert again.components.dtype == again.means.dtype == torch.float32


class Untouchable:
    """Stands where the test images are; using it in any way is a failure."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"training read the test images ({name})")

    def __len__(self) -> int:
        raise AssertionError("training counted the test images")


def test_training_never_reads_the_test_images(
    tmp_path: Path, data: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned: Any = dataclasses.replace(data, test=Untouchable())  # type: ignore[arg-type]
    monkeypatch.setattr(training, "build_data", lambda config: poisoned)
    config = tiny("eb-jdat", {"epochs": 1}, sampler=SMALL_CHAIN, attack={"steps": 1})
    assert train(config, out=tmp_path / "run", progress=False).classifier.about["data"] == "digits[:300]"


def test_the_best_is_the_best_on_held_out_images(run: Run, data: Splits) -> None:
    """The accuracies written down are those of the finished classifier on the held-out part."""
    rows = [row for row in run.metrics if row["kind"] == "epoch"]
    chosen = max(rows, key=lambda row: (row["held_out_pgd10"], row["held_out_clean"]))
    assert run.classifier.about["step"] == chosen["step"]
    part = data.held_out.first(50)
    images = part.float_images()
    with torch.no_grad():
        right = run.classifier(images).argmax(1) == part.labels
    assert chosen["held_out_clean"] == pytest.approx(float(right.float().mean()))
    assert run.classifier.threat is not None
    generator = torch.Generator().manual_seed(0)
    starred = pgd(run.classifier, images, part.labels, run.classifier.threat, steps=10, generator=generator)
    with torch.no_grad():
        right = run.classifier(starred).argmax(1) == part.labels
    assert chosen["held_out_pgd10"] == pytest.approx(float(right.float().mean()))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (tiny("standard"), "clean"),
        (tiny("sada-jem"), "clean"),
        (tiny("pgd-at"), "pgd-10"),
        (tiny("pgd-at", regulariser={"name": "der"}), "pgd-10"),
        (tiny("eb-jdat"), "pgd-10"),
        (tiny("standard", {"select": "pgd-10"}), "pgd-10"),
        (tiny("pgd-at", {"select": "clean"}), "clean"),
        (tiny("pgd-at", {"select": "last"}), "last"),
    ],
)
def test_auto_selects_by_robustness_only_where_training_is_adversarial(config: Config, expected: str) -> None:
    assert criterion(config, create_from_config(config)) == expected


def test_the_last_evaluation_is_the_best_where_that_is_asked_for(tmp_path: Path) -> None:
    run = train(
        tiny("standard", {"select": "last", "lr": 10.0, "epochs": 3}), out=tmp_path / "run", progress=False
    )
    rows = [row for row in run.metrics if row["kind"] == "epoch"]
    assert [row["selected"] for row in rows] == [True] * 3
    assert run.classifier.about["step"] == rows[-1]["step"]


def test_without_a_threat_there_is_no_robust_accuracy(data: Splits) -> None:
    clf = build_classifier(tiny("standard", threat=None), data.train)
    clean, robust, single_step, *_ = held_out_accuracies(clf, data.held_out, 20, single_step=True)
    assert 0 <= clean <= 1 and robust is None and single_step is None


def test_accuracy_under_a_single_step_is_measured_where_it_is_asked_for(run: Run, data: Splits) -> None:
    clf, part = run.classifier, data.held_out.first(60)
    assert clf.threat is not None and held_out_accuracies(clf, data.held_out, 60).fgsm is None
    images = part.float_images(torch.arange(60))
    right = clf.logits(fgsm(clf, images, part.labels, clf.threat)).argmax(1) == part.labels
    found = held_out_accuracies(clf, data.held_out, 60, single_step=True)
    assert found.fgsm == pytest.approx(float(right.float().mean()))


def test_two_comparisons_of_one_classifier_agree(run: Run, data: Splits) -> None:
    assert held_out_accuracies(run.classifier, data.held_out, 60) == held_out_accuracies(
        run.classifier, data.held_out, 60
    )
