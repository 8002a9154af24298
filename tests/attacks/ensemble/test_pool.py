"""The pool: survivors alone are attacked, what the original confirms counts, and an interruption loses nothing."""

from __future__ import annotations

import dataclasses
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trilemma import Classifier
from trilemma.attacks.autoattack import FEW_CLASSES, STANDARD, AutoAttackResult, autoattack, ensemble_attack
from trilemma.attacks.ensemble.pool import Attack as PoolAttack
from trilemma.attacks.ensemble.pool import Pool, PoolProgress
from trilemma.attacks.ensemble.pool_file import PoolFile
from trilemma.classifier.batch_size import auto_batch_size, free_memory, saved_bytes
from trilemma.config.presets import AUTOATTACK
from trilemma.errors import CheckpointError, ConfigError, ImageError, UnknownNameError
from trilemma.threat import Threat

THREAT = Threat("linf", 0.08)
QUICK = ("apgd-ce", "apgd-t", "fab-t")


@pytest.fixture(autouse=True)
def short_attacks(change_attack):
    """The ensemble's gradient attacks at 8 steps: what a pool does with them needs no more."""
    for name in QUICK:
        change_attack(name, lambda search: partial(search, steps=8))


@pytest.fixture
def case(toy):
    """A classifier, 30 images, and labels of which the first two are wrong as they are."""
    clf, images = toy.mlp(classes=5), toy.images(30)
    labels = clf(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 5
    return clf, images, labels


def run(case, **options: Any) -> AutoAttackResult:
    clf, images, labels = case
    return autoattack(clf, images, labels, THREAT, progress=False, **options)


def pool_of(case, batch_size=7, on_progress=lambda progress: None) -> Pool:
    clf, images, labels = case
    return Pool(clf, images, labels, THREAT, seed=0, batch_size=batch_size, on_progress=on_progress)


def attack(search, name="test") -> PoolAttack:
    return PoolAttack(name, search, passes=1, stream=9)


def shifted(sign: float):
    """A search that moves every image by the radius along the cross-entropy's sign."""

    def search(oracle, images, labels, threat, seeds):
        _, _, gradient = oracle.gradient(
            images, lambda z: nn.functional.cross_entropy(z, labels, reduction="none")
        )
        return threat.project(images + sign * threat.epsilon * gradient.sign(), images)

    return search


def test_each_attack_sees_only_what_the_others_left(case):
    clf, images, labels = case
    seen: list[int] = []

    def counting(oracle, x, y, threat, seeds):
        seen.append(len(x))
        assert (clf(x).argmax(1) == y).all() and len(x) <= 7
        return shifted(1.0)(oracle, x, y, threat, seeds)

    pool = pool_of(case)
    pool.check_clean()
    assert pool.robust.sum() == 28 and pool.broken_by_names()[:2] == ["clean", "clean"]
    for name in ("first", "second"):
        pool.run(attack(counting, name))
    first, second = pool.work["first"], pool.work["second"]
    assert 0 < first.broken < 28
    assert (first.attacked, second.attacked, second.broken) == (28, 28 - first.broken, 0)
    assert sum(seen) == first.attacked + second.attacked
    assert pool.broken_by_names().count("first") == first.broken
    assert first.forwards >= first.attacked == first.backwards
    found = pool.adversarial()
    broken = torch.tensor([name == "first" for name in pool.broken_by_names()])
    assert (clf(found[broken]).argmax(1) != labels[broken]).all() and THREAT.contains(found, images).all()
    assert torch.equal(found[~broken], images[~broken])


def test_what_lies_outside_or_is_no_number_counts_as_not_broken_and_is_reported(case):
    def outside(oracle, x, y, threat, seeds):
        return 1 - x

    def nothing(oracle, x, y, threat, seeds):
        return torch.full_like(x, torch.nan)

    for search in (outside, nothing):
        pool = pool_of(case)
        pool.check_clean()
        pool.run(attack(search))
        assert pool.work["test"].broken == 0 and pool.robust.sum() == 28
        assert pool.work["test"].unconfirmed > 0
    assert pool.work["test"].unconfirmed == 28


def test_a_copy_that_is_mistaken_is_found_out_and_the_original_attacked_instead(case, monkeypatch):
    clf, *_ = case

    class Contrary(nn.Module):
        def forward(self, images):
            return -clf.network(images)

    wrong = Classifier(Contrary(), 5, clf.mean.flatten(), clf.std.flatten()).eval()
    monkeypatch.setattr("trilemma.attacks.ensemble.pool.fast_copy", lambda *_: wrong)
    asked = []

    def search(oracle, x, y, threat, seeds):
        asked.append(oracle.clf)
        return shifted(1.0)(oracle, x, y, threat, seeds)

    pool, honest = pool_of(case, batch_size=30), pool_of(case, batch_size=30)
    for one in (pool, honest):
        one.check_clean()
        one.run(attack(search))
        monkeypatch.setattr("trilemma.attacks.ensemble.pool.fast_copy", lambda clf, _: clf)
    assert asked == [wrong, clf, clf]
    assert torch.equal(pool.robust | ~honest.robust, torch.ones(30).bool())


def test_news_count_down_and_every_image_is_decided_once(case, monkeypatch):
    monkeypatch.setattr("trilemma.attacks.ensemble.pool._REPORT_INTERVAL", 0.0)
    news: list[PoolProgress] = []
    pool = pool_of(case, on_progress=news.append)
    pool.check_clean()
    pool.run(ensemble_attack(AUTOATTACK, "apgd-ce"))
    assert sum(one.decided for one in news) == 30 - int(pool.robust.sum())
    left = [one.remaining for one in news]
    assert left[0] == 28 and left == sorted(left, reverse=True) and left[-1] == 0
    timed = [one for one in news if one.seconds_left is not None]
    assert timed and all(one.seconds_left is not None and one.seconds_left >= 0 for one in timed)
    assert str(PoolProgress("square", 12, 3725.0)) == "square: 12 images left, at most 1:02:05"
    assert str(PoolProgress("square", 12, 65.2)) == "square: 12 images left, at most 1:05"
    assert str(PoolProgress("square", 12)) == "square: 12 images left"


def test_a_resumed_pool_tells_at_once_what_is_decided(case, tmp_path: Path):
    pool, news = pool_of(case), list[PoolProgress]()
    pool.check_clean()
    pool.run(attack(shifted(1.0)))
    PoolFile(tmp_path / "state", pool, ["test"]).save()
    resumed = pool_of(case, on_progress=news.append)
    assert PoolFile(tmp_path / "state", resumed, ["test"]).restore()
    resumed.check_clean()
    resumed.run(attack(shifted(1.0)))
    assert sum(one.decided for one in news) == 30 - int(pool.robust.sum()) > 2


def verdict(result: AutoAttackResult) -> tuple[Any, ...]:
    work = {name: dataclasses.replace(one, seconds=0.0) for name, one in result.work.items()}
    return result.robust.tolist(), result.broken_by, result.adversarial.tolist(), work


@pytest.mark.parametrize("call", [1, 4, 6])
def test_an_interrupted_evaluation_goes_on_to_the_same_verdicts(case, tmp_path: Path, change_attack, call):
    options: dict[str, Any] = {"batch_size": 7, "attacks": QUICK}
    whole = run(case, **options)
    calls = 0

    def interrupted(original):
        def search(*arguments, **settings):
            nonlocal calls
            calls += 1
            if calls == call:
                raise KeyboardInterrupt
            return original(*arguments, **settings)

        return search

    state = tmp_path / "folder" / "state.safetensors"
    for name in QUICK:
        change_attack(name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(case, state=state, **options)
    call = -1  # never again
    assert state.is_file() and [path.name for path in state.parent.iterdir()] == [state.name]
    # the batch size that was begun with is kept
    resumed = run(case, state=state, resume=True, **(options | {"batch_size": 3}))
    assert verdict(resumed) == verdict(whole)
    again = run(case, state=state, resume=True, **options)  # nothing is left to do
    assert verdict(again) == verdict(whole)


def test_an_interruption_at_any_line_of_the_book_keeping_loses_and_repeats_nothing(case, tmp_path: Path):
    """A key is pressed whenever it is pressed; the line is that at which Python notices."""
    attacks = [attack(shifted(1.0), "first"), attack(shifted(0.7), "second")]

    def pool_after(line: int, path: Path) -> tuple[Pool, bool]:
        """A pool that is interrupted at the ``line``-th line of its book-keeping, if it has so many."""
        pool, passed = pool_of(case, batch_size=15), 0
        file = PoolFile(path, pool, ["both"])
        file.restore()

        def lines(frame: Any, event: str, argument: Any) -> Any:
            nonlocal passed
            passed += event == "line"
            if passed == line and event == "line":
                raise KeyboardInterrupt
            return lines

        def calls(frame: Any, event: str, argument: Any) -> Any:
            return lines if frame.f_code in (Pool.run.__code__, Pool._record.__code__) else None

        traced = sys.gettrace()
        try:
            pool.check_clean()
            for one in attacks:
                sys.settrace(calls if line else traced)
                pool.run(one)
        except KeyboardInterrupt:
            return pool, True
        finally:
            sys.settrace(traced)
            file.save()
        return pool, False

    def known(pool: Pool) -> tuple[Any, ...]:
        work = {name: dataclasses.replace(one, seconds=0.0) for name, one in pool.work.items()}
        return pool.broken_by_names(), work, pool.adversarial().tolist()

    whole, _ = pool_after(0, tmp_path / "whole")
    assert 0 < whole.work["second"].attacked < 28
    line = 1
    while pool_after(line, tmp_path / str(line))[1]:
        resumed, _ = pool_after(0, tmp_path / str(line))
        assert known(resumed) == known(whole), f"interrupted at line {line}"
        line += 1
    assert line > 40


def test_the_state_of_another_evaluation_is_refused(case, tmp_path: Path):
    clf, images, labels = case
    state = tmp_path / "state.safetensors"
    options: dict[str, Any] = {"attacks": ("apgd-ce",), "progress": False}
    autoattack(clf, images, labels, THREAT, state=state, **options)
    others: list[tuple[Any, ...]] = [
        (clf, images.flip(0), labels, THREAT, options),
        (clf, images, labels, Threat("linf", 0.09), options),
        (clf, images, labels, THREAT, options | {"seed": 1}),
        (clf, images, labels, THREAT, options | {"attacks": ("apgd-ce", "fab-t")}),
    ]
    for *arguments, changed in others:
        with pytest.raises(CheckpointError, match=r"of another evaluation .* delete it, or start again"):
            autoattack(*arguments, state=state, resume=True, **changed)
    state.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        autoattack(clf, images, labels, THREAT, state=state, resume=True, **options)
    autoattack(clf, images, labels, THREAT, state=state, **options)  # not asked to resume: written anew


def test_the_state_of_another_network_with_the_same_weights_is_refused(case, tmp_path: Path):
    clf, images, labels = case
    state = tmp_path / "state.safetensors"
    options: dict[str, Any] = {"attacks": ("apgd-ce",), "progress": False, "state": state}
    autoattack(clf, images, labels, THREAT, **options)
    for name, value in (("network_config", {"activation": "silu"}), ("about", {"source": {"size": 7}})):
        before = getattr(clf, name)
        setattr(clf, name, value)
        with pytest.raises(CheckpointError, match="of another evaluation"):
            autoattack(clf, images, labels, THREAT, resume=True, **options)
        setattr(clf, name, before)
    autoattack(clf, images, labels, THREAT, resume=True, **options)


def test_a_state_that_cannot_be_written_is_one_warning(case, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    result = run(case, attacks=QUICK, state=tmp_path / "file" / "state")
    assert result.robust.shape == (30,)
    assert capsys.readouterr().err.count("cannot be written") == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_says_what_broke_each_image(case, norm):
    clf, images, labels = case
    threat = Threat(norm, {"linf": 0.08, "l2": 0.25}[norm])
    result = autoattack(clf, images, labels, threat, attacks=QUICK, progress=False)
    assert threat.contains(result.adversarial, images).all()
    assert torch.equal(clf(result.adversarial).argmax(1) == labels, result.robust)
    assert [name is None for name in result.broken_by] == result.robust.tolist()
    assert result.broken_by[:2] == ["clean", "clean"]
    assert 3 < result.robust.sum() < 27
    assert list(result.work) == list(QUICK) and result.work["apgd-ce"].attacked == 28


def test_verdicts_depend_on_neither_batch_size_nor_memory_format_nor_order(case):
    clf, images, labels = case
    options: dict[str, Any] = {"attacks": QUICK, "progress": False}
    whole = autoattack(clf, images, labels, THREAT, **options)
    for changed in (
        autoattack(clf, images, labels, THREAT, batch_size=4, **options),
        autoattack(clf, images.to(memory_format=torch.channels_last), labels, THREAT, **options),
        autoattack(clf, images.double(), labels, THREAT, **options),
    ):
        assert torch.equal(changed.robust, whole.robust) and changed.broken_by == whole.broken_by
        assert changed.adversarial.dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 3])
def test_with_few_classes_the_margin_takes_the_place_of_dlr(toy, classes, change_attack):
    clf, images = toy.mlp(classes=classes), toy.images(12)
    labels = clf(images).argmax(1)
    change_attack("square", lambda search: lambda oracle, x, *rest, **settings: x)
    result = autoattack(clf, images, labels, THREAT, progress=False)
    assert tuple(result.work) == FEW_CLASSES != STANDARD
    assert torch.equal(clf(result.adversarial).argmax(1) == labels, result.robust)
    with pytest.raises(
        ConfigError, match=f"needs at least 4 classes, the classifier has {classes}; use apgd-margin-t"
    ):
        autoattack(clf, images, labels, THREAT, attacks=STANDARD)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"attacks": ["apgd_ce"]}, UnknownNameError, "Did you mean 'apgd-ce'"),
        ({"attacks": []}, ConfigError, "none given"),
        ({"batch_size": 0}, ConfigError, "batch_size: 0; must be at least 1"),
        ({"resume": True}, ConfigError, "needs state="),
        ({"images": torch.full((30, 1, 4, 4), 2.0)}, ImageError, r"outside \[0, 1\]"),
    ],
)
def test_mistakes_get_one_line(case, change, error, message):
    clf, images, labels = case
    arguments: dict[str, Any] = {"clf": clf, "images": images, "labels": labels, "threat": THREAT} | change
    with pytest.raises(error, match=message) as caught:
        autoattack(**arguments)
    assert "\n" not in str(caught.value)


