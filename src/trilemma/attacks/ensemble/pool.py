"""The pool: images with one verdict each. Every attack runs only on the images that are still robust."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.ensemble.oracle import Oracle, Passes
from trilemma.attacks.ensemble.threads import Search, search_in_threads
from trilemma.attacks.margins import is_wrong
from trilemma.classifier.batch_size import retain_freed_memory
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.correctness import correct_in_batches, is_correct
from trilemma.classifier.fast_copy import fast_copy
from trilemma.data.image_set import as_float
from trilemma.progress import ProgressBar, clock
from trilemma.threat import Threat
from trilemma.workers import Worker, Workers, shared_out

# Values of Pool.broken_by that are not the index of an attack.
ROBUST, MISCLASSIFIED = -1, -2
# Seconds between two progress reports.
_REPORT_INTERVAL = 0.25


@dataclass(frozen=True)
class Attack:
    """One attack of an ensemble.

    Attributes:
        name: as printed in reports.
        search: called with correctly classified images, inside :func:`trilemma.classifier.contexts.inner_loop`;
            returns an image for each, adversarial where the attack succeeded.
        passes: upper bound of the forward passes per image, to estimate the time left; 0 if unknown.
        stream: number that separates this attack's random numbers from those of the other attacks.
    """

    name: str
    search: Search
    passes: int
    stream: int


@dataclass
class Work:
    """Image counts and cost of one attack.

    Attributes:
        attacked, broken: number of images.
        unconfirmed: number of images that the attack returned as adversarial, but that the original classifier, in
            float32, still classifies correctly, or that lie outside the ball or [0, 1]. They count as not broken.
        forwards, backwards: forward and backward passes, counted per image.
        seconds: wall time.
    """

    attacked: int = 0
    broken: int = 0
    unconfirmed: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class PoolProgress:
    """One progress report of a running attack.

    Attributes:
        attack: name of the attack, or ``"clean"`` for the forward pass without attack.
        remaining: images that the attack has not finished.
        seconds_left: upper estimate of the time for them, at the speed so far; ``None`` if unknown.
        decided: images found misclassified since the last report.
    """

    attack: str
    remaining: int
    seconds_left: float | None = None
    decided: int = 0

    def __str__(self) -> str:
        work = f"{self.attack}: {self.remaining} images left"
        return work if self.seconds_left is None else f"{work}, at most {clock(round(self.seconds_left))}"


OnProgress = Callable[[PoolProgress], None]


@contextmanager
def show_progress(count: int, shown: bool) -> Iterator[OnProgress]:
    """Draws a progress bar for a pool of ``count`` images; yields the function to pass as ``on_progress``."""
    with ProgressBar("clean", count, shown, unit="text") as bar:
        yield lambda progress: bar.update(
            title=f"{progress.attack}: {progress.remaining} images left",
            advance=progress.decided,
            seconds_left=progress.seconds_left,
        )


class Pool:
    """Images with one verdict each, and the attacks' costs so far.

    Args:
        clf: the classifier to evaluate; only it decides whether an image is broken.
        images: ``[N, C, H, W]`` in [0, 1], or uint8, on any device.
        labels: int64 ``[N]``.
        threat: norm and radius.
        seed: seed of all random numbers.
        batch_size: images per forward pass.
        on_progress: called with progress reports, at most about four times a second while an attack runs.
        workers: processes that share the batches; by default this process computes all of them.

    Attributes:
        broken_by: int64 ``[N]`` on the CPU: ``ROBUST``, ``MISCLASSIFIED`` (without any attack), or the index in
            ``work`` of the attack that broke the image; ``None`` before :meth:`check_clean`.
        work: attack name to image counts and cost, in the order of the attacks.
        running: name of the unfinished attack, or ``None``.
        batches: indices of the images that this attack has not attacked yet, int64, one tensor per batch.
        broken_indices, adversarial_parts: indices of broken images, and their adversarial images; one tensor of each
            per batch, on the CPU.
    """

    def __init__(
        self,
        clf: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        seed: int,
        batch_size: int,
        on_progress: OnProgress = lambda progress: None,
        workers: Workers | None = None,
    ) -> None:
        self.workers = workers or Workers(clf)
        self.clf, self.images, self.labels, self.threat = clf, images, labels.cpu(), threat
        self.seed, self.batch_size, self.on_progress = seed, batch_size, on_progress
        self.broken_by: Tensor | None = None
        self.work: dict[str, Work] = {}
        self.running: str | None = None
        self.batches: list[Tensor] = []
        self.broken_indices: list[Tensor] = []
        self.adversarial_parts: list[Tensor] = []
        self._seeds = noise.image_seeds(len(labels), torch.Generator().manual_seed(seed))

    @property
    def remaining(self) -> Tensor:
        """Indices of the images that the unfinished attack has not attacked yet, int64."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *self.batches])

    @property
    def robust(self) -> Tensor:
        """Images that are classified correctly and that no attack has broken so far, bool ``[N]`` on the CPU."""
        assert self.broken_by is not None
        return self.broken_by == ROBUST

    def check_clean(self) -> None:
        """Finds the images that are misclassified without any attack.

        Reports all images decided so far, including after a resume, when the forward passes are not repeated.
        """
        if self.broken_by is None:
            correct = correct_in_batches(
                self.clf, self.images, self.labels, self.batch_size, workers=self.workers
            )
            self.broken_by = torch.where(correct, ROBUST, MISCLASSIFIED)
        robust = int(self.robust.sum())
        self.on_progress(PoolProgress("clean", robust, decided=len(self.labels) - robust))

    def run(self, attack: Attack, after_batch: Callable[[], None] = lambda: None) -> None:
        """Runs ``attack`` on the robust images, batch by batch; resumes it if it was interrupted.

        Does nothing if the attack is already finished. Several workers attack a batch each, and finish them in any
        order.

        Args:
            after_batch: called after each batch; the pool may be saved then.
        """
        if attack.name in self.work and attack.name != self.running:
            return
        if attack.name not in self.work:
            robust = self.robust.nonzero().squeeze(1)
            batches = shared_out(robust, self.batch_size, self.workers.count)
            # One statement, so that an interruption comes before or after all of these changes.
            self.running, self.batches, self.work[attack.name] = attack.name, batches, Work()
        batches, report = list(self.batches), _Report(self, attack)
        parts = ((attack, self.threat, self.batch_size, *self._load(i, attack)) for i in batches)
        for position, found in self.workers.map(search_batch, parts, report):
            report.passes[position] = found.work.forwards
            self._record(attack, batches[position], found)
            after_batch()
        self.running = None

    def broken_by_names(self) -> list[str | None]:
        """Per image, the attack that broke it; ``"clean"`` if misclassified without attack, ``None`` if robust."""
        assert self.broken_by is not None
        names = dict(enumerate(self.work)) | {MISCLASSIFIED: "clean"}
        return [names.get(verdict) for verdict in self.broken_by.tolist()]

    def adversarial(self) -> Tensor:
        """Adversarial images of the broken images, clean images of the others; float32 ``[N, C, H, W]``, CPU."""
        result = as_float(self.images.cpu()).float().clone(memory_format=torch.contiguous_format)
        for indices, adversarial in zip(self.broken_indices, self.adversarial_parts, strict=True):
            result[indices] = adversarial
        return result

    def _load(self, indices: Tensor, attack: Attack) -> tuple[Tensor, Tensor, Tensor]:
        """Images as given, labels, and the seeds of an attack, at ``indices``."""
        seeds = noise.derive(self._seeds[indices], attack.stream)
        return self.images[indices.to(self.images.device)], self.labels[indices], seeds

    def _record(self, attack: Attack, indices: Tensor, found: Found) -> None:
        """Records one of the remaining batches."""
        assert self.broken_by is not None
        broken = indices[found.broken]
        state = (
            self.broken_by.index_fill(0, broken, list(self.work).index(attack.name)),
            self.work | {attack.name: self.work[attack.name] + found.work},
            [*self.broken_indices, broken],
            [*self.adversarial_parts, found.adversarial],
            [batch for batch in self.batches if batch is not indices],
        )
        # One statement, for the same reason as in run.
        self.broken_by, self.work, self.broken_indices, self.adversarial_parts, self.batches = state
        self.on_progress(PoolProgress(attack.name, len(self.remaining), decided=len(broken)))


