"""EB-JDAT: one energy model of clean images, adversarial images and labels (arXiv 2505.19459)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ebat import energies, noise
from ebat.attacks import objectives
from ebat.attacks.objectives import rows
from ebat.classifier import Classifier
from ebat.data.batch import Batch
from ebat.methods import options
from ebat.methods.base import Method, MethodState, Points, Step, forward_sets, seen
from ebat.methods.inner import attacked, chain, fresh_seeds
from ebat.methods.sada_jem import contrastive, data_view, distinct_data
from ebat.walk import Objective


class EbJdat(Method):
    """``p(x, x*, y) = p(y | x*, x) p(x* | x) p(x)``, one term each::

        L = w1 (mean E(x_data) - mean E(x^))          generative: p(x)
          + w2 alignment(x, x*)                       p(x* | x)
          + a mean CE(x, y) + b mean CE(x*, y)        p(y | x*, x)

    The inner step raises the joint energy E(x*, y) by signs, without noise: the paper's game
    ``min_theta max_x* E(x*) - E(x)``. The options ``inner`` and ``alignment`` hold the variants.
    """

    Options = options.EbJdat
    views = ("unaugmented",)

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        start = self.threat.random_start(x, noise.derive(fresh_seeds(state, x), 0))
        project = self.options.project
        starred = attacked(self, clf, x, start, lambda: self._objective(clf, x, y), project=project)
        chains = chain(clf, state, self.sampler, len(x), clip=self.options.backbone != "jem")
        data = data_view(batch, self.options.data_view) if self.options.backbone == "sada-jem" else x
        return Points(x, y, data=data, **starred, **chains)

    def terms(self, clf: Classifier, points: Points) -> Step:
        option = self.options
        assert points.adversarial is not None and points.generated is not None
        clean, starred, generated, *data = forward_sets(
            clf, points.clean, points.adversarial, points.generated, *distinct_data(points)
        )
        generative = contrastive(points, data[0] if data else clean, generated)
        alignment = self._alignment(clean, starred, points.labels)
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
            clean=seen(points.clean, clean),
            adversarial=seen(points.adversarial, starred),
            generated=seen(points.generated, generated),
            metrics={name: value.detach() for name, value in named.items()},
            live={"clean": clean, "adversarial": starred},
        )

    def _alignment(self, clean: Tensor, starred: Tensor, labels: Tensor) -> Tensor:
        """How far the energies of the pair are apart."""
        if self.options.alignment == "der":
            return energies.delta_energy_penalty(clean, starred, labels, self.options.margin).mean()
        gap = (energies.marginal_energy(starred) - energies.marginal_energy(clean)).mean()
        return gap if self.options.alignment == "close" else -gap

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
            angle = 1 - cosine_similarity(rows(clean, index), logits, dim=1)
            return -energies.joint_energy(logits, rows(y, index)) + 2 * angle, logits

        return logit_and_angle
