"""The pool: the images that have withstood every attack so far. Each attack is handed only those."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.ensemble.fast_copy import fast_copy
from trilemma.attacks.ensemble.oracle import Oracle, Passes
from trilemma.attacks.ensemble.threads import Search, search_in_shares
from trilemma.attacks.margins import is_wrong
from trilemma.classifier.batch_size import keep_freed
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.correctness import right, right_in_batches
from trilemma.data.image_set import as_float
from trilemma.progress import ProgressBar
from trilemma.threat import Threat

STANDING, UNATTACKED = -1, -2
# Seconds between two pieces of news.
_EVERY = 0.25


@dataclass(frozen=True)
class Attack:
    """One attack of an ensemble.

    Attributes:
        name: as reports print it.
        search: asked for images that are correctly classified, inside
            :func:`trilemma.classifier.contexts.inner_loop`; its answer is an adversarial image where it found one.
        passes: most forward passes that one image can cost, to estimate the time left; 0 where that is not known.
        stream: of its random numbers; no two attacks share one.
    """

    name: str
    search: Search
    passes: int
    stream: int


@dataclass
class Work:
    """What one attack did.

    Attributes:
        attacked, broken: images.
        unconfirmed: images it took for broken that the original classifier, in float32, still gets right, or that
            lie outside the ball or [0, 1]. They count as not broken.
        forwards, backwards: images that went through the network, each way.
    """

    attacked: int = 0
    broken: int = 0
    unconfirmed: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0

    def __add__(self, more: Work) -> Work:
        return Work(*(getattr(self, part.name) + getattr(more, part.name) for part in fields(self)))


@dataclass(frozen=True)
class News:
    """Where an attack stands.

    Attributes:
        attack: its name.
        left: images that it has not finished.
        seconds_left: at most so long for them, at the speed so far; ``None`` before there is one.
        decided: images found wrong since the last news.
    """

    attack: str
    left: int
    seconds_left: float | None = None
    decided: int = 0

    def __str__(self) -> str:
        if self.seconds_left is None:
            return f"{self.attack}: {self.left} images left"
        minutes, seconds = divmod(round(self.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return f"{self.attack}: {self.left} images left, at most {clock}"


Tell = Callable[[News], None]


@contextmanager
def watch(count: int, shown: bool) -> Iterator[Tell]:
    """A progress bar for a pool of ``count`` images; the yielded function is called with its news."""
    with ProgressBar("clean", count, shown, unit="text") as progress:
        yield lambda news: progress.update(title=str(news), advance=news.decided)


class Pool:
    """Images, and what is known about each.

    Args:
        clf: whose verdicts count.
        images: ``[N, C, H, W]`` in [0, 1], or uint8, wherever they are held.
        labels: int64 ``[N]``.
        threat: what attacks may do.
        seed: of every random number.
        batch_size: images in the network at once.
        tell: called with news, several times a second at most.

    Attributes:
        broken_by: int64 ``[N]`` on the CPU: ``STANDING``, ``UNATTACKED`` (wrong as it came), or the place in ``work``
            of the attack that broke the image; ``None`` before :meth:`look`.
        work: by attack, in the order they were begun.
        running: the attack that is not finished.
        waiting: places of the images that it has still to see.
        places, found: where adversarial images were found, and those images, in pieces on the CPU.
    """

    def __init__(
        self,
        clf: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        seed: int,
        batch_size: int,
        tell: Tell = lambda news: None,
    ) -> None:
        self.clf, self.images, self.labels, self.threat = clf, images, labels.cpu(), threat
        self.seed, self.batch_size, self.tell = seed, batch_size, tell
        self.broken_by: Tensor | None = None
        self.work: dict[str, Work] = {}
        self.running: str | None = None
        self.waiting = torch.empty(0, dtype=torch.int64)
        self.places: list[Tensor] = []
        self.found: list[Tensor] = []
        self._copy: Classifier | None = None
        self._seeds = noise.image_seeds(len(labels), torch.Generator().manual_seed(seed))

    @property
    def standing(self) -> Tensor:
        """Images that are right and have withstood everything so far, bool ``[N]`` on the CPU."""
        assert self.broken_by is not None
        return self.broken_by == STANDING

    def look(self) -> None:
        """Finds the images that are wrong without any attack; tells of all that are decided, also in a resumed pool."""
        if self.broken_by is None:
            verdicts = right_in_batches(self.clf, self.images, self.labels, self.batch_size)
            self.broken_by = torch.where(verdicts, STANDING, UNATTACKED)
        standing = int(self.standing.sum())
        self.tell(News("clean", standing, decided=len(self.labels) - standing))

    def run(self, attack: Attack, after: Callable[[], None] = lambda: None) -> None:
        """Hands what stands to ``attack``, a batch at a time, or goes on where it was interrupted.

        Args:
            after: called after each batch, when the pool may be saved.
        """
        if attack.name in self.work and attack.name != self.running:
            return
        if attack.name not in self.work:
            waiting = self.standing.nonzero().squeeze(1)
            # What belongs together changes in one statement: an interruption comes before it or after it.
            self.running, self.waiting, self.work[attack.name] = attack.name, waiting, Work()
        while len(self.waiting):
            self._attack(attack, self.waiting[: self.batch_size])
            after()
        self.running = None

    def breakers(self) -> list[str | None]:
        """Per image the attack that broke it, ``"clean"`` where it was wrong as it came, ``None`` where it stands."""
        assert self.broken_by is not None
        names = dict(enumerate(self.work)) | {UNATTACKED: "clean"}
        return [names.get(place) for place in self.broken_by.tolist()]

    def adversarial(self) -> Tensor:
        """The adversarial images found and, for all others, the images as they are; float32 ``[N, C, H, W]``, CPU."""
        everything = as_float(self.images.cpu()).float().clone(memory_format=torch.contiguous_format)
        for places, found in zip(self.places, self.found, strict=True):
            everything[places] = found
        return everything

    def _take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of ``places``, ready to be attacked."""
        images = as_float(self.images[places.to(self.images.device)].to(self.clf.device))
        return images.float().contiguous(), self.labels[places].to(self.clf.device)

    def _attack(self, attack: Attack, places: Tensor) -> None:
        """Attacks the images of ``places`` and writes down what came of it."""
        started, images, labels = time.perf_counter(), *self._take(places)
        if self._copy is None:
            keep_freed(images.device)
            self._copy = fast_copy(self.clf, images[:2])
        passes = Passes()
        asked = Oracle(self._copy, self.batch_size, self._reporter(attack, passes, started), passes)
        seeds = noise.derive(self._seeds[places].to(images.device), attack.stream)
        reached = self._search(attack, asked, images, labels, seeds)
        claimed = is_wrong(asked.logits(reached), labels)
        broken = self._confirm(reached, images, labels)
        refused = (claimed & ~broken).nonzero().squeeze(1)
        if (
            len(refused) and asked.clf is not self.clf
        ):  # rounding has decided: ask the original itself all along
            asked.clf = self.clf
            again = images[refused], labels[refused], seeds[refused]
            reached[refused] = self._search(attack, asked, *again)
            broken[refused] = self._confirm(reached[refused], *again[:2])
        here, found = broken.cpu(), reached[broken].cpu()
        work = Work(
            attacked=len(places),
            broken=len(found),
            unconfirmed=int((~broken[refused]).sum()),
            forwards=passes.forwards,
            backwards=passes.backwards,
            seconds=time.perf_counter() - started,
        )
        self._record(attack, places[here], found, work)

    def _record(self, attack: Attack, broken: Tensor, found: Tensor, work: Work) -> None:
        """Writes down what an attack did to the first images that wait: the places of those it broke, and its cost."""
        assert self.broken_by is not None
        waiting = self.waiting[work.attacked :]
        after = (
            self.broken_by.index_fill(0, broken, list(self.work).index(attack.name)),
            self.work | {attack.name: self.work[attack.name] + work},
            [*self.places, broken],
            [*self.found, found],
            waiting,
        )
        self.broken_by, self.work, self.places, self.found, self.waiting = after  # one statement: see run
        self.tell(News(attack.name, len(waiting), decided=len(broken)))

    def _search(
        self, attack: Attack, oracle: Oracle, images: Tensor, labels: Tensor, seeds: Tensor
    ) -> Tensor:
        with inner_loop(oracle.clf, "eval"):
            return search_in_shares(attack.search, oracle, images, labels, self.threat, seeds)

    def _confirm(self, reached: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Which images are in the ball and in [0, 1], and wrong for the original in float32. Bool ``[n]``."""
        broken = self.threat.contains(reached, clean)
        if bool(broken.any()):
            broken[broken.clone()] = ~right(self.clf, reached[broken], labels[broken])
        return broken

    def _reporter(self, attack: Attack, passes: Passes, started: float) -> Callable[[], None]:
        """Tells of a batch from within, a few times a second at most; passes are all that can be counted there."""
        work, last = self.work[attack.name], started

        def report() -> None:
            nonlocal last
            now, done = time.perf_counter(), work.forwards + passes.forwards
            if passes.forwards and now - last > _EVERY:
                last = now
                most = (work.attacked + len(self.waiting)) * attack.passes
                speed = (work.seconds + now - started) / done
                seconds_left = max(0, most - done) * speed if attack.passes else None
                self.tell(News(attack.name, len(self.waiting), seconds_left))

        return report
