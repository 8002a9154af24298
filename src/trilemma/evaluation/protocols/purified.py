"""``clean``, ``pgd-20`` and ``pgd-50-10`` of purified images: the attack goes through the purifier (``--purify``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.preset import count_outside
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.correctness import full_precision, is_correct
from trilemma.data.image_set import as_float
from trilemma.defences.adaptive import climb
from trilemma.defences.purification import Purification, purified
from trilemma.evaluation.protocol import Measurement, Request
from trilemma.metrics.accuracy import wilson_interval

# Random-number streams of the purifications by which images are chosen and judged, apart from those of the attack.
CHOICE, JUDGEMENT = 102, 103
# The attack on the classifier alone, whose images are purified afterwards.
PLAIN = "plain attack"
# The strongest of all attacks, image by image.
STRONGEST = "strongest"


def purified_clean(request: Request) -> Measurement:
    """The expected accuracy on purified images, without attack."""
    defended = _Defended(request)
    shares = defended.shares(defended.images, JUDGEMENT, request.advance)
    return defended.measurement(_mean(shares), {}, {})


def purified_pgd(name: str, steps: int, restarts: int) -> Callable[[Request], Measurement]:
    """A protocol function: the expected accuracy on purified images under PGD through the purifier.

    Each image is attacked by the plain PGD of the protocol ``name``, on the classifier alone, and by PGD through the
    purifier with each gradient of the request's purification, all from the same random starts. Of these images and the
    clean one, the one of the lowest expected accuracy counts; it is then judged by purifications with new noise, so
    that the choice does not bias the result. If one attack alone gives a lower mean, that is the value. An image that
    is misclassified in all draws is not attacked further.

    Args:
        name: name of the protocol, for messages.
        steps: steps of a quarter of the radius.
        restarts: number of random starts.
    """

    def measure(request: Request) -> Measurement:
        defended = _Defended(request)
        kinds = (PLAIN, *defended.settings.gradients)
        clean = defended.shares(defended.images, CHOICE)
        strongest = {kind: _Strongest(defended.images.clone(), clean.clone()) for kind in (*kinds, STRONGEST)}
        remaining = clean.nonzero().squeeze(1)
        facts = {"attacked": len(remaining)}
        request.advance(len(clean) - len(remaining))
        generator = torch.Generator().manual_seed(request.seed)
        for restart in range(restarts):
            for index in remaining.split(request.batch_size) if len(remaining) else ():
                seeds = noise.image_seeds(len(index), generator, request.clf.device)
                for kind in kinds:
                    found = defended.attack(name, index, None if kind == PLAIN else kind, seeds, steps)
                    share = defended.share(found, index, CHOICE)
                    for which in (kind, STRONGEST):
                        strongest[which].replace(index, found, share)
                broken = int((strongest[STRONGEST].share[index] == 0).sum())
                request.advance(len(index) if restart == restarts - 1 else broken)
            remaining = strongest[STRONGEST].share.nonzero().squeeze(1)
        judged = {kind: _mean(defended.shares(one.images, JUDGEMENT)) for kind, one in strongest.items()}
        # A choice by few draws can be worse than one attack for all images.
        value = min(judged.values())
        del judged[STRONGEST]
        of_clean = _mean(defended.shares(defended.images, JUDGEMENT))
        return defended.measurement(value, {"clean": of_clean, **judged}, facts)

    return measure


class _Defended:
    """The classifier behind a purifier, with the images of a request.

    Attributes:
        request: the request, with its purification.
        settings: the purification.
        images: float32 ``[N, C, H, W]`` on the CPU.
        seeds: int64 ``[N]``, one noise seed per image.
    """

    def __init__(self, request: Request) -> None:
        assert request.purification is not None
        self.request, self.settings = request, request.purification
        self.images = as_float(request.images.cpu()).float()
        self.seeds = noise.image_seeds(len(request.labels), torch.Generator().manual_seed(request.seed))

    def share(self, images: Tensor, index: Tensor, stream: int) -> Tensor:
        """The share of purifications in which each image is classified correctly, float32 ``[n]`` on the CPU.

        Args:
            images: ``[n, C, H, W]`` on the classifier's device.
            index: their positions in the request, int64 ``[n]``.
            stream: :data:`CHOICE` or :data:`JUDGEMENT`.
        """
        clf, settings = self.request.clf, self.settings
        labels = self.request.labels[index].to(clf.device)
        seeds = noise.derive(self.seeds[index].to(clf.device), stream)
        draws = settings.judgements if stream == JUDGEMENT else settings.draws
        draws = draws if settings.random else 1
        total = torch.zeros(len(index), device=clf.device)
        for draw in range(draws):
            with full_precision(clf.device), inner_loop(clf, "eval"):
                clean = purified(clf, images, settings, noise.derive(seeds, draw))
            total += is_correct(clf, clean, labels)
        return (total / draws).cpu()

    def shares(
        self, images: Tensor, stream: int, advance: Callable[[int], None] = lambda count: None
    ) -> Tensor:
        """:meth:`share` of all images ``[N, C, H, W]`` on the CPU, in batches; float32 ``[N]``."""
        shares = []
        for index in torch.arange(len(images)).split(self.request.batch_size):
            shares.append(self.share(images[index].to(self.request.clf.device), index, stream))
            advance(len(index))
        return torch.cat(shares)

    def attack(self, name: str, index: Tensor, gradient: str | None, seeds: Tensor, steps: int) -> Tensor:
        """Adversarial images by PGD; on the classifier alone if ``gradient`` is ``None``.

        Raises:
            RuntimeError: adversarial images outside the ball or [0, 1].
        """
        clf, threat = self.request.clf, self.request.required_threat
        images, labels = self.images[index].to(clf.device), self.request.labels[index].to(clf.device)
        size = threat.epsilon / 4
        found = climb(clf, images, labels, threat, self.settings, gradient, seeds, steps, size)
        if outside := count_outside(threat, found, images):
            raise RuntimeError(f"{name}: {outside} adversarial images lie outside {threat} or [0, 1]; a bug")
        return found

    def measurement(self, value: float, also: dict[str, float], facts: dict[str, Any]) -> Measurement:
        """The result, with a note that says what was measured."""
        count = len(self.request.labels)
        interval = wilson_interval(value * count, count)
        return Measurement(value, count, interval, also, {"note": _note(self.settings, also), **facts})


@dataclass
class _Strongest:
    """The image of the lowest expected accuracy so far of each image, at first the clean one.

    Attributes:
        images: float32 ``[N, C, H, W]`` on the CPU.
        share: the share of correct draws by which they were chosen, float32 ``[N]``.
    """

    images: Tensor
    share: Tensor

    def replace(self, index: Tensor, images: Tensor, share: Tensor) -> None:
        """Takes over those of ``images``, at positions ``index``, whose share is lower."""
        better = share < self.share[index]
        self.images[index[better]] = images.cpu()[better].float()
        self.share[index[better]] = share[better]


def _mean(shares: Tensor) -> float:
    return float(shares.double().mean())


def _note(settings: Purification, also: dict[str, float]) -> str:
    """What was measured, in a sentence."""
    if not settings.steps:
        return "0 Langevin steps: the accuracy of the plain classifier"
    judged = f"accuracy after {settings.steps} Langevin steps on E(x)"
    if settings.random:
        judged = f"expected {judged}, over {settings.judgements} purifications of each image"
    if not also:
        return f"{judged}; without attack, so it says nothing about robustness"
    draws = f", {settings.draws} draws of noise per step" if settings.random else ""
    return (
        f"{judged}, under PGD through the purifier ({' and '.join(settings.gradients)}{draws}); without attack "
        f"{also['clean']:.1%}, under the attack on the plain classifier {also[PLAIN]:.1%}"
    )
