"""EB-JDAT: one energy model of clean images, adversarial images and labels (arXiv 2505.19459)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
)
from torch import Tensor
from torch.nn.functional import cosine_similarity

from trilemma import energies, noise
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.config.sections import AttackConfig, SamplerConfig, filled_sampler
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.generative import LANGEVIN, PROXIMAL, DataView, contrastive, data_view, distinct_data
from trilemma.methods.inner import attacked, chain, fresh_seeds
from trilemma.walks import objectives
from trilemma.walks.objectives import subset
from trilemma.walks.walk import Objective

Backbone = Annotated[Literal["jem", "jem++", "sada-jem"], Field(description="whose sampler and data view")]


Inner = Annotated[
    Literal["energy", "ce", "logit"],
    Field(
        description="what the inner attack raises: E(x,y), the cross-entropy, or (as released) the true logit"
    ),
]


Alignment = Annotated[
    Literal["close", "widen", "widen-data", "der"],
    Field(
        description="close: E(x*)-E(x); widen: its negative; widen-data: E(x_data)-E(x*), as released; "
        "der: the delta energy penalty"
    ),
]


StartScale = Annotated[PositiveFloat, Field(description="half-width of the uniform start of x*, in radii")]


DataNoise = Annotated[
    NonNegativeFloat,
    Field(
        description="Gaussian noise on the un-augmented images of the generative term, pixel units "
        "(backbone sada-jem)"
    ),
]


Project = Annotated[bool, Field(description="keep the inner attack in the ball")]


Generative = Annotated[NonNegativeFloat, Field(description="w1, weight of the contrastive term")]


Align = Annotated[NonNegativeFloat, Field(description="w2, weight of the alignment term")]


Clean = Annotated[NonNegativeFloat, Field(description="a, weight of the clean cross-entropy")]


Adversarial = Annotated[NonNegativeFloat, Field(description="b, weight of the adversarial cross-entropy")]


class JointModelOptions(MethodOptions):
    """Our form, the released one, and the paper's, whose game is inner 'energy' with alignment 'close'."""

    image_sets: ClassVar[int] = 4
    uses_attack: ClassVar[bool] = True
    uses_sampler: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 5}

    data_view: DataView = "unaugmented"
    backbone: Backbone = "sada-jem"
    inner: Inner = "ce"
    alignment: Alignment = "der"
    margin: NonNegativeFloat = Field(0.0, description="margin of alignment 'der'")
    start_scale: StartScale = 1.0
    project: Project = True
    data_noise: DataNoise = 0.0
    generative: Generative = 1.0
    align: Align = 1.0
    clean: Clean = 1.0
    adversarial: Adversarial = 1.0

    @property
    def loss_sets(self) -> int:
        own_data = self.backbone == "sada-jem" and self.data_view == "unaugmented"
        return self.image_sets - (not own_data)

    def resolved_sampler(self, sampler: SamplerConfig) -> SamplerConfig:
        """The backbone's sampler, ten steps, where ``sampler`` is silent."""
        defaults = {**LANGEVIN, "steps": 10} if self.backbone == "jem" else PROXIMAL
        return filled_sampler(defaults, sampler)

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """Settings that are reported, or were seen, to go wrong."""
        found = []
        if self.inner == "ce" and self.alignment == "close":
            found.append(
                "method: inner 'ce' does not raise E(x*), so alignment 'close' has no floor; "
                "use inner 'energy' or alignment 'der'"
            )
        if self.align == 0:
            found.append("method.align: without the alignment term training is reported to collapse")
        if (attack.steps or 0) > 10:
            found.append("attack.steps: more than about 10 inner steps are reported to collapse training")
        return found


class EbJdatOptions(JointModelOptions):
    name: Literal["eb-jdat"] = "eb-jdat"


class EbJdat(Method):
    """``p(x, x*, y) = p(y | x*, x) p(x* | x) p(x)``, one term each::

        L = w1 (mean E(x_data) - mean E(x^))          generative: p(x)
          + w2 alignment(x, x*)                       p(x* | x)
          + a mean CE(x, y) + b mean CE(x*, y)        p(y | x*, x)

    By default the inner attack raises the cross-entropy and the alignment is the two-sided delta energy penalty. The
    paper's game ``min_theta max_x* E(x*) - E(x)``, whose inner step raises the joint energy E(x*, y) by signs,
    without noise, is ``inner="energy", alignment="close"``; our study of the two is in docs/studies.md.
    """

    Options: ClassVar[type[JointModelOptions]] = EbJdatOptions
    views = ("unaugmented",)

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        seeds = fresh_seeds(state, x)
        start = self.threat.random_start(x, noise.derive(seeds, 0), scale=self.options.start_scale)
        project = self.options.project
        starred = attacked(self, clf, x, start, lambda: self._objective(clf, x, y), project=project)
        chains = chain(clf, state, self.sampler, len(x), clip=self.options.backbone != "jem")
        data = self._real_images(batch, noise.derive(seeds, 1))
        return Points(x, y, data=data, **starred, **chains)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        option = self.options
        assert points.adversarial is not None and points.generated is not None
        clean, starred, generated, *data = forward_sets(
            clf, points.clean, points.adversarial, points.generated, *distinct_data(points)
        )
        real = data[0] if data else clean
        generative = contrastive(points, real, generated)
        alignment = self._alignment(clean, starred, real, points.labels)
        natural = energies.cross_entropy(clean, points.labels).mean()
        robust = energies.cross_entropy(starred, points.labels).mean()
        loss = (
            option.generative * generative
            + option.align * alignment
            + option.clean * natural
            + option.adversarial * robust
        )
        named = {"contrastive": generative, "alignment": alignment, "natural": natural, "robust": robust}
        return Step(
            loss,
            clean=detached(points.clean, clean),
            adversarial=detached(points.adversarial, starred),
            generated=detached(points.generated, generated),
            metrics={name: value.detach() for name, value in named.items()},
            live={"clean": clean, "adversarial": starred},
        )

    def _real_images(self, batch: Batch, seeds: Tensor) -> Tensor:
        """x_data, as the backbone takes them: the classified images, or for SADA-JEM a view of their own."""
        option = self.options
        if option.backbone != "sada-jem" or option.data_view == "classified":
            return batch.images
        images = data_view(batch, option.data_view)
        if not option.data_noise:
            return images
        scale: float = option.data_noise
        return images + scale * noise.normal(seeds, 0, images.shape[1:]).to(images)

    def _alignment(self, clean: Tensor, starred: Tensor, data: Tensor, labels: Tensor) -> Tensor:
        """How far the energies of clean and adversarial images are apart."""
        kind = self.options.alignment
        if kind == "der":
            return energies.delta_energy_penalty(clean, starred, labels, self.options.margin).mean()
        real = energies.marginal_energy(data if kind == "widen-data" else clean)
        gap = (energies.marginal_energy(starred) - real).mean()
        return gap if kind == "close" else -gap

    def _objective(self, clf: Classifier, x: Tensor, y: Tensor) -> Objective:
        """What the inner attack climbs."""
        if self.options.inner == "energy":
            return objectives.joint_energy(clf, y)
        if self.options.inner == "ce":
            return objectives.cross_entropy(clf, y)
        with torch.no_grad():
            clean = clf.logits(x)

        def logit_and_angle(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            # as released: raises the true logit, so it is no attack; kept for comparison
            logits = clf.logits(images)
            angle = 1 - cosine_similarity(subset(clean, index), logits, dim=1)
            return -energies.joint_energy(logits, subset(y, index)) + 2 * angle, logits

        return logit_and_angle
