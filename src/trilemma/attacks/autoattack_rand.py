"""AutoAttack for networks with random forward passes: Auto-PGD along mean gradients, judged by expected accuracy.

Croce and Hein 2020, arXiv 2003.01690, their version for randomised defences. The random numbers of such a network are
drawn for a batch, so the result of an image depends on the batch that it is in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trilemma import noise
from trilemma.attacks.arguments import AnyThreat, attack_arguments
from trilemma.attacks.autoattack import ensemble_attack
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.attacks.preset import count_outside
from trilemma.classifier.batch_size import resolve_batch_size
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop, seeded
from trilemma.classifier.correctness import evaluation_logits, is_correct
from trilemma.classifier.wrap import Images, Labels, Network, as_images
from trilemma.config.presets import AUTOATTACK_RAND, EXPECTATION
from trilemma.data.image_set import as_float
from trilemma.errors import ConfigError
from trilemma.threat import Threat
from trilemma.units import seed_number

# Forward passes of each estimate of an image's expected accuracy.
FORWARDS = 100
# Images and forward passes of the check for randomness, and the difference of logits that is rounding, relative to the
# largest logit.
CHECKED_IMAGES, CHECKED_FORWARDS, ROUNDING = 32, 8, 1e-5


@dataclass(frozen=True, repr=False)
class AutoAttackRandResult:
    """The result of :func:`autoattack_rand`.

    Attributes:
        clean, robust: share of :data:`FORWARDS` forward passes in which each image is classified correctly, without
            attack and as the strongest adversarial image found; float32 ``[N]`` in [0, 1], on the CPU.
        adversarial: that image, float32 ``[N, C, H, W]`` on the CPU; the clean image where no attack lowered the share.
        broken_by: per image, the attack that found it; ``None`` for the clean image.
        attacked: per attack, the number of images that it attacked.
    """

    clean: Tensor
    robust: Tensor
    adversarial: Tensor
    broken_by: list[str | None]
    attacked: dict[str, int]

    def __repr__(self) -> str:
        means = ", ".join(f"{name} {float(getattr(self, name).mean()):.3f}" for name in ("clean", "robust"))
        attacks = ", ".join(f"{name} attacked {count}" for name, count in self.attacked.items())
        return f"AutoAttackRandResult: {len(self.robust)} images, mean share correct: {means}; {attacks}"


@torch.inference_mode(False)
def autoattack_rand(
    clf: Network,
    images: Images,
    labels: Labels,
    threat: AnyThreat,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    *,
    norm: Any = None,
    advance: Callable[[int], None] = lambda count: None,
) -> AutoAttackRandResult:
    """Expected accuracy of a random network under attack: the share of correct forward passes of each image.

    Auto-PGD climbs the mean cross-entropy of 20 forward passes along its gradient, then the mean DLR (with 2 classes,
    for which DLR is undefined, the mean margin): 100 steps and one start each. Of the clean image and the two points of
    highest loss, the one of lowest expected accuracy counts; it is then judged by new forward passes, so that the
    choice does not bias the result.

    Args:
        clf, images, labels, threat, norm: as of :func:`trilemma.attacks.pgd.pgd`; attacked in eval mode. ``images`` may
            be uint8 too.
        batch_size: images per forward pass; ``"auto"`` fits it to the free memory. Another size draws other random
            numbers.
        seed: seed of all random numbers, those of the network included if it draws from the default generators of
            torch, NumPy or Python; their states are restored.
        advance: called with the number of images that were finished since the last call.

    Raises:
        ImageError: images outside [0, 1] or of the wrong shape, or labels that do not fit.
        ConfigError: the network is not random, or a batch size below 1.
        RuntimeError: adversarial images outside the ball or [0, 1].
    """
    shown = as_images(images)
    given = attack_arguments("autoattack_rand", clf, as_float(shown), labels, threat, norm)
    clf, images, labels, threat = given.clf, given.images, given.labels, given.threat
    seed = seed_number("autoattack_rand", seed)
    adversarial = images.cpu().float().contiguous().clone()
    names = ("apgd-ce", "apgd-dlr" if clf.num_classes > 2 else "apgd-margin")
    image_seeds = noise.image_seeds(len(labels), torch.Generator().manual_seed(seed))
    clean, robust = torch.zeros(len(labels)), torch.zeros(len(labels))
    best_attack = torch.full((len(labels),), -1)
    attacked = dict.fromkeys(names, 0)
    with seeded(seed, clf.device):
        size = resolve_batch_size(clf, images, batch_size)
        _check_random(clf, adversarial[:CHECKED_IMAGES].to(clf.device))
        for index in torch.arange(len(labels)).split(size):
            true_labels = labels[index.to(labels.device)].to(clf.device)
            batch = _Batch(clf, adversarial[index].to(clf.device), true_labels, threat)
            clean[index] = batch.expected.cpu()
            for k, name in enumerate(names):
                attacked[name] += batch.attack(k, name, image_seeds[index].to(clf.device))
            robust[index] = batch.judge().cpu()
            adversarial[index], best_attack[index] = batch.best.cpu(), batch.best_attack.cpu()
            advance(len(index))
    broken_by = [names[k] if k >= 0 else None for k in best_attack.tolist()]
    return AutoAttackRandResult(clean, robust, adversarial, broken_by, attacked)


def expected_correct(clf: Classifier, images: Tensor, labels: Tensor, forwards: int = FORWARDS) -> Tensor:
    """The share of ``forwards`` passes in which each image is classified correctly, float32 ``[N]``."""
    total = torch.zeros(len(labels), device=images.device)
    for _ in range(forwards):
        total += is_correct(clf, images, labels)
    return total / forwards


class _Batch:
    """The images of one batch, each with the strongest adversarial image so far.

    Attributes:
        best: that image, ``[n, C, H, W]``.
        expected: the share of correct forward passes by which it was chosen, ``[n]``.
        best_attack: index of the attack that found it, -1 for the clean image.
    """

    def __init__(self, clf: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> None:
        self.clf, self.images, self.labels, self.threat = clf, images, labels, threat
        self.best = images.clone()
        self.expected = expected_correct(clf, images, labels)
        self.best_attack = torch.full_like(labels, -1)

    def attack(self, number: int, name: str, seeds: Tensor) -> int:
        """Runs one attack on the images that are still classified correctly at times; returns their number."""
        index = self.expected.nonzero().squeeze(1)
        if not len(index):
            return 0
        images, labels = self.images[index], self.labels[index]
        attack = ensemble_attack(AUTOATTACK_RAND, name)
        with inner_loop(self.clf, "eval"):
            oracle = Oracle(self.clf, expectation=EXPECTATION)
            found = attack.search(
                oracle, images, labels, self.threat, noise.derive(seeds[index], attack.stream)
            )
        if outside := count_outside(self.threat, found, images):
            raise RuntimeError(
                f"{name}: {outside} adversarial images lie outside {self.threat} or [0, 1]; a bug"
            )
        expected = expected_correct(self.clf, found, labels)
        better = expected < self.expected[index]
        self.best[index[better]], self.expected[index[better]] = found[better], expected[better]
        self.best_attack[index[better]] = number
        return len(index)

    def judge(self) -> Tensor:
        """The expected accuracy of the chosen images by new forward passes, ``[n]``."""
        return expected_correct(self.clf, self.best, self.labels)


def _check_random(clf: Classifier, images: Tensor) -> None:
    """Checks that forward passes of the same images differ by more than rounding.

    Raises:
        ConfigError: they do not.
    """
    first = evaluation_logits(clf, images)
    tolerance = ROUNDING * first.abs().amax()
    for _ in range(CHECKED_FORWARDS - 1):
        # Not <=: NaN counts as a difference.
        if not bool((evaluation_logits(clf, images) - first).abs().amax() <= tolerance):
            return
    raise ConfigError(
        f"autoattack-rand: {CHECKED_FORWARDS} forward passes of {len(images)} images agree, so the network is not "
        "random; use autoattack-standard, which is stronger there (autoattack-few-classes for 2 or 3 classes)"
    )
