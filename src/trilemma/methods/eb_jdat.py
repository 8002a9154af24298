"""EB-JDAT: a joint energy model of clean images, adversarial images and labels (arXiv 2505.19459)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import cosine_similarity

from trilemma import energies, noise
from trilemma.classifier.classifier import Classifier
from trilemma.config.config import MethodOptions
from trilemma.config.sections import AttackConfig, SamplerConfig, filled_sampler
from trilemma.data.batch import Batch
from trilemma.methods.base import MethodState, Points, Step, detached, forward_sets
from trilemma.methods.generative import (
    LANGEVIN,
    PROXIMAL,
    DataView,
    WarmedUp,
    WarmupSteps,
    contrastive,
    data_view,
    distinct_data,
)
from trilemma.methods.inner import attacked, chain, fresh_seeds
from trilemma.walks import objectives
from trilemma.walks.objectives import subset
from trilemma.walks.walk import Objective

Backbone = Annotated[
    Literal["jem", "jem++", "sada-jem"],
    Field(description="joint energy model that defines the sampler and the data view"),
]


Inner = Annotated[
    Literal["energy", "ce", "logit"],
    Field(
        description="objective that the inner attack maximises: E(x,y), the cross-entropy, or (as released) the true "
        "logit"
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
        description="standard deviation of Gaussian noise on the un-augmented images of the generative term, pixel "
        "units (backbone sada-jem)"
    ),
]


Project = Annotated[bool, Field(description="project x* onto the ball after every step of the inner attack")]


Generative = Annotated[NonNegativeFloat, Field(description="w1, weight of the contrastive term")]


Align = Annotated[NonNegativeFloat, Field(description="w2, weight of the alignment term")]


Clean = Annotated[NonNegativeFloat, Field(description="a, weight of the clean cross-entropy")]


Adversarial = Annotated[NonNegativeFloat, Field(description="b, weight of the adversarial cross-entropy")]


class JointModelOptions(MethodOptions):
    """Options of all forms of EB-JDAT: ours (the defaults), the released one and the paper's.

    The paper's form is ``inner="energy"`` with ``alignment="close"``.
    """

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
    warmup_steps: WarmupSteps = 0
    align: Align = 1.0
    clean: Clean = 1.0
    adversarial: Adversarial = 1.0

    @property
    def loss_sets(self) -> int:
        separate_data = self.backbone == "sada-jem" and self.data_view == "unaugmented"
        return self.image_sets - (not separate_data)

    @property
    def other_forwards(self) -> int:
        # The clean logits, from which the inner attack measures the angle.
        return int(self.inner == "logit")

    def resolved_sampler(self, sampler: SamplerConfig) -> SamplerConfig:
        """Returns ``sampler`` with the backbone's values (ten steps) where a key is not set."""
        defaults = {**LANGEVIN, "steps": 10} if self.backbone == "jem" else PROXIMAL
        return filled_sampler(defaults, sampler)

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """Warns of settings that are known to fail, from reports or from our own runs."""
        messages = []
        if self.inner == "ce" and self.alignment == "close":
            messages.append(
                "method: inner 'ce' does not raise E(x*), so alignment 'close' has no lower bound; "
                "use inner 'energy' or alignment 'der'"
            )
        if self.align == 0:
            messages.append("method.align: training without the alignment term is reported to collapse")
        if (attack.steps or 0) > 10:
            messages.append(
                "attack.steps: training with more than about 10 inner steps is reported to collapse"
            )
        return messages


class EbJdatOptions(JointModelOptions):
    name: Literal["eb-jdat"] = "eb-jdat"


