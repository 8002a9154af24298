"""One attack in several threads, each with a share of the images.

The operations of a small network are too short to be split among a processor's cores. Images are attacked each on its
own, so that a batch of them can be split instead, and the attack's own arithmetic with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from trilemma.attacks.ensemble.fast_copy import FastNetwork
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.classifier.classifier import Classifier
from trilemma.threat import Threat

# oracle, images [n, C, H, W], labels [n], threat, seeds [n] -> images [n, C, H, W]
Search = Callable[[Oracle, Tensor, Tensor, Threat, Tensor], Tensor]

# More threads than this would wait for each other at the interpreter.
MOST = 4
# A pass of fewer images costs nearly as much as one of all of them.
FEWEST = 16
# Seconds between two looks at who is not finished.
_EVERY = 0.25


class _StoppedError(Exception):
    """Another share has failed, or the user has interrupted."""


def shares(clf: Classifier, count: int) -> int:
    """In how many threads ``count`` images are attacked: one, unless several may ask ``clf`` at once and it pays."""
    if clf.device.type != "cpu" or not isinstance(clf.network, FastNetwork):
        return 1
    return max(1, min(MOST, torch.get_num_threads(), count // FEWEST))


def search_in_shares(
    search: Search, oracle: Oracle, images: Tensor, labels: Tensor, threat: Threat, seeds: Tensor
) -> Tensor:
    """``search`` of all images, inside :func:`trilemma.classifier.contexts.inner_loop`; the oracle counts
    everybody's passes.

    The calling thread has a share itself: it alone tells of progress, and an interruption ends all of them at their
    next pass. Together they use as many cores and as much memory as one would have.
    """
    parts = shares(oracle.clf, len(images))
    if parts == 1:
        return search(oracle, images, labels, threat, seeds)
    threads, stop = torch.get_num_threads(), threading.Event()
    size = None if oracle.batch_size is None else -(-oracle.batch_size // parts)
    split = [rows.tensor_split(parts) for rows in (images, labels, seeds)]

    def attack(share: int) -> Tensor:
        def before() -> None:
            if stop.is_set():
                raise _StoppedError
            if share == 0:
                oracle.before()

        torch.set_num_threads(max(1, threads // parts))
        own_images, own_labels, own_seeds = (rows[share] for rows in split)
        try:
            own = Oracle(oracle.clf, size, before, oracle.passes)
            return search(own, own_images, own_labels, threat, own_seeds)
        except BaseException:
            stop.set()
            raise

    try:
        with ThreadPoolExecutor(parts - 1, "attack") as others:
            futures: list[Future[Tensor]] = []
            try:
                futures += [others.submit(attack, share) for share in range(1, parts)]
                first = attack(0)
                while wait(futures, timeout=_EVERY).not_done:
                    oracle.before()
                return torch.cat([first, *(future.result() for future in futures)])
            except _StoppedError:
                errors = [future.exception() for future in futures]
                raise next(e for e in errors if e and not isinstance(e, _StoppedError)) from None
            except BaseException:
                stop.set()
                raise
    finally:
        torch.set_num_threads(threads)  # also what new threads begin with
