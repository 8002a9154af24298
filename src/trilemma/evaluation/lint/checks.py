"""Checks of images, of outputs, and of outputs that depend on the mode, on chance or on the batch."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from trilemma.classifier.classifier import TOLERANCE, Classifier
from trilemma.classifier.contexts import BatchNorm, inner_loop
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Probe, is_frequent, max_abs
from trilemma.threat import Threat

# If no pixel value is above this, the images were divided by 255 twice.
DARK = 2 / 255


def image_findings(images: Tensor, threat: Threat | None) -> list[Finding]:
    """Findings about range and content of images ``[N, C, H, W]``, and about the units of the radius."""
    flat = images.flatten(1).double()
    low, high = flat.amin(1), flat.amax(1)
    # Also true for NaN.
    outside = ~((low >= -TOLERANCE) & (high <= 1 + TOLERANCE))
    findings = []
    if bool(outside.any()):
        span = f"values span [{float(low.min()):.4g}, {float(high.max()):.4g}] instead of [0, 1]"
        findings.append(Finding.from_catalogue("range", span, int(outside.sum()), len(images)))
        if (
            threat is not None
            and -1 - TOLERANCE <= float(low.min()) < 0
            and float(high.max()) <= 1 + TOLERANCE
        ):
            observation = (
                f"images span [-1, 1], where a radius of {threat.radius} corresponds to half of it in [0, 1]"
            )
            findings.append(
                Finding.from_catalogue("radius-units", observation, int(outside.sum()), len(images))
            )
    elif float(high.max()) <= DARK:
        observation = f"no value is above {float(high.max()):.4g}, as if divided by 255 twice"
        findings.append(Finding.from_catalogue("range", observation, len(images), len(images)))
    constant = int((low == high).sum())
    if is_frequent(constant, len(images), 0.01, at_least=1):
        findings.append(
            Finding.from_catalogue("constant-images", "all pixels have one value", constant, len(images))
        )
    return findings


# Tolerance for sums of probabilities.
ROUNDING = 1e-3
# Outputs of a class pile up at a limit if a share of the images, and MORE images, are near its largest or smallest
# output. Distances are shares of the range of the class, shares of images multiples of 1 / K. The outputs of a
# function after the last layer have the same limit in all classes, up to ALIKE. Of 60 networks trained on the
# cross-entropy the largest share was 0.13. `eb-jdat`, whose energies level off by themselves, has 0.5 with limits that
# differ by 0.12 of the range, and 0.05 at the shorter distance.
DISTANCE, SHARE, SHARE_IF_ALIKE, ALIKE = 0.02, 0.7, 0.25, 0.06
SHORT_DISTANCE, SHORT_SHARE = 0.002, 0.15
MORE = 5


def output_findings(logits: Tensor) -> list[Finding]:
    """Findings about outputs ``[N, K]``: not finite; for at least 2 classes also probabilities, labels, or bounded."""
    count = len(logits)
    not_finite = int((~torch.isfinite(logits).all(1)).sum())
    if not_finite:
        return [
            Finding.from_catalogue("non-finite-outputs", "outputs are NaN or infinite", not_finite, count)
        ]
    if logits.shape[1] < 2:
        return []
    # Columns that are the same for all images, such as those of masked classes, say nothing about the others.
    varying = logits[:, (logits != logits[:1]).any(0)]
    if varying.numel() >= 8 and len(values := varying.unique()) == 2:
        observation = f"the outputs only take the values {float(values[0]):g} and {float(values[1]):g}"
        return [Finding.from_catalogue("quantised-outputs", observation, count, count)]
    if float(logits.min()) >= 0 and bool(((logits.sum(1) - 1).abs() < ROUNDING).all()):
        observation = "outputs are not negative and sum to 1"
        return [Finding.from_catalogue("softmax-outputs", observation, count, count)]
    if float(logits.max()) <= 0 and bool((logits.logsumexp(1).abs() < ROUNDING).all()):
        observation = "exponentials of the outputs sum to 1"
        return [Finding.from_catalogue("log-softmax-outputs", observation, count, count)]
    return _bounded_finding(varying)


def _bounded_finding(outputs: Tensor) -> list[Finding]:
    """A finding if the outputs ``[N, k]`` of most classes pile up at the largest or the smallest one; else empty."""
    if not outputs.numel():
        return []
    count, classes = outputs.shape
    lowest, highest = outputs.amin(0), outputs.amax(0)
    for limit, word in ((highest, "largest"), (lowest, "smallest")):
        alike = limit.max() - limit.min() <= ALIKE * (highest.max() - lowest.min())
        far = (DISTANCE, SHARE_IF_ALIKE if alike else SHARE)
        for distance, share in (far, (SHORT_DISTANCE, SHORT_SHARE)):
            piled = (outputs - limit).abs() <= distance * (highest - lowest)
            if float(piled.double().mean(0).median()) >= share / classes + MORE / count:
                observation = (
                    f"{float(piled.double().mean()):.0%} of the outputs are within {distance:.1%} of the range of "
                    f"their class from its {word} output"
                )
                images = int(piled.any(1).sum())
                return [Finding.from_catalogue("bounded-outputs", observation, images, count)]
    return []


# Rounding differences relative to the largest logit: between passes of the same batch, and of batches of other sizes.
SAME_BATCH, OTHER_BATCH = 1e-5, 1e-4


def training_layers(network: nn.Module) -> str:
    """The layers in train mode whose outputs depend on the mode, such as ``"2 BatchNorm2d, 1 Dropout"``, or ``""``."""
    kinds = (BatchNorm, nn.modules.dropout._DropoutNd)
    counts = Counter(
        type(module).__name__ for module in network.modules() if isinstance(module, kinds) and module.training
    )
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


@torch.no_grad()
def logits_in_initial_modes(clf: Classifier, images: Tensor) -> Tensor | None:
    """Logits in the classifier's current modes; ``None`` if no module is in train mode."""
    # A frozen TorchScript module has no mode.
    if not any(getattr(module, "training", False) for module in clf.network.modules()):
        return None
    with inner_loop(clf, None):
        return clf.logits(images)


