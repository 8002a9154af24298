"""Checks of images, of outputs, and of what outputs depend on beside the image."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from trilemma.classifier.classifier import TOLERANCE, Classifier
from trilemma.classifier.contexts import BatchNorm, inner_loop
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Probe, largest, many
from trilemma.threat import Threat

# Images in [0, 1] whose brightest pixel is below this were divided by 255 once more.
DARK = 2 / 255


def image_findings(images: Tensor, threat: Threat | None) -> list[Finding]:
    """Range and content of ``[N, C, H, W]``, and a radius that would be in other units."""
    flat = images.flatten(1).double()
    low, high = flat.amin(1), flat.amax(1)
    outside = ~((low >= -TOLERANCE) & (high <= 1 + TOLERANCE))  # true for NaN too
    found = []
    if bool(outside.any()):
        span = f"values span [{float(low.min()):.4g}, {float(high.max()):.4g}] instead of [0, 1]"
        found.append(Finding.known("range", span, int(outside.sum()), len(images)))
        if (
            threat is not None
            and -1 - TOLERANCE <= float(low.min()) < 0
            and float(high.max()) <= 1 + TOLERANCE
        ):
            seen = f"images span [-1, 1], where a radius of {threat.radius} is worth half of it in [0, 1]"
            found.append(Finding.known("radius-units", seen, int(outside.sum()), len(images)))
    elif float(high.max()) <= DARK:
        seen = f"no value is above {float(high.max()):.4g}, as if divided by 255 twice"
        found.append(Finding.known("range", seen, len(images), len(images)))
    constant = int((low == high).sum())
    if many(constant, len(images), 0.01, at_least=1):
        found.append(Finding.known("constant-images", "all pixels have one value", constant, len(images)))
    return found


ROUNDING = 1e-3


def output_findings(logits: Tensor) -> list[Finding]:
    """What the rows of ``[N, K]`` look like; one class alone can be anything."""
    count = len(logits)
    odd = int((~torch.isfinite(logits).all(1)).sum())
    if odd:
        return [Finding.known("non-finite-outputs", "outputs are NaN or infinite", odd, count)]
    if logits.shape[1] < 2:
        return []
    if float(logits.min()) >= 0 and bool(((logits.sum(1) - 1).abs() < ROUNDING).all()):
        seen = "outputs are not negative and sum to 1"
        return [Finding.known("softmax-outputs", seen, count, count)]
    if float(logits.max()) <= 0 and bool((logits.logsumexp(1).abs() < ROUNDING).all()):
        seen = "exponentials of the outputs sum to 1"
        return [Finding.known("log-softmax-outputs", seen, count, count)]
    return []


# Of the largest logit: two forwards of the same batch, and forwards of batches of other sizes, differ by rounding.
SAME_BATCH, OTHER_BATCH = 1e-5, 1e-4


def training_layers(network: nn.Module) -> str:
    """Layers in train mode whose outputs depend on it, such as ``"2 BatchNorm2d, 1 Dropout"``; empty for none."""
    kinds = (BatchNorm, nn.modules.dropout._DropoutNd)
    counts = Counter(
        type(module).__name__ for module in network.modules() if isinstance(module, kinds) and module.training
    )
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


@torch.no_grad()
def outputs_as_handed_in(clf: Classifier, images: Tensor) -> Tensor | None:
    """Logits in the modes the classifier came with; ``None`` where no module is in train mode."""
    if not any(module.training for module in clf.network.modules()):
        return None
    with inner_loop(clf, None):
        return clf.logits(images)


def mode_findings(probe: Probe, images: Tensor, layers: str, handed_in: Tensor | None) -> list[Finding]:
    """Train mode, randomness and dependence on the batch.

    Args:
        images: ``[n, C, H, W]``, few enough for one batch.
        layers: :func:`training_layers` of the classifier as it was handed in.
        handed_in: what :func:`outputs_as_handed_in` gave for the same images.
    """
    found = []
    count, network = len(images), probe.oracle.clf.network
    logits = probe.oracle.logits(images)
    random = _differ(probe.oracle.logits(images), logits, SAME_BATCH)
    if stuck := training_layers(network):
        seen = f"{stuck} stay in train mode when eval mode is asked for"
        found.append(Finding.known("train-mode", seen, count, count))
    elif handed_in is not None and (differ := _differ(handed_in, logits, OTHER_BATCH)) > random:
        seen = f"in train mode as handed in ({layers or 'modules of other kinds'}), and outputs differ from eval mode"
        found.append(Finding.known("train-mode", seen, differ, count))
    if random:
        seen = "two forward passes of the same batch in eval mode differ"
        found.append(Finding.known("random-forward", seen, random, count))
    elif batch := _differ(_in_halves(probe, images), logits, OTHER_BATCH):
        seen = "outputs in eval mode change with the other images of the batch"
        found.append(Finding.known("batch-dependence", seen, batch, count))
    return found


def _in_halves(probe: Probe, images: Tensor) -> Tensor:
    """Logits of the images in reversed order, two batches instead of one; back in the order they came."""
    parts = images.flip(0).split(max(len(images) // 2, 1))
    return torch.cat([probe.oracle.logits(part) for part in parts]).flip(0)


def _differ(one: Tensor, other: Tensor, rounding: float) -> int:
    """Rows that differ by more than rounding."""
    return int((largest(one - other) > rounding * float(other.abs().amax()) + 1e-12).sum())
