"""GradAlign: a penalty on changes of the input gradient within the ball (Andriushchenko and Flammarion 2020)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
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
        None,
        description="weight of the alignment term; null: depends on the radius, 0.2 at 8/255 and 2 at 16/255",
    )

    def weight_at(self, radius: float) -> float:
        """Returns the weight at an L-inf radius in pixel units: log-linear, a factor of ten per 8/255."""
        if self.weight is not None:
            return self.weight
        return math.exp(255 * radius * math.log(10) / 8 + math.log(0.02))

    def resolved_attack(self, attack: AttackConfig, threat: ThreatConfig | None) -> AttackConfig:
        """Returns the resolved settings of the attack, which must have one step: the term uses its gradient at x.

        Raises:
            ConfigError: ``attack.steps`` is not 1.
        """
        if attack.steps not in (None, 1):
            raise ConfigError(
                f"attack.steps: {attack.steps} given, but method 'grad-align' needs a single-step attack; "
                "use 1, or method pgd-at"
            )
        return super().resolved_attack(attack, threat)

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """Warns of a radius beyond the published rule of the weight, and of gradients in two BatchNorm modes."""
        messages = []
        # The single step is as long as the radius.
        if self.weight is None and parse_fraction(attack.step_size or 0) > parse_fraction("16/255"):
            messages.append(
                "method.weight: the default is published for L-inf radii up to 16/255 and grows tenfold with every "
                "8/255; set the weight"
            )
        if self.attack_mode == "eval":
            messages.append(
                "method.attack_mode: 'eval' aligns a gradient in eval mode with one in train mode; "
                "with BatchNorm use 'train'"
            )
        return messages


class GradAlign(Method):
    """``L = mean CE(x*, y) + lam (1 - mean cos(g(x), g(x')))``, ``g = grad_x CE``, ``x' = x + U(-eps, eps)``.

    x* is one full step from x along g(x); g(x) is the gradient that the attack has computed, not a second one. g(x)
    is detached: the term has a gradient with respect to the weights through g(x') alone. x' is not clipped to [0, 1].
    Images whose gradient is exactly 0 have no angle and are excluded from the mean.

    Under an L2 threat x' is uniform in the L2 ball, and ``lam`` is chosen by the radius per pixel value,
    ``eps / sqrt(number of values)``; the paper gives no values for L2.
    """

    Options = GradAlignOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        nearby = self.threat.random_start(x, fresh_seeds(state, x), clip=False)
        adversarial = attacked(self, clf, x, x, lambda: objectives.cross_entropy(clf, y))
        return Points(x, y, **adversarial, extra={"nearby": nearby})

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.gradient is not None
        step = adversarial_cross_entropy(clf, points)
        nearby_gradient = differentiable_gradient(clf, points.extra["nearby"], points.labels)
        penalty = misalignment(points.gradient.detach(), nearby_gradient)
        weight = self.options.weight_at(self.threat.pixel_radius(points.clean.shape[1:]))
        named = {"robust": step.loss, "misalignment": penalty}
        return replace(
            step,
            loss=step.loss + weight * penalty,
            metrics={name: value.detach() for name, value in named.items()},
        )


def differentiable_gradient(clf: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Returns ``grad_x CE``, ``[N, C, H, W]``, with its graph, so that it can be differentiated by the weights.

    Computed in float32 even under autocast, so that half-precision rounding is not differentiated too. BatchNorm's
    running statistics are not updated.
    """
    inputs = images.detach().requires_grad_()
    with running_statistics_kept(clf), autocast_off(inputs.device):
        loss = energies.cross_entropy(clf.logits(inputs), labels).sum()
        (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
    return gradient


def misalignment(first: Tensor, second: Tensor) -> Tensor:
    """Returns ``1 - mean cos`` over the images where neither gradient is 0, a scalar; 0 if there is no such image.

    Args:
        first, second: ``[N, C, H, W]``; either may carry a graph.
    """
    (u, u_nonzero), (v, v_nonzero) = unit(first), unit(second)
    counted = (u_nonzero & v_nonzero).to(second)
    one_minus_cosine = 1 - (u * v).flatten(1).sum(1)
    return (one_minus_cosine * counted).sum() / counted.sum().clamp_min(1)


def unit(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each image's gradient scaled to L2 norm 1, and which gradients are not 0 (bool ``[N]``).

    A zero gradient is returned as 0: its norm is replaced by 1 before the square root, whose derivative at 0 would
    be NaN.
    """
    flat = gradient.flatten(1)
    squared_norm = flat.square().sum(1)
    nonzero = squared_norm > 0
    norm = torch.where(nonzero, squared_norm, torch.ones_like(squared_norm)).sqrt()
    return (flat / norm[:, None]).view_as(gradient), nonzero
