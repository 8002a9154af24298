"""Several processes evaluate and generate what one does, and one that is lost is named."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trilemma
from trilemma.attacks.autoattack import attack_pool
from trilemma.attacks.ensemble.pool import Pool
from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import ImageSet
from trilemma.data.sources import load_images
from trilemma.errors import ConfigError, ProcessLostError
from trilemma.evaluation.evaluate import evaluate
from trilemma.evaluation.samples import draw_samples
from trilemma.threat import Threat
from trilemma.workers import Worker, Workers, device_names, shared_out

THREAT = Threat("linf", 0.1)
PAIR = ("cpu", "cpu")


@pytest.fixture(scope="module")
def clf(finished_run: Path) -> Classifier:
    return trilemma.load(finished_run)


@pytest.fixture(scope="module")
def data(shared_cache: None) -> ImageSet:
    return load_images("digits", "test").first(61)


@pytest.fixture(scope="module")
def pair(clf: Classifier) -> Iterator[Workers]:
    """Two processes, for all tests that do not lose one."""
    with Workers(clf, PAIR) as workers:
        yield workers


def test_rows_and_adversarial_images_are_those_of_one_process(
    clf: Classifier, data: ImageSet, tmp_path: Path
) -> None:
    rows, arrays = [], []
    for devices in (1, 2):
        file = tmp_path / f"{devices}.npz"
        protocols = ["clean", "pgd-50-10"]
        found = evaluate(
            clf,
            data.first(25),
            protocols,
            THREAT,
            batch_size=10,
            lint=False,
            devices=devices,
            save_adversarial=file,
        )
        rows.append(
            {name: {key: v for key, v in row.items() if key != "seconds"} for name, row in found.items()}
        )
        with np.load(file) as archive:
            arrays.append({name: archive[name] for name in ("images", "correct", "predictions")})
    assert rows[0] == rows[1] and 0 < rows[0]["pgd-50-10"]["value"] < rows[0]["clean"]["value"]
    for name, values in arrays[0].items():
        assert np.array_equal(values, arrays[1][name]), name


def pool_of(clf: Classifier, data: ImageSet, workers: Workers, report: Any, **state: Any) -> Pool:
    attacks = ("apgd-ce", "fab-t")
    with workers:
        return attack_pool(
            clf, data.images, data.labels, THREAT, attacks, 16, 0, report, workers=workers, **state
        )


def verdicts(pool: Pool) -> tuple[Any, ...]:
    return pool.broken_by_names(), pool.adversarial().tolist(), [work.forwards for work in pool.work.values()]


def test_autoattack_interrupted_in_two_processes_is_resumed_by_one_and_the_other_way_round(
    clf: Classifier, data: ImageSet, tmp_path: Path, change_attack: Any
) -> None:
    for name in ("apgd-ce", "fab-t"):
        change_attack(name, lambda search: partial(search, steps=8))
    whole = pool_of(clf, data, Workers(clf), lambda progress: None)
    assert len(set(whole.broken_by_names())) > 1
    for number, (first, second) in enumerate([(PAIR, ()), ((), PAIR)]):
        state = {"state": tmp_path / f"{number}.safetensors"}
        batches: list[int] = []

        def stop(progress: Any, batches: list[int] = batches) -> None:
            batches.append(progress.remaining)
            # How many reports there are depends on the clock; the first two are there always.
            if len(batches) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pool_of(clf, data, Workers(clf, first), stop, **state)
        resumed = pool_of(clf, data, Workers(clf, second), lambda progress: None, resume=True, **state)
        assert verdicts(resumed) == verdicts(whole)


@pytest.mark.parametrize("options", [{}, {"diversity": 5.0}, {"stop": True}])
def test_samples_are_those_of_one_process(clf: Classifier, options: dict[str, Any]) -> None:
    one, two = (
        draw_samples(
            clf, 3, "class-pca", "langevin", "joint", 6, 4, devices=devices, noise_std=0.01, **options
        )
        for devices in ((), PAIR)
    )
    for name in ("starts", "images", "labels", "steps"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert torch.equal(one.chains.images, two.chains.images) and one.chains.steps == two.chains.steps


def test_parts_are_equal_and_no_part_has_a_single_image() -> None:
    sizes = {
        (count, size, workers): [len(part) for part in shared_out(torch.arange(count), size, workers)]
        for count, size, workers in [
            (10, 4, 1),
            (10, 100, 2),
            (10, 4, 2),
            (5, 100, 4),
            (1, 8, 2),
            (0, 8, 2),
            (9, 2, 4),
        ]
    }
    assert list(sizes.values()) == [[4, 4, 2], [5, 5], [3, 3, 2, 2], [3, 2], [1], [], [2, 2, 2, 2, 1]]


def end(worker: Worker, number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(worker: Worker, number: int) -> int:
    worker.say(number)
    if number == 1:
        raise ConfigError("a mistake in a part")
    if number == 2:
        raise ZeroDivisionError("a bug")
    return number


def test_a_process_that_is_killed_is_named(clf: Classifier) -> None:
    killed = r"^worker [01] \(cpu\): was killed by SIGKILL .* before its work"
    with Workers(clf, PAIR) as workers, pytest.raises(ProcessLostError, match=killed):
        list(workers.map(end, [(number,) for number in range(4)]))
    assert not workers._processes


def test_an_error_of_a_part_is_raised_and_a_bug_has_its_traceback(pair: Workers, clf: Classifier) -> None:
    heard: list[tuple[int, Any]] = []
    assert sorted(pair.map(fail, [(0,), (3,)], lambda *one: heard.append(one))) == [(0, 0), (1, 3)]
    assert sorted(heard) == [(0, 0), (1, 3)]
    with pytest.raises(ConfigError, match="a mistake in a part"):
        list(pair.map(fail, [(1,)]))
    with pytest.raises(RuntimeError, match=r"(?s)worker [01] \(cpu\): Traceback .*ZeroDivisionError: a bug"):
        list(pair.map(fail, [(2,)]))


@pytest.mark.parametrize(
    ("devices", "device", "message"),
    [
        (0, "cpu", "devices: devices=0"),
        (1.5, "cpu", "devices: devices=1.5"),
        (8, "cpu", "devices: 8 processes for 7 images; use at most 7"),
        (2, "cuda:1", "devices: 2 processes need as many GPUs, but cuda:1 is one"),
        (4, "cuda", "devices: 4 processes need as many GPUs, but this machine has 3; use fewer devices"),
    ],
)
def test_wrong_numbers_of_devices_are_one_line(
    devices: Any, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ConfigError) as caught:
        device_names(devices, torch.device(device), 7, "images")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert device_names(3, torch.device("cuda"), 7, "images") == ["cuda:0", "cuda:1", "cuda:2"]


def test_a_network_that_cannot_be_sent_is_one_line(data: ImageSet) -> None:
    class Local(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :10]

    with pytest.raises(
        ConfigError, match=r"cannot be sent to other processes .* define its network in a module"
    ):
        evaluate(Classifier(Local(), 10), data, ["clean"], lint=False, devices=2)