def mode_findings(probe: Probe, images: Tensor, layers: str, initial_logits: Tensor | None) -> list[Finding]:
    """Findings about train mode, randomness and dependence on the batch; the probe's classifier is in eval mode.

    Args:
        images: ``[n, C, H, W]``, few enough for one batch.
        layers: :func:`training_layers` of the classifier in its initial modes.
        initial_logits: :func:`logits_in_initial_modes` of the same images.
    """
    findings = []
    count, network = len(images), probe.oracle.clf.network
    logits = probe.oracle.logits(images)
    random = _count_different(probe.oracle.logits(images), logits, SAME_BATCH)
    if stuck := training_layers(network):
        observation = f"{stuck} stay in train mode after .eval()"
        findings.append(Finding.from_catalogue("train-mode", observation, count, count))
    elif (
        initial_logits is not None
        and (changed := _count_different(initial_logits, logits, OTHER_BATCH)) > random
    ):
        kinds = layers or "modules of other kinds"
        observation = f"passed in train mode ({kinds}), with outputs that differ from eval mode"
        findings.append(Finding.from_catalogue("train-mode", observation, changed, count))
    if random:
        observation = "two forward passes of the same batch in eval mode differ"
        findings.append(Finding.from_catalogue("random-forward", observation, random, count))
    elif batch := _count_different(_in_halves(probe, images), logits, OTHER_BATCH):
        observation = "outputs in eval mode change with the other images of the batch"
        findings.append(Finding.from_catalogue("batch-dependence", observation, batch, count))
    return findings


def _in_halves(probe: Probe, images: Tensor) -> Tensor:
    """Logits of the images, computed in two batches and in reversed order; returned in the original order."""
    parts = images.flip(0).split(max(len(images) // 2, 1))
    return torch.cat([probe.oracle.logits(part) for part in parts]).flip(0)


def _count_different(one: Tensor, other: Tensor, rounding: float) -> int:
    """The number of images whose logits differ by more than ``rounding``, relative to the largest logit."""
    return int((max_abs(one - other) > rounding * float(other.abs().amax()) + 1e-12).sum())
