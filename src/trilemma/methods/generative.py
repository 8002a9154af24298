"""Base of the joint energy models: their loss, its contrastive term, and the real images of that term."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.config.chains import JEM, JEM_PLUS_PLUS
from trilemma.config.config import MethodOptions
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.inner import chain

LANGEVIN = JEM.training(buffer_size=10_000, reinit=0.05, mode="eval")
PROXIMAL = JEM_PLUS_PLUS.training(buffer_size=10_000, reinit=0.05, mode="train")

DataView = Annotated[
    Literal["unaugmented", "classified"],
    Field(
        description="real images of the generative term: un-augmented ones, as published, or the classified ones of "
        "the cross-entropy; with chains of E(x,y), un-augmented images can leave classes untrained"
    ),
]

WarmupSteps = Annotated[
    NonNegativeInt,
    Field(
        description="number of training steps during which the weight of the contrastive term rises linearly from 0; "
        "0: the formula from the first step on"
    ),
]


class WarmedUp(Method):
    """A method with options ``generative`` and ``warmup_steps``: the weight of the contrastive term rises to its value.

    A network that is robust already and has never seen chains gets energies of any size within few steps if the weight
    is large at once.
    """

    def init_state(self, clf: Classifier, data: ImageSet, seed: int) -> MethodState:
        state = super().init_state(clf, data, seed)
        state.extra["step"] = torch.zeros((), dtype=torch.int64)
        return state

    def weight(self, state: MethodState) -> float:
        """Returns the weight of the contrastive term at the step of ``state``."""
        option = self.options
        # States of earlier versions count no steps; their warm-up is over.
        step = int(state.extra["step"]) if "step" in state.extra else option.warmup_steps
        weight: float = option.generative
        return weight * (step + 1) / option.warmup_steps if step < option.warmup_steps else weight

    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:
        if "step" in state.extra:
            state.extra["step"] += 1


class JointEnergyModelOptions(MethodOptions):
    """Options of joint energy models of images and labels."""

    image_sets: ClassVar[int] = 2
    uses_sampler: ClassVar[bool] = True
    sampler_defaults: ClassVar[dict[str, object]] = PROXIMAL

    generative: NonNegativeFloat = Field(1.0, description="weight of the contrastive term")
    energy_penalty: NonNegativeFloat = Field(
        0.0,
        description="weight of mean E^2 of real and generated images; 0.1 is a common remedy for divergence",
    )


class JointEnergyModel(Method):
    """``p(x, y) = p(y | x) p(x)``, both from the logits of one classifier::

        L = w (mean E(x_data) - mean E(x^))                 maximum likelihood of p(x)
          + mean CE(x, y)                                   maximum likelihood of p(y | x)
          + energy_penalty (mean E(x_data)^2 + mean E(x^)^2)

    The penalty, 0 by default, keeps both energies near 0; the contrastive term determines only their difference.

    A subclass chooses whether chains are clipped, and the real images of the first term.

    Class attributes:
        clips_chains: whether x^ is clipped to [0, 1] during training.
    """

    clips_chains: ClassVar[bool] = True

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        chains = chain(clf, state, self.sampler, len(batch.images), clip=self.clips_chains)
        return Points(batch.images, batch.labels, data=self.real_images(batch), **chains)

    def real_images(self, batch: Batch) -> Tensor:
        """Returns x_data, by default the classified images, so that both terms share one forward pass."""
        return batch.images

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.generated is not None and points.data is not None
        clean_logits, generated_logits, *separate = forward_sets(
            clf, points.clean, points.generated, *distinct_data(points)
        )
        data_logits = separate[0] if separate else clean_logits
        natural = energies.cross_entropy(clean_logits, points.labels).mean()
        real_energy, generated_energy = compared_energies(points, data_logits, generated_logits)
        contrast = real_energy.mean() - generated_energy.mean()
        penalty = real_energy.square().mean() + generated_energy.square().mean()
        return Step(
            self.options.generative * contrast + natural + self.options.energy_penalty * penalty,
            clean=detached(points.clean, clean_logits),
            generated=detached(points.generated, generated_logits),
            metrics={
                "natural": natural.detach(), "contrastive": contrast.detach(), "energy_penalty": penalty.detach(),
            },
            live={"clean": clean_logits},
        )  # fmt: skip


def data_view(batch: Batch, view: str) -> Tensor:
    """Returns the real images of the contrastive term: ``unaugmented`` ones, as published, or the ``classified`` ones.

    A contrastive term of E(x, y) constrains the energy of one class only. With chains of E(x, y) and a network that
    can distinguish the two views (cropped photographs have black borders), only ``classified`` trains every class.
    """
    return batch.views.get("unaugmented", batch.images) if view == "unaugmented" else batch.images


def distinct_data(points: Points) -> list[Tensor]:
    """Returns ``[points.data]``, or ``[]`` if there is none or it is the clean batch, which needs no second forward."""
    return [] if points.data is None or points.data is points.clean else [points.data]


def compared_energies(points: Points, data_logits: Tensor, generated_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the energies of real and of generated images, ``[N]`` each, of the kind that the chains descend.

    E(x) and E(x^), or for chains with labels E(x, y) and E(x^, y^), where y^ is the label of the chain.
    """
    if points.generated_labels is None:
        return energies.marginal_energy(data_logits), energies.marginal_energy(generated_logits)
    real_energy = energies.joint_energy(data_logits, points.labels)
    return real_energy, energies.joint_energy(generated_logits, points.generated_labels)


def contrastive(points: Points, data_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """Returns the contrastive term, a scalar, in the energy that the chains descend.

    ``mean E(x_data) - mean E(x^)`` is maximum likelihood of p(x). With chains that have labels,
    ``mean E(x_data, y) - mean E(x^, y^)`` is maximum likelihood of p(x, y) and keeps each chain in its class.
    """
    real_energy, generated_energy = compared_energies(points, data_logits, generated_logits)
    return real_energy.mean() - generated_energy.mean()
