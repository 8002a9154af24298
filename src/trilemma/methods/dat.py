"""Dual adversarial training: a robust classifier and its energy, each against its own adversary (DAT)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar, Literal

import torch
from pydantic import (
    Field,
)
from torch import Tensor
from torch.nn.functional import softplus

from trilemma import energies, noise
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import batch_norm_frozen
from trilemma.config.config import MethodOptions
from trilemma.config.sections import AttackConfig, SamplerConfig
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.data.outlier_images import OutsideImages
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.inner import attacked, descended, fresh_seeds
from trilemma.walks import objectives

# Batches whose mean AUC decides whether the walks grow: about 1,000 images of a batch of 128.
WINDOW = 8


class DatOptions(MethodOptions):
    forwards_clean: ClassVar[bool] = False  # the real images of its energy term are another view
    image_sets: ClassVar[int] = 3
    uses_attack: ClassVar[bool] = True
    uses_sampler: ClassVar[bool] = True
    freezes_batch_norm: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10, "step_share": "1/5"}
    sampler_defaults: ClassVar[dict[str, object]] = {
        "name": "normalised", "energy": "joint", "steps": 50, "step_size": 0.1, "mode": "eval",
    }  # fmt: skip

    name: Literal["dat"] = "dat"
    outside: str = Field(
        "phase-scrambled",
        description="where walks begin: `phase-scrambled` or `mixed` training images, or a data set or path with "
        "images of other things",
    )
    threshold: float = Field(
        0.8,
        ge=0,
        le=1,
        description="mean AUC over 8 batches at which walks grow by a step, to sampler.steps at most",
    )

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """Stand-ins, and keys of a chain that these walks have no use for."""
        found = []
        if self.outside in ("phase-scrambled", "mixed"):
            found.append(
                f"method.outside: {self.outside} training images stand in for natural images from elsewhere; a data "
                "set or a path gives those"
            )
        unused = [key for key in ("start", "buffer_size", "reinit") if getattr(sampler, key) is not None]
        if unused:
            found.append(f"sampler.{unused[0]}: walks of dat begin at method.outside, so it changes nothing")
        return found


class DatState(MethodState):
    """Adds where walks begin, and the curriculum: ``steps`` (T) and ``window`` (its last AUCs) in ``extra``.

    The curriculum lives on the host: the next walk needs T as a number of Python, so one scalar has to be read
    per step wherever it is counted, and the AUC is that scalar.
    """

    def __init__(self, seed: int, outside: OutsideImages) -> None:
        super().__init__(seed)
        self.outside = outside
        self.extra = {"steps": torch.tensor(0), "window": torch.empty(0, dtype=torch.float64)}


class Dat(Method):
    """With ``s(x) = -E(x)`` the logit of "x is real"::

        L = mean CE(x*, y) + 1/2 mean BCE(s(x) -> 1) + 1/2 mean BCE(s(x_neg) -> 0)

    x* is PGD from the image of the classifying branch, without a random start. x is the basic view of the same
    image (crop and flip alone). x_neg begins outside the training distribution and takes T steps of fixed length
    up f[y], the logit of the real image's class; T grows as the two become easy to tell apart. BatchNorm keeps
    the statistics of the classifier that training begins with.
    """

    Options = DatOptions
    views = ("basic",)

    def check(self, data: ImageSet) -> None:
        """Refuses outside images that cannot be had: a first stage must not be trained for nothing."""
        OutsideImages(self.options.outside, data, "cpu")

    def init_state(self, clf: Classifier, data: ImageSet, seed: int) -> DatState:
        return DatState(seed, OutsideImages(self.options.outside, data, clf.device))

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        assert isinstance(state, DatState)
        x, y = batch.images, batch.labels
        seeds = fresh_seeds(state, x)
        starred = attacked(self, clf, x, x, lambda: objectives.cross_entropy(clf, y))
        steps = int(state.extra["steps"])
        start = state.outside(noise.derive(seeds, 0)).to(x)
        negative = descended(clf, start, y, self.sampler, steps, noise.derive(seeds, 1))
        length = torch.full((), float(steps), device=x.device)
        real = batch.views.get("basic", x)
        return Points(x, y, data=real, extra={"steps": length}, **starred, **negative)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.adversarial is not None and points.generated is not None and points.data is not None
        y = points.labels
        with self.loss_context(clf):
            starred, real, negative = forward_sets(
                clf, None, points.adversarial, points.data, points.generated
            )
        robust = energies.cross_entropy(starred, y).mean()
        # BCE with logit s: softplus(-s) towards 1, softplus(s) towards 0
        to_real = softplus(energies.marginal_energy(real)).mean()
        to_outside = softplus(-energies.marginal_energy(negative)).mean()
        scores = (-energies.joint_energy(logits.detach(), y) for logits in (real, negative))
        return Step(
            robust + 0.5 * to_real + 0.5 * to_outside,
            adversarial=detached(points.adversarial, starred),
            generated=detached(points.generated, negative),
            metrics={
                "robust": robust.detach(),
                "real": to_real.detach(),
                "outside": to_outside.detach(),
                "auc": area_under_curve(*scores),
                "steps": points.extra["steps"],
            },
            live={"adversarial": starred},
        )

    def loss_context(self, clf: Classifier) -> AbstractContextManager[None]:
        return batch_norm_frozen(clf)

    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:
        """The curriculum: a mean AUC of the last batches at the threshold makes walks one step longer."""
        auc = float(_mean_over_processes(step.metrics["auc"]))
        window = [*state.extra["window"].tolist(), auc][-WINDOW:]
        if len(window) == WINDOW and sum(window) / WINDOW >= self.options.threshold:
            state.extra["steps"] = (state.extra["steps"] + 1).clamp_max(self.sampler.steps or 0)
            window = []
        state.extra["window"] = torch.tensor(window, dtype=torch.float64)


def area_under_curve(positive: Tensor, negative: Tensor) -> Tensor:
    """The share of pairs whose positive score is the higher one, a tie counting half: a scalar on the device.

    Args:
        positive, negative: scores ``[N]`` and ``[M]``.
    """
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive.contiguous()).sum()
    at_most = torch.searchsorted(ordered, positive.contiguous(), right=True).sum()
    return (below + at_most) / (2 * len(positive) * len(negative))


def _mean_over_processes(value: Tensor) -> Tensor:
    """Every process must walk equally far; the AUC of each one's share of the batch estimates that of the whole."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
