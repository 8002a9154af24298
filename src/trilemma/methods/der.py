"""DER: the Delta Energy Regulariser, added to any adversarial method (arXiv 2505.22486)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

from trilemma import energies
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import running_statistics_kept
from trilemma.config.sections import RegulariserConfig
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.methods.base import Method, MethodState, Points, Step, detached


class Regularised(Method):
    """A base method plus the DER penalty::

        multi-step:   L = L_base + beta mean(L_dE)
        single-step:  L = L_base + beta mean(1_AAE L_dE)

    ``L_dE = max(||[dE(x), dE(x, y)]||_2 - margin, 0)``, with gradients through the logits of both x and x*. The mean
    is over the whole batch in both forms; ``1_AAE`` selects abnormal adversarial examples. With ``reference: start``,
    the random start of the single attack step, clipped to [0, 1], replaces x. If the base method has no forward pass
    of the reference images, one is added, which does not update BatchNorm's running statistics.
    """

    def __init__(self, base: Method, der: RegulariserConfig) -> None:
        super().__init__(base.options, base._threat, base.attack, base.sampler)
        self.base = base
        self.der = der
        self.views = base.views
        single = self.base.options.single_step is True
        self.abnormal_only = single if der.form == "auto" else der.form == "single-step"

    def check(self, data: ImageSet) -> None:
        self.base.check(data)

    def init_state(self, clf: Classifier, data: ImageSet, seed: int) -> MethodState:
        return self.base.init_state(clf, data, seed)

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        return self.base.points(clf, batch, state)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        step = self.base.terms(clf, points, state)
        adversarial_logits, at_clean = step.live["adversarial"], self.der.reference == "clean"
        reference_logits = step.live.get("clean") if at_clean else None
        if reference_logits is None:
            with self.loss_context(clf), running_statistics_kept(clf):
                reference_logits = clf.logits(points.clean if at_clean else points.extra["start"])
        penalty = energies.delta_energy_penalty(
            reference_logits, adversarial_logits, points.labels, self.der.margin
        )
        if self.abnormal_only:
            penalty = penalty * energies.abnormal(reference_logits, adversarial_logits, points.labels)
        penalty = penalty.mean()
        return replace(
            step,
            loss=step.loss + self.der.beta * penalty,
            clean=detached(points.clean, reference_logits) if at_clean else step.clean,
            metrics={**step.metrics, "der": penalty.detach()},
        )

    def loss_context(self, clf: Classifier) -> AbstractContextManager[None]:
        return self.base.loss_context(clf)

    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:
        self.base.after_backward(points, state, step)
