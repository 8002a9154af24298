"""What the joint energy models share: one equation, its contrastive term, and the real images of that term."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
)
from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.inner import chain

# JEM's Langevin chain: step 1 and noise 0.01 on [-1, 1].
LANGEVIN = {
    "name": "langevin", "energy": "marginal", "steps": 20, "step_size": 0.25, "noise_std": 0.005,
    "start": "uniform", "buffer_size": 10_000, "reinit": 0.05, "mode": "eval",
}  # fmt: skip


# The step of the JEM++ family on [0, 1] images: step 1 and clamp 1 on [-1, 1] (pixels: s / 4 and 2 c).
PROXIMAL = {
    "name": "proximal", "energy": "marginal", "steps": 10, "step_size": 0.25, "clamp": 2.0, "noise_std": 0.0,
    "start": "class-gaussian", "buffer_size": 10_000, "reinit": 0.05, "mode": "train",
}  # fmt: skip


DataView = Annotated[
    Literal["unaugmented", "classified"],
    Field(
        description="real images of the generative term: un-augmented ones, as published, or those that the "
        "cross-entropy sees; with chains of E(x,y), un-cropped images beside cropped ones can leave classes untrained"
    ),
]


class JointEnergyModelOptions(MethodOptions):
    """What the joint energy models of images and labels share."""

    image_sets: ClassVar[int] = 2
    uses_sampler: ClassVar[bool] = True
    sampler_defaults: ClassVar[dict[str, object]] = PROXIMAL

    generative: NonNegativeFloat = Field(1.0, description="weight of the contrastive term")
    energy_penalty: NonNegativeFloat = Field(
        0.0,
        description="weight of mean E^2 of real and generated images; 0.1 is its users' remedy for divergence",
    )


class JointEnergyModel(Method):
    """``p(x, y) = p(y | x) p(x)``, read from the logits of one classifier::

        L = w (mean E(x_data) - mean E(x^))                 maximum likelihood of p(x)
          + mean CE(x, y)                                   and of p(y | x)
          + energy_penalty (mean E(x_data)^2 + mean E(x^)^2)

    The penalty, 0 unless asked for, keeps both energies near 0, which the contrastive term does not: it
    fixes only their difference.

    A subclass says where the chains live and which real images the first term sees.

    Class attributes:
        clips_chains: whether x^ is kept in [0, 1] while training.
    """

    clips_chains: ClassVar[bool] = True

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        chains = chain(clf, state, self.sampler, len(batch.images), clip=self.clips_chains)
        return Points(batch.images, batch.labels, data=self.real_images(batch), **chains)

    def real_images(self, batch: Batch) -> Tensor:
        """x_data: the images that are classified, so that one forward serves both terms."""
        return batch.images

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.generated is not None and points.data is not None
        clean, generated, *data = forward_sets(clf, points.clean, points.generated, *distinct_data(points))
        natural = energies.cross_entropy(clean, points.labels).mean()
        real, drawn = compared_energies(points, data[0] if data else clean, generated)
        contrast = real.mean() - drawn.mean()
        penalty = real.square().mean() + drawn.square().mean()
        return Step(
            self.options.generative * contrast + natural + self.options.energy_penalty * penalty,
            clean=detached(points.clean, clean),
            generated=detached(points.generated, generated),
            metrics={
                "natural": natural.detach(), "contrastive": contrast.detach(), "energy_penalty": penalty.detach(),
            },
            live={"clean": clean},
        )  # fmt: skip


def data_view(batch: Batch, view: str) -> Tensor:
    """The real images of the contrastive term: ``unaugmented`` ones, as published, or the ``classified`` ones.

    E(x, y) of one class alone says nothing of the others: with chains of E(x, y) and a network that can tell
    the two views apart (cropped photographs have black borders), only ``classified`` trains every class.
    """
    return batch.views.get("unaugmented", batch.images) if view == "unaugmented" else batch.images


def distinct_data(points: Points) -> list[Tensor]:
    """The data view, unless it is the clean batch itself: then one forward serves both terms."""
    return [] if points.data is None or points.data is points.clean else [points.data]


def compared_energies(points: Points, data_logits: Tensor, generated_logits: Tensor) -> tuple[Tensor, Tensor]:
    """The energies of real and generated images ``[N]`` each, of the kind that the chains descend.

    E(x), or for chains of given classes E(x, y) of the real label and E(x^, y^) of the chain's.
    """
    if points.generated_labels is None:
        return energies.marginal_energy(data_logits), energies.marginal_energy(generated_logits)
    real = energies.joint_energy(data_logits, points.labels)
    return real, energies.joint_energy(generated_logits, points.generated_labels)


def contrastive(points: Points, data_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """The contrastive term, in the energy that the chains descend.

    ``mean E(x_data) - mean E(x^)`` is maximum likelihood of p(x); with chains of given classes,
    ``mean E(x_data, y) - mean E(x^, y^)`` is that of p(x, y), and keeps a chain in its class.
    """
    real, generated = compared_energies(points, data_logits, generated_logits)
    return real.mean() - generated.mean()
