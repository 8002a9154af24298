"""DER: the Delta Energy Regulariser, added to any adversarial method (arXiv 2505.22486)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

from torch import Tensor

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import batch_norm_frozen, running_statistics_kept
from trilemma.config.sections import RegulariserConfig
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.methods.base import Method, MethodState, Points, Step, detached


class Regularised(Method):
    """A base method plus the DER penalty::

        multi-step:   L = L_base + beta mean(L_dE)
        single-step:  L = L_base + beta sum(1_AAE L_dE) / sum(1_AAE)

    ``L_dE = max(||[dE(x), dE(x, y)]||_2 - margin, 0)``. ``1_AAE`` selects abnormal adversarial examples: those whose
    cross-entropy fell under the attack, or, with ``abnormal_by: joint-energy``, whose joint energy fell. The
    single-step form averages over the abnormal examples, so that the weight of one does not depend on how many there
    are; with ``average: batch``, over the whole batch, as published: beta mean(1_AAE L_dE). The gradient flows through
    the logits of both x and x*, or with ``gradient: adversarial`` of x* alone. With ``reference: start``, the random
    start of the single attack step, clipped to [0, 1], replaces x.

    If the base method has no forward pass of the reference images, one is added, which does not update BatchNorm's
    running statistics. With ``mode: eval``, x and x* have forward passes of their own that normalise by these.
    """

    def __init__(self, base: Method, der: RegulariserConfig) -> None:
        super().__init__(base.options, base._threat, base.attack, base.sampler)
        self.base = base
        self.der = der.resolved(base.options.single_step)
        self.views = base.views
        self.abnormal_only = der.abnormal_only(base.options.single_step)

    def check(self, data: ImageSet) -> None:
        self.base.check(data)

    def init_state(self, clf: Classifier, data: ImageSet, seed: int) -> MethodState:
        return self.base.init_state(clf, data, seed)

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        return self.base.points(clf, batch, state)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        step = self.base.terms(clf, points, state)
        images = points.clean if self.der.reference == "clean" else points.extra["start"]
        reference, adversarial = self._logits(clf, points, step, images)
        if self.der.gradient == "adversarial":
            reference = reference.detach()
        penalty = energies.delta_energy_penalty(reference, adversarial, points.labels, self.der.margin)
        if self.abnormal_only:
            penalty = self._mean_of_abnormal(penalty, reference, adversarial, points.labels)
        else:
            penalty = penalty.mean()
        assert self.der.beta is not None
        # Monitors compare with logits of x* in the mode of the loss.
        seen = self.der.reference == "clean" and self.der.mode == "train"
        return replace(
            step,
            loss=step.loss + self.der.beta * penalty,
            clean=detached(points.clean, reference) if seen else step.clean,
            metrics={**step.metrics, "der": penalty.detach()},
        )

    def _logits(self, clf: Classifier, points: Points, step: Step, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits of the reference ``images`` and of x*; those of the loss where they can be used."""
        if self.der.mode == "eval":
            assert points.adversarial is not None
            with self.loss_context(clf), batch_norm_frozen(clf):
                return clf.logits(images), clf.logits(points.adversarial)
        reference = step.live.get("clean") if self.der.reference == "clean" else None
        if reference is None:
            with self.loss_context(clf), running_statistics_kept(clf):
                reference = clf.logits(images)
        return reference, step.live["adversarial"]

    def _mean_of_abnormal(
        self, penalty: Tensor, reference: Tensor, adversarial: Tensor, labels: Tensor
    ) -> Tensor:
        """Returns the mean of ``1_AAE penalty`` over the batch or over the abnormal examples; 0 if there is none."""
        if self.der.abnormal_by == "joint-energy":
            _, joint = energies.delta_energies(reference, adversarial, labels)
            abnormal = joint > 0
        else:
            abnormal = energies.abnormal(reference, adversarial, labels)
        total = (penalty * abnormal).sum()
        return total / (abnormal.sum().clamp_min(1) if self.der.average == "abnormal" else len(penalty))

    def loss_context(self, clf: Classifier) -> AbstractContextManager[None]:
        return self.base.loss_context(clf)

    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:
        self.base.after_backward(points, state, step)