class _Report:
    """Reports the progress of an attack within its batches, with the time left at the speed so far.

    Args:
        pool: the pool.
        attack: the attack that begins, or continues.

    Attributes:
        passes: forward passes since then, by position of the batch.
    """

    def __init__(self, pool: Pool, attack: Attack) -> None:
        self.pool, self.attack = pool, attack
        self.before, self.started = pool.work[attack.name].forwards, time.perf_counter()
        self.passes: dict[int, int] = {}

    def __call__(self, position: int, forwards: int) -> None:
        self.passes[position] = forwards
        pool, attack, passes = self.pool, self.attack, sum(self.passes.values())
        bound = (pool.work[attack.name].attacked + len(pool.remaining)) * attack.passes
        seconds_per_pass = (time.perf_counter() - self.started) / passes
        seconds_left = max(0, bound - self.before - passes) * seconds_per_pass if attack.passes else None
        pool.on_progress(PoolProgress(attack.name, len(pool.remaining), seconds_left))


@dataclass(frozen=True)
class Found:
    """The result of an attack on one batch.

    Attributes:
        broken: bool ``[n]`` on the CPU.
        adversarial: the adversarial images of the broken ones, float32 on the CPU.
        work: what it has cost.
    """

    broken: Tensor
    adversarial: Tensor
    work: Work


