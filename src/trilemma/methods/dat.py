"""DAT: dual adversarial training of a robust classifier and of its energy, each against its own attack."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from trilemma import energies, noise, shares
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import batch_norm_frozen
from trilemma.config.config import MethodOptions
from trilemma.config.sections import AttackConfig, SamplerConfig
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.data.outlier_images import OutsideImages
from trilemma.methods.base import Method, MethodState, Points, Step, detached, forward_sets
from trilemma.methods.inner import attacked, descend_energy, fresh_seeds
from trilemma.walks import objectives

# The mean AUC over this many batches decides whether the walks get longer: about 1,000 images at batch size 128.
WINDOW = 8


class DatOptions(MethodOptions):
    # The real images of the energy term are another view of the clean ones.
    forwards_clean: ClassVar[bool] = False
    image_sets: ClassVar[int] = 3
    uses_attack: ClassVar[bool] = True
    uses_sampler: ClassVar[bool] = True
    freezes_batch_norm: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 10, "step_share": "1/5"}
    # Training's own numbers; images are drawn with those of the preset ``dat``.
    sampler_defaults: ClassVar[dict[str, object]] = {
        "name": "normalised", "energy": "joint", "steps": 50, "step_size": 0.1, "mode": "eval",
    }  # fmt: skip

    name: Literal["dat"] = "dat"
    outside: str = Field(
        "phase-scrambled",
        description="start of the walks: `phase-scrambled` or `mixed` training images, or a data set or path with "
        "images outside the training distribution",
    )
    threshold: float = Field(
        0.8,
        ge=0,
        le=1,
        description="mean AUC over 8 batches at which walks get one step longer, up to sampler.steps",
    )

    def warnings(self, attack: AttackConfig, sampler: SamplerConfig) -> list[str]:
        """Warns of starts made from training images, and of sampler keys that have no effect."""
        messages = []
        if self.outside in ("phase-scrambled", "mixed"):
            messages.append(
                f"method.outside: {self.outside} training images replace natural images from outside the training "
                "distribution; for those, give a data set or a path"
            )
        unused = [key for key in ("start", "buffer_size", "reinit") if getattr(sampler, key) is not None]
        if unused:
            messages.append(
                f"sampler.{unused[0]}: has no effect, because walks of dat start at method.outside"
            )
        return messages


class DatState(MethodState):
    """Adds the source of starting images, and the curriculum in ``extra``: ``steps`` (T) and ``window`` (last AUCs).

    The curriculum is kept on the CPU: the next walk needs T as a Python integer, so one scalar has to be copied
    from the device at every step anyway. That scalar is the AUC.
    """

    def __init__(self, seed: int, outside: OutsideImages) -> None:
        super().__init__(seed)
        self.outside = outside
        self.extra = {"steps": torch.tensor(0), "window": torch.empty(0, dtype=torch.float64)}


class Dat(Method):
    """Adversarial cross-entropy plus a binary cross-entropy of real against negative images::

        L = mean CE(x*, y) + 1/2 mean BCE(s(x) -> 1) + 1/2 mean BCE(s(x_neg) -> 0)

    ``s(x) = -E(x)`` is the logit of "x is real". x* is found by PGD from the augmented image, without a random
    start. x is the basic view of the same image (crop and flip only). x_neg starts outside the training
    distribution and takes T steps of fixed length up f[y], the logit of the real image's class; T grows by one when
    the AUC of real against negative images reaches a threshold. BatchNorm keeps the running statistics of the
    initial classifier.
    """

    Options = DatOptions
    views = ("basic",)

    def check(self, data: ImageSet) -> None:
        """Loads the starting images, so that a missing data set is an error before a first stage is trained."""
        OutsideImages(self.options.outside, data, "cpu")

    def init_state(self, clf: Classifier, data: ImageSet, seed: int) -> DatState:
        return DatState(seed, OutsideImages(self.options.outside, data, clf.device))

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        assert isinstance(state, DatState)
        x, y = batch.images, batch.labels
        seeds = fresh_seeds(state, x)
        adversarial = attacked(self, clf, x, x, lambda: objectives.cross_entropy(clf, y))
        steps = int(state.extra["steps"])
        start = state.outside(noise.derive(seeds, 0)).to(x)
        negative = descend_energy(clf, start, y, self.sampler, steps, noise.derive(seeds, 1))
        length = torch.full((), float(steps), device=x.device)
        real = batch.views.get("basic", x)
        return Points(x, y, data=real, extra={"steps": length}, **adversarial, **negative)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        assert points.adversarial is not None and points.generated is not None and points.data is not None
        y = points.labels
        with self.loss_context(clf):
            adversarial_logits, real_logits, negative_logits = forward_sets(
                clf, None, points.adversarial, points.data, points.generated
            )
        robust = energies.cross_entropy(adversarial_logits, y).mean()
        # BCE with logit s: softplus(-s) for target 1, softplus(s) for target 0.
        real_loss = softplus(energies.marginal_energy(real_logits)).mean()
        outside_loss = softplus(-energies.marginal_energy(negative_logits)).mean()
        # Of the whole batch, so that walks have the same length in all processes.
        share = shares.current()
        scores = (share.whole(-energies.joint_energy(z.detach(), y)) for z in (real_logits, negative_logits))
        return Step(
            robust + 0.5 * real_loss + 0.5 * outside_loss,
            adversarial=detached(points.adversarial, adversarial_logits),
            generated=detached(points.generated, negative_logits),
            metrics={
                "robust": robust.detach(),
                "real": real_loss.detach(),
                "outside": outside_loss.detach(),
                "auc": area_under_curve(*scores),
                "steps": points.extra["steps"],
            },
            live={"adversarial": adversarial_logits},
        )

    def loss_context(self, clf: Classifier) -> AbstractContextManager[None]:
        return batch_norm_frozen(clf)

    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:
        """Makes walks one step longer if the mean AUC of the last 8 batches has reached the threshold."""
        auc = float(step.metrics["auc"])
        window = [*state.extra["window"].tolist(), auc][-WINDOW:]
        if len(window) == WINDOW and sum(window) / WINDOW >= self.options.threshold:
            state.extra["steps"] = (state.extra["steps"] + 1).clamp_max(self.sampler.steps or 0)
            window = []
        state.extra["window"] = torch.tensor(window, dtype=torch.float64)


def area_under_curve(positive: Tensor, negative: Tensor) -> Tensor:
    """Returns the area under the ROC curve, a scalar on the device.

    It is the share of pairs in which the positive score is higher; ties count half.

    Args:
        positive, negative: scores ``[N]`` and ``[M]``.
    """
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive.contiguous()).sum()
    at_most = torch.searchsorted(ordered, positive.contiguous(), right=True).sum()
    return (below + at_most) / (2 * len(positive) * len(negative))
