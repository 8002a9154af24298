"""MI-FGSM: an attack of one's own, outside the package, in one file.

python docs/examples/mi_fgsm.py runs/digits-pgd-at
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import trilemma
from trilemma.classifier.classifier import check_labels
from trilemma.classifier.contexts import inner_loop
from trilemma.config.registry import ATTACKS
from trilemma.evaluation.diagnose import diagnose
from trilemma.walks import objectives
from trilemma.walks.steps import ascend
from trilemma.walks.walk import Walkers


def mi_fgsm(
    clf: trilemma.Classifier,
    images: Tensor,
    labels: Tensor,
    threat: trilemma.Threat,
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Gradient steps with momentum, from the image itself (Dong et al. 2018)::

        g <- decay g + grad CE(x, y) / ||grad CE(x, y)||_1,    x <- project(x + step_size * ascent(g))

    Args:
        clf: the classifier.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the true classes.
        threat: norm and radius; ``ascent`` is the sign under linf and the direction of unit length under l2.
        steps: number of gradient steps.
        step_size: pixel units per step; radius / steps by default.
        decay: weight of the momentum.
        generator: unused, because the attack draws no random numbers; every attack accepts one.

    Returns:
        Adversarial images, ``[N, C, H, W]``, inside the ball and [0, 1].

    Raises:
        ImageError: images outside [0, 1], of another shape, or labels that do not fit.
    """
    clf.check(images)
    check_labels(labels, images, clf.num_classes)
    size = threat.epsilon / steps if step_size is None else step_size

    def momentum_step(walkers: Walkers, gradient: Tensor) -> Tensor:
        length = gradient.flatten(1).abs().sum(1).clamp_min(1e-12).view(-1, 1, 1, 1)
        momentum = gradient / length + decay * walkers.state.get("momentum", torch.zeros_like(gradient))
        walkers.state["momentum"] = momentum
        return walkers.images + size * threat.ascent(momentum)

    with inner_loop(clf, "eval"):
        objective = objectives.cross_entropy(clf, labels)
        return ascend(clf, images, images, threat, objective, steps, size, step_rule=momentum_step)


ATTACKS.add(
    "mi-fgsm",
    f"{__name__}:mi_fgsm",
    summary="gradient steps with momentum, from the image itself",
    paper="Dong et al. 2018",
    cost="2 steps",
)

if __name__ == "__main__":
    clf = trilemma.load(sys.argv[1])
    for name, row in trilemma.evaluate(clf, "digits", protocols=["pgd-20", "attack:mi-fgsm"]).items():
        print(f"{name}: {row['value']:.3f} ({row['lower']:.3f} to {row['upper']:.3f})")
    diagnose(clf, "digits", attacks=["pgd", "mi-fgsm"], out="runs/mi-fgsm")