def test_no_images_are_no_trouble(case):
    clf, images, labels = case
    result = autoattack(clf, images[:0], labels[:0], THREAT, progress=False)
    assert result.robust.shape == (0,) and result.adversarial.shape == (0, 1, 4, 4) and result.broken_by == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's way of giving memory back")
def test_a_pool_gets_its_memory_once(case):
    """Six tensors of 4 MB have 6,000 pages; the next six find those of five at least in place."""
    from resource import RUSAGE_SELF, getrusage

    clf, images, labels = case
    autoattack(clf, images[:3], labels[:3], THREAT, attacks=["apgd-ce"], progress=False)

    def pages() -> int:
        before = getrusage(RUSAGE_SELF).ru_minflt
        tensors = [torch.zeros(2**20) for _ in range(6)]
        del tensors
        return getrusage(RUSAGE_SELF).ru_minflt - before

    # gaps that other tests left are filled first, which takes more calls in some processes than in others
    assert min(pages() for _ in range(8)) < 1500


def test_what_a_pass_keeps_is_counted_and_the_batch_follows_from_it(toy, monkeypatch):
    pixels, hidden = 16, 1000
    network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    clf, image = Classifier(network, 3), toy.images(1)
    kept = saved_bytes(clf, image)
    assert 4 * hidden <= kept <= 4 * (hidden + pixels + 3) + 100  # tanh keeps its output
    assert free_memory(torch.device("cpu")) > 2**20
    for free, least, most in ((10_000 * kept, 256, 256), (100 * kept, 5, 25), (0, 1, 1)):
        monkeypatch.setattr("trilemma.classifier.batch_size.free_memory", lambda device, free=free: free)
        assert least <= auto_batch_size(clf, image) <= most
    monkeypatch.setattr("trilemma.classifier.batch_size.free_memory", lambda device: 2**40)
    monkeypatch.setattr("trilemma.classifier.batch_size.saved_bytes", lambda clf, image: 2**26)
    assert auto_batch_size(clf, image) == 32  # a large network
