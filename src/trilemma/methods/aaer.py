"""AAER: a penalty on abnormal adversarial examples, as many and as strong as they are (Lin et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trilemma import energies
from trilemma.classifier import Classifier
from trilemma.contexts import running_statistics_kept
from trilemma.data.batch import Batch
from trilemma.methods import options
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.fgsm_rs import stepped_from_noise
from trilemma.methods.pgd_at import adversarial_cross_entropy


class Aaer(Method):
    """An example is abnormal (AAE) if its step lowered the loss, ``CE(x0) > CE(x*)``, normal (NAE) otherwise::

        L = mean CE(x*) + l1 (n_AAE / n) [ l2 mean_AAE(CE(x0) - CE(x*)) + l3 max(V_AAE - V_NAE, 0) ]

    with ``V = mean ||f(x*) - f(x0)||_2^2`` over the group. x0 is the random start of the base, ``fgsm-rs`` or
    ``n-fgsm``, inside the box. f(x0), the l2 term and V_NAE are constants, so that the term trains through V_AAE alone.
    It is 0 where either group is empty.
    """

    Options = options.Aaer

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        noisy = self.options.base == "n-fgsm"
        return stepped_from_noise(self, clf, batch, state, scale=2.0 if noisy else 1.0, project=not noisy)

    def terms(self, clf: Classifier, points: Points) -> Step:
        step = adversarial_cross_entropy(clf, points)
        with torch.no_grad(), running_statistics_kept(clf):
            start = clf.logits(points.extra["start"])
        penalty, share = self._penalty(start, step.live["adversarial"], points.labels)
        return replace(
            step,
            loss=step.loss + penalty,
            metrics={"robust": step.loss.detach(), "penalty": penalty.detach(), "abnormal": share},
        )

    def _penalty(self, start: Tensor, starred: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The term, and the share of abnormal examples; no branch, so that the device need not be waited for."""
        option = self.options
        assert option.weight is not None and option.gap is not None and option.spread is not None
        fall = energies.cross_entropy(start, labels) - energies.cross_entropy(starred.detach(), labels)
        abnormal = energies.abnormal(start, starred.detach(), labels)
        share = abnormal.to(fall).mean()
        moved = (starred - start).square().sum(1)
        excess = _mean_of(moved, abnormal) - _mean_of(moved.detach(), ~abnormal)
        penalty = share * (option.gap * _mean_of(fall, abnormal) + option.spread * excess.clamp_min(0))
        return option.weight * penalty * (abnormal.any() & ~abnormal.all()), share


def _mean_of(values: Tensor, group: Tensor) -> Tensor:
    """The mean over a group; 0 if it is empty."""
    return (values * group).sum() / group.sum().clamp_min(1)
