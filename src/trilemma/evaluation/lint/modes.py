"""Outputs that depend on more than the image: on modes, on luck, on the other images of the batch."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from trilemma.classifier import Classifier
from trilemma.contexts import BatchNorm, inner_loop
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Probe, largest

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