class EbJdat(WarmedUp):
    """``p(x, x*, y) = p(y | x*, x) p(x* | x) p(x)``, one term each::

        L = w1 (mean E(x_data) - mean E(x^))          generative: p(x)
          + w2 alignment(x, x*)                       p(x* | x)
          + a mean CE(x, y) + b mean CE(x*, y)        p(y | x*, x)

    By default the inner attack maximises the cross-entropy and the alignment is the two-sided delta energy penalty.
    The paper's min-max problem ``min_theta max_x* E(x*) - E(x)``, whose inner steps ascend the joint energy E(x*, y)
    by the sign of its gradient, without noise, is ``inner="energy", alignment="close"``; docs/studies.md compares
    the two.
    """

    Options: ClassVar[type[JointModelOptions]] = EbJdatOptions
    views = ("unaugmented",)

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        seeds = fresh_seeds(state, x)
        start = self.threat.random_start(x, noise.derive(seeds, 0), scale=self.options.start_scale)
        project = self.options.project
        adversarial = attacked(self, clf, x, start, lambda: self._objective(clf, x, y), project=project)
        chains = chain(clf, state, self.sampler, len(x), clip=self.options.backbone != "jem")
        data = self._real_images(batch, noise.derive(seeds, 1))
        return Points(x, y, data=data, **adversarial, **chains)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        option = self.options
        assert points.adversarial is not None and points.generated is not None
        clean_logits, adversarial_logits, generated_logits, *separate = forward_sets(
            clf, points.clean, points.adversarial, points.generated, *distinct_data(points)
        )
        data_logits = separate[0] if separate else clean_logits
        generative = contrastive(points, data_logits, generated_logits)
        alignment = self._alignment(clean_logits, adversarial_logits, data_logits, points.labels)
        natural = energies.cross_entropy(clean_logits, points.labels).mean()
        robust = energies.cross_entropy(adversarial_logits, points.labels).mean()
        loss = (
            self.weight(state) * generative
            + option.align * alignment
            + option.clean * natural
            + option.adversarial * robust
        )
        named = {"contrastive": generative, "alignment": alignment, "natural": natural, "robust": robust}
        return Step(
            loss,
            clean=detached(points.clean, clean_logits),
            adversarial=detached(points.adversarial, adversarial_logits),
            generated=detached(points.generated, generated_logits),
            metrics={name: value.detach() for name, value in named.items()},
            live={"clean": clean_logits, "adversarial": adversarial_logits},
        )

    def _real_images(self, batch: Batch, seeds: Tensor) -> Tensor:
        """Returns x_data: the classified images, or for backbone ``sada-jem`` a separate view, with noise if set."""
        option = self.options
        if option.backbone != "sada-jem" or option.data_view == "classified":
            return batch.images
        images = data_view(batch, option.data_view)
        if not option.data_noise:
            return images
        scale: float = option.data_noise
        return images + scale * noise.normal(seeds, 0, images.shape[1:]).to(images)

    def _alignment(
        self, clean_logits: Tensor, adversarial_logits: Tensor, data_logits: Tensor, labels: Tensor
    ) -> Tensor:
        """Returns the alignment term, a scalar: the energy gap between real and adversarial images."""
        kind = self.options.alignment
        if kind == "der":
            margin = self.options.margin
            return energies.delta_energy_penalty(clean_logits, adversarial_logits, labels, margin).mean()
        real_energy = energies.marginal_energy(data_logits if kind == "widen-data" else clean_logits)
        gap = (energies.marginal_energy(adversarial_logits) - real_energy).mean()
        return gap if kind == "close" else -gap

    def _objective(self, clf: Classifier, x: Tensor, y: Tensor) -> Objective:
        """Returns the objective that the inner attack maximises."""
        if self.options.inner == "energy":
            return objectives.joint_energy(clf, y)
        if self.options.inner == "ce":
            return objectives.cross_entropy(clf, y)
        with torch.no_grad():
            clean_logits = clf.logits(x)

        # As released. It maximises the true logit, so it is not an attack; it is here for comparison.
        def logit_and_angle(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            logits = clf.logits(images)
            angle = 1 - cosine_similarity(subset(clean_logits, index), logits, dim=1)
            return -energies.joint_energy(logits, subset(y, index)) + 2 * angle, logits

        return logit_and_angle
