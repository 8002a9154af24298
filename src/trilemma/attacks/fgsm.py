"""FGSM: one steepest step of the radius from the clean image (Goodfellow et al. 2015)."""

from __future__ import annotations

from torch import Tensor

from trilemma.attacks import objectives
from trilemma.attacks.ball import ascend, check_labels
from trilemma.classifier import Classifier
from trilemma.contexts import Mode, inner_loop
from trilemma.threat import Threat


def fgsm(
    clf: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    step_size: float | None = None,
    mode: Mode = "eval",
) -> Tensor:
    """One step that climbs the cross-entropy.

    Args:
        clf: the classifier; left exactly as it was.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``.
        threat: ball and radius.
        step_size: pixel units; the radius by default.
        mode: BatchNorm and dropout mode of the forward.

    Returns:
        Adversarial images, ``[N, C, H, W]``.

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    with inner_loop(clf, mode):
        size = threat.epsilon if step_size is None else step_size
        return ascend(clf, images, images, threat, objectives.cross_entropy(clf, labels), 1, size)
