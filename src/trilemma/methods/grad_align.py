"""GradAlign: the input gradient of the loss is kept the same all over the ball (Andriushchenko and Flammarion 2020)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
)
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import autocast_off, running_statistics_kept
from trilemma.config.sections import AttackConfig, SamplerConfig, ThreatConfig
from trilemma.data.batch import Batch
from trilemma.errors import ConfigError
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.fgsm import SingleStepOptions
from trilemma.methods.inner import attacked, fresh_seeds
from trilemma.methods.pgd_at import adversarial_cross_entropy
from trilemma.units import parse_fraction
from trilemma.walks import objectives


class GradAlignOptions(SingleStepOptions):
    image_sets: ClassVar[int] = 2
    double_backwards: ClassVar[int] = 1

    name: Literal["grad-align"] = "grad-align"
    weight: NonNegativeFloat | None = Field(
        None, description="weight of the alignment term; null: by the radius, 0.2 at 8/255 and 2 at 16/255"
    )

    def weight_at(self, radius: float) -> float:
        """The weight at a radius per pixel value: log-linear, ten times as much for 8/255 more."""
        if self.weight is not None:
            return self.weight
        return math.exp(255 * radius * math.log(10) / 8 + math.log(0.02))

    def resolved_attack(self, attack: AttackConfig, threat: ThreatConfig | None) -> AttackConfig:
        """As for every method, but the attack has one step: its gradient is the one at the clean image.

        Raises:
            ConfigError: more steps.
        """
        if attack.steps not in (None, 1):
            raise ConfigError(
                f"attack.steps: {attack.steps} given, but 'grad-align' aligns the gradient of its one step; "
                "use 1, or pgd-at"
            )
        return super().resolved_attack(attack, threat)

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """A radius that the rule of the weight was not published for, and gradients of two modes."""
        found = []
        # the one step is as long as the radius
        if self.weight is None and parse_fraction(attack.step_size or 0) > parse_fraction("16/255"):
            found.append(
                "method.weight: its rule is published for L-inf up to 16/255 and grows tenfold with every "
                "8/255; choose the weight yourself"
            )
        if self.attack_mode == "eval":
            found.append(
                "method.attack_mode: 'eval' aligns a gradient in eval mode with one in train mode; "
                "with BatchNorm use 'train'"
            )
        return found


class GradAlign(Method):
    """``L = mean CE(x*, y) + lam (1 - mean cos(g(x), g(x')))``, ``g = grad_x CE``, ``x' = x + U(-eps, eps)``.

    x* is one full step from x itself, along g(x): the attack's own gradient is the first of the two and no
    second one is computed. It is held, and weights learn through g(x') alone. x' may leave the box. Images where
    a gradient is exactly 0 have no angle and are left out of the mean.

    Under an L2 threat x' is uniform in the L2 ball, and ``lam`` follows the radius per pixel value,
    ``eps / sqrt(number of values)``; nothing is published for it.
    """

    Options = GradAlignOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        nearby = self.threat.random_start(x, fresh_seeds(state, x), clip=False)
        starred = attacked(self, clf, x, x, lambda: objectives.cross_entropy(clf, y))
        return Points(x, y, **starred, extra={"nearby": nearby})

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.gradient is not None
        step = adversarial_cross_entropy(clf, points)
        second = differentiable_gradient(clf, points.extra["nearby"], points.labels)
        turned = misalignment(points.gradient.detach(), second)
        weight = self.options.weight_at(self.threat.pixel_radius(points.clean.shape[1:]))
        named = {"robust": step.loss, "misalignment": turned}
        return replace(
            step,
            loss=step.loss + weight * turned,
            metrics={name: value.detach() for name, value in named.items()},
        )


def differentiable_gradient(clf: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """``grad_x CE`` with a graph to the weights, ``[N, C, H, W]``.

    In float32 also under autocast: half-precision rounding would be differentiated along. BatchNorm's running
    statistics stay.
    """
    here = images.detach().requires_grad_()
    with running_statistics_kept(clf), autocast_off(here.device):
        loss = energies.cross_entropy(clf.logits(here), labels).sum()
        (gradient,) = torch.autograd.grad(loss, here, create_graph=True)
    return gradient


def misalignment(first: Tensor, second: Tensor) -> Tensor:
    """``1 - mean cos`` over the images where neither gradient is 0, a scalar; 0 where there is none.

    Args:
        first, second: ``[N, C, H, W]``; the graph may go through either.
    """
    (u, there), (v, here) = unit(first), unit(second)
    counted = (there & here).to(second)
    turned = 1 - (u * v).flatten(1).sum(1)
    return (turned * counted).sum() / counted.sum().clamp_min(1)


def unit(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's gradient at length 1, and where that was possible (bool ``[N]``).

    A root at 0 has no derivative, so those images get length 1 before it: 0 comes back, and NaN does not.
    """
    rows = gradient.flatten(1)
    squared = rows.square().sum(1)
    nonzero = squared > 0
    length = torch.where(nonzero, squared, torch.ones_like(squared)).sqrt()
    return (rows / length[:, None]).view_as(gradient), nonzero
