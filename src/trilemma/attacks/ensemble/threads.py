"""Runs one attack in several threads, each on a part of the images.

The operations of a small network are too short to occupy all cores of a CPU. As attacks treat every image
independently, the batch is split instead, and with it the attack's own arithmetic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.fast_copy import FastNetwork
from trilemma.errors import TrilemmaError
from trilemma.threat import Threat

# oracle, images [n, C, H, W], labels [n], threat, seeds [n] -> images [n, C, H, W]
Search = Callable[[Oracle, Tensor, Tensor, Threat, Tensor], Tensor]

# More threads than this would wait for each other at the interpreter lock.
MAX_THREADS = 4
# With fewer images than this, a forward pass takes nearly as long as with this many.
MIN_IMAGES_PER_THREAD = 16
# Seconds between two calls of the oracle's hook while the calling thread waits for the others.
_POLL_INTERVAL = 0.25


class _StoppedError(TrilemmaError):
    """Ends a thread after another one has failed or the user has interrupted."""


def thread_count(clf: Classifier, count: int) -> int:
    """The number of threads for ``count`` images.

    It is 1 unless ``clf`` is a fast copy on the CPU: only a traced network is known to be safe to call from several
    threads at once.
    """
    if clf.device.type != "cpu" or not isinstance(clf.network, FastNetwork):
        return 1
    return max(1, min(MAX_THREADS, torch.get_num_threads(), count // MIN_IMAGES_PER_THREAD))


def search_in_threads(
    search: Search, oracle: Oracle, images: Tensor, labels: Tensor, threat: Threat, seeds: Tensor
) -> Tensor:
    """The result of ``search`` on all images, ``[n, C, H, W]``; call it inside ``inner_loop``.

    The passes of all threads are counted by ``oracle``. The calling thread attacks a part itself and is the only one
    that calls the oracle's hook, which reports progress; an error or interruption in one thread ends the others before
    their next pass, and is raised. All threads together use the cores and the batch size that one would have used.

    Raises:
        BaseException: whatever ``search`` or the hook raises.
    """
    parts = thread_count(oracle.clf, len(images))
    if parts == 1:
        return search(oracle, images, labels, threat, seeds)
    threads, stop = torch.get_num_threads(), threading.Event()
    batch_size = None if oracle.batch_size is None else -(-oracle.batch_size // parts)
    split = [values.tensor_split(parts) for values in (images, labels, seeds)]

    def attack(part: int) -> Tensor:
        def before_pass() -> None:
            if stop.is_set():
                raise _StoppedError
            if part == 0:
                oracle.before_pass()

        torch.set_num_threads(max(1, threads // parts))
        part_images, part_labels, part_seeds = (values[part] for values in split)
        try:
            part_oracle = Oracle(oracle.clf, batch_size, before_pass, oracle.passes)
            return search(part_oracle, part_images, part_labels, threat, part_seeds)
        except BaseException:
            stop.set()
            raise

    try:
        with ThreadPoolExecutor(parts - 1, "attack") as executor:
            futures: list[Future[Tensor]] = []
            try:
                futures += [executor.submit(attack, part) for part in range(1, parts)]
                first = attack(0)
                while wait(futures, timeout=_POLL_INTERVAL).not_done:
                    oracle.before_pass()
                return torch.cat([first, *(future.result() for future in futures)])
            except _StoppedError:
                errors = [future.exception() for future in futures]
                raise next(e for e in errors if e and not isinstance(e, _StoppedError)) from None
            except BaseException:
                stop.set()
                raise
    finally:
        # New threads inherit this number as well.
        torch.set_num_threads(threads)
