"""ELLE: a penalty on the non-linearity of the loss between two points near an image (Abad Rocamora et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from trilemma import energies, noise
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import autocast_off, running_statistics_kept
from trilemma.config.config import MethodOptions
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.fgsm import SingleStepOptions
from trilemma.methods.inner import attacked, fresh_seeds
from trilemma.methods.pgd_at import adversarial_cross_entropy
from trilemma.walks import objectives


class ElleOptions(SingleStepOptions):
    leaves_box: ClassVar[bool] = True
    image_sets: ClassVar[int] = 4

    name: Literal["elle"] = "elle"
    weight: NonNegativeFloat | None = Field(
        None, description="weight of the linearity error; null: 1000, 5000 or 10000, depending on the radius"
    )

    def weight_at(self, radius: float) -> float:
        """Returns the weight at an L-inf radius in pixel units.

        Published for radii of 2/255 to 8/255, 10/255 to 20/255, and from 22/255. A radius between two of these
        ranges belongs to the nearer one, or to the lower one if it is halfway.
        """
        if self.weight is not None:
            return self.weight
        levels = 255 * radius
        return 1000.0 if levels <= 9 else 5000.0 if levels <= 21 else 10_000.0


class Elle(Method):
    """Cross-entropy of x* plus the linearity error of the loss on a random chord of the ball::

        L   = mean CE(x*, y) + lam mean (CE(x_c, y) - a CE(x_a, y) - (1 - a) CE(x_b, y))^2
        x_a, x_b = x + U(-eps, eps)      x_c = a x_a + (1 - a) x_b      a ~ U(0, 1) per image

    x* is one full step from x. Neither x* nor the chord is clipped to [0, 1]. The loss needs first derivatives
    only; the gradient goes through all three points of the chord.

    Under an L2 threat the ends of the chord are uniform in the L2 ball, and ``lam`` is chosen by the radius per
    pixel value, ``eps / sqrt(number of values)``; the paper gives no values for L2.
    """

    Options: ClassVar[type[MethodOptions]] = ElleOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        seeds = fresh_seeds(state, x)
        x_a, x_b = (self.threat.random_start(x, noise.derive(seeds, k), clip=False) for k in (0, 1))
        a = noise.uniform(noise.derive(seeds, 2), 0, (1, 1, 1)).to(x)
        adversarial = attacked(
            self, clf, x, x, lambda: objectives.cross_entropy(clf, y), project=False, clip=False
        )
        return Points(x, y, **adversarial, extra={"x_a": x_a, "x_b": x_b, "a": a})

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        step = adversarial_cross_entropy(clf, points)
        error = linearity_error(clf, points)
        weight = self.weight(points, error.detach())
        return replace(
            step,
            loss=step.loss + weight.to(error) * error,
            metrics={"robust": step.loss.detach(), "linearity_error": error.detach(), "weight": weight},
        )

    def weight(self, points: Points, error: Tensor) -> Tensor:
        """Returns ``lam`` of this step, a float64 scalar.

        Args:
            points: the points of this step.
            error: the linearity error of this step, detached.
        """
        weight = self.options.weight_at(self.threat.pixel_radius(points.clean.shape[1:]))
        return error.new_full((), weight, dtype=torch.float64)


def linearity_error(clf: Classifier, points: Points) -> Tensor:
    """Returns ``mean (CE(x_c) - a CE(x_a) - (1 - a) CE(x_b))^2``, a scalar, from one forward pass of all three points.

    Computed in float32 even under autocast: the error is a difference of losses below the resolution of half
    precision. BatchNorm normalises the three points together and does not update its running statistics.

    Args:
        points: ``extra`` holds the ends of the chord, ``x_a`` and ``x_b`` ``[N, C, H, W]``, and the position
            ``a`` ``[N, 1, 1, 1]``.
    """
    x_a, x_b, a = (points.extra[name] for name in ("x_a", "x_b", "a"))
    chord = torch.cat([x_a, x_b, a * x_a + (1 - a) * x_b])
    with running_statistics_kept(clf), autocast_off(chord.device):
        losses = energies.cross_entropy(clf.logits(chord), points.labels.repeat(3))
    loss_a, loss_b, loss_c = losses.chunk(3)
    a = a.flatten()
    return (loss_c - a * loss_a - (1 - a) * loss_b).square().mean()
