"""Shares: several threads find what one would, count together, fail together, and leave the thread count as it was."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch

from trilemma.attacks.autoattack import autoattack
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.attacks.ensemble.threads import (
    MAX_THREADS,
    MIN_IMAGES_PER_THREAD,
    search_in_threads,
    thread_count,
)
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.fast_copy import FastNetwork, fast_copy
from trilemma.errors import ConfigError
from trilemma.threat import Threat

THREAT = Threat("linf", 0.05)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.fixture
def case(toy):
    """A traced copy, 40 images it gets right, and their labels."""
    clf, images = toy.conv(classes=5, shape=(3, 6, 6)).eval(), toy.images(40, (3, 6, 6))
    return fast_copy(clf, images[:2]), images, clf.logits(images).argmax(1).detach()


def test_as_many_threads_as_pay(case, toy):
    clf, *_ = case
    assert isinstance(clf.network, FastNetwork)
    assert [
        thread_count(clf, count)
        for count in (0, 1, 2 * MIN_IMAGES_PER_THREAD - 1, 2 * MIN_IMAGES_PER_THREAD, 10_000)
    ] == [1, 1, 1, 2, 2]
    torch.set_num_threads(64)
    assert [thread_count(clf, count) for count in (3 * MIN_IMAGES_PER_THREAD, 10_000)] == [3, MAX_THREADS]
    torch.set_num_threads(2)
    assert thread_count(toy.conv(), 10_000) == 1  # what it keeps between two passes is not known


def test_two_threads_find_what_one_does_and_count_the_same(toy, monkeypatch, change_attack):
    clf, images = toy.conv(classes=5, shape=(3, 6, 6)).eval(), toy.images(60, (3, 6, 6))
    labels = clf.logits(images).argmax(1)
    quick: dict[str, Any] = {
        "apgd-ce": {"steps": 6},
        "apgd-t": {"steps": 4},
        "fab-t": {"steps": 4},
        "square": {"queries": 40},
    }
    for name, options in quick.items():
        change_attack(name, lambda search, options=options: partial(search, **options))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seen: set[int] = set()
        logits: Any = Oracle._logits

        def noted(oracle: Oracle, x: torch.Tensor, logits: Any = logits, seen: set[int] = seen) -> Any:
            seen.add(threading.get_ident())
            return logits(oracle, x)

        with monkeypatch.context() as patch:
            patch.setattr(Oracle, "_logits", noted)
            found.append(autoattack(clf, images, labels, THREAT, batch_size=60, progress=False))
        assert len(seen) >= threads
    one, two = found
    assert torch.equal(one.robust, two.robust) and one.broken_by == two.broken_by
    assert 5 < one.robust.sum() < 55
    torch.testing.assert_close(two.adversarial, one.adversarial, atol=1e-5, rtol=0)
    for name in quick:
        works = one.work[name], two.work[name]
        assert len({(work.attacked, work.broken, work.backwards) for work in works}) == 1
        # How many candidates of Square share a pass, and are discarded, depends on the number of images.
        assert name == "square" or works[0].forwards == works[1].forwards


def test_each_share_asks_for_its_part_of_the_batch_size(case):
    clf, images, labels = case
    sizes: list[tuple[int, int | None]] = []

    def search(oracle, x, y, threat, seeds):
        sizes.append((len(x), oracle.batch_size))
        oracle.logits(x)
        return x + seeds.view(-1, 1, 1, 1)

    oracle = Oracle(clf, batch_size=31)
    with inner_loop(clf):
        found = search_in_threads(search, oracle, images[:37], labels[:37], THREAT, torch.arange(37))
    assert sorted(sizes) == [(18, 16), (19, 16)] and oracle.forwards == 37
    torch.testing.assert_close(found, images[:37] + torch.arange(37).view(-1, 1, 1, 1))


def endless(raised: BaseException, here: bool) -> Any:
    """A search that raises in the calling thread (``here``) or in the other; the one that is left asks on and on."""
    caller, started = threading.get_ident(), threading.Barrier(2, timeout=60)

    def search(oracle, x, y, threat, seeds):
        started.wait()
        oracle.logits(x)
        if (threading.get_ident() == caller) == here:
            raise raised
        for _ in range(10**6):
            oracle.logits(x)
        raise AssertionError("nobody said stop")

    return search


@pytest.mark.parametrize("here", [True, False])
def test_a_failure_of_one_share_ends_the_other_and_is_what_is_raised(case, here):
    clf, images, labels = case
    search = endless(ConfigError("no such thing"), here)
    with inner_loop(clf), pytest.raises(ConfigError, match="no such thing"):
        search_in_threads(search, Oracle(clf), images, labels, THREAT, torch.arange(40))
    assert torch.get_num_threads() == 2


def test_an_interruption_ends_all_shares_at_their_next_pass(case):
    clf, images, labels = case
    with inner_loop(clf), pytest.raises(KeyboardInterrupt):
        search_in_threads(
            endless(KeyboardInterrupt(), here=True), Oracle(clf), images, labels, THREAT, torch.arange(40)
        )
    assert threading.active_count() == 1


def test_only_the_calling_thread_tells_of_progress(case):
    clf, images, labels = case
    told: list[int] = []
    oracle = Oracle(clf, before_pass=lambda: told.append(threading.get_ident()))
    with inner_loop(clf):
        search_in_threads(
            lambda own, x, *_: x + 0 * own.logits(x).sum(), oracle, images, labels, THREAT, torch.arange(40)
        )
    assert told == [threading.get_ident()]


def test_an_end_is_also_heard_while_the_calling_thread_waits_for_the_others(case):
    clf, images, labels = case
    caller, done = threading.get_ident(), threading.Event()

    def search(oracle, x, y, threat, seeds):
        if threading.get_ident() == caller:
            done.set()
            return x
        for _ in range(10**6):
            oracle.logits(x)
        raise AssertionError("nobody said stop")

    def before() -> None:
        if done.is_set():
            raise TimeoutError("time is up")

    with inner_loop(clf), pytest.raises(TimeoutError, match="time is up"):
        search_in_threads(search, Oracle(clf, before_pass=before), images, labels, THREAT, torch.arange(40))
    assert threading.active_count() == 1