def search_batch(
    worker: Worker,
    attack: Attack,
    threat: Threat,
    batch_size: int,
    images: Tensor,
    labels: Tensor,
    seeds: Tensor,
) -> Found:
    """Attacks one batch of correctly classified images.

    The search runs on the fast copy. Images that are misclassified by the copy but not by the original are attacked
    once more on the original.

    Args:
        worker: sends the number of forward passes so far, at most about four times a second.
        attack, threat: what to attack with.
        batch_size: images per forward pass.
        images, labels, seeds: ``[n, C, H, W]`` as in :class:`Pool`, int64 ``[n]``, on any device.
    """
    started, clf = time.perf_counter(), worker.clf
    images = as_float(images.to(clf.device)).float().contiguous()
    labels, seeds = labels.to(clf.device), seeds.to(clf.device)
    if "fast copy" not in worker.cache:
        retain_freed_memory(images.device)
        worker.cache["fast copy"] = fast_copy(clf, images[:2])
    passes = Passes()
    oracle = Oracle(worker.cache["fast copy"], batch_size, _reporter(worker, passes, started), passes)
    candidates = _search(attack, oracle, images, labels, threat, seeds)
    claimed = is_wrong(oracle.logits(candidates), labels)
    broken = _confirm(clf, threat, candidates, images, labels)
    refuted = (claimed & ~broken).nonzero().squeeze(1)
    if len(refuted) and oracle.clf is not clf:
        oracle.clf = clf
        again = images[refuted], labels[refuted]
        candidates[refuted] = _search(attack, oracle, *again, threat, seeds[refuted])
        broken[refuted] = _confirm(clf, threat, candidates[refuted], *again)
    adversarial = candidates[broken].cpu()
    work = Work(
        attacked=len(labels),
        broken=len(adversarial),
        unconfirmed=int((~broken[refuted]).sum()),
        forwards=passes.forwards,
        backwards=passes.backwards,
        seconds=time.perf_counter() - started,
    )
    return Found(broken.cpu(), adversarial, work)


def _search(
    attack: Attack, oracle: Oracle, images: Tensor, labels: Tensor, threat: Threat, seeds: Tensor
) -> Tensor:
    with inner_loop(oracle.clf, "eval"):
        return search_in_threads(attack.search, oracle, images, labels, threat, seeds)


def _confirm(clf: Classifier, threat: Threat, candidates: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is in the ball and [0, 1], and the original misclassifies it in float32. Bool ``[n]``."""
    broken = threat.contains(candidates, clean)
    if bool(broken.any()):
        broken[broken.clone()] = ~is_correct(clf, candidates[broken], labels[broken])
    return broken


def _reporter(worker: Worker, passes: Passes, started: float) -> Callable[[], None]:
    """A function that sends the number of forward passes now and then."""
    last = started

    def report() -> None:
        nonlocal last
        now = time.perf_counter()
        if passes.forwards and now - last > _REPORT_INTERVAL:
            last = now
            worker.say(passes.forwards)

    return report
