"""EB-JDAT: one energy model of clean images, adversarial images and labels (arXiv 2505.19459)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from trilemma import energies, noise
from trilemma.attacks import objectives
from trilemma.attacks.objectives import rows
from trilemma.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.methods import options
from trilemma.methods.base import Method, MethodState, Points, Step, forward_sets, seen
from trilemma.methods.generative import contrastive, data_view, distinct_data
from trilemma.methods.inner import attacked, chain, fresh_seeds
from trilemma.walk import Objective


class EbJdat(Method):
    """``p(x, x*, y) = p(y | x*, x) p(x* | x) p(x)``, one term each::

        L = w1 (mean E(x_data) - mean E(x^))          generative: p(x)
          + w2 alignment(x, x*)                       p(x* | x)
          + a mean CE(x, y) + b mean CE(x*, y)        p(y | x*, x)

    By default the inner attack raises the cross-entropy and the alignment is the two-sided delta energy penalty. The
    paper's game ``min_theta max_x* E(x*) - E(x)``, whose inner step raises the joint energy E(x*, y) by signs,
    without noise, is ``inner="energy", alignment="close"``; our study of the two is in docs/studies.md.
    """

    Options: ClassVar[type[options.JointModel]] = options.EbJdat
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

    def terms(self, clf: Classifier, points: Points) -> Step:
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
            clean=seen(points.clean, clean),
            adversarial=seen(points.adversarial, starred),
            generated=seen(points.generated, generated),
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
            angle = 1 - cosine_similarity(rows(clean, index), logits, dim=1)
            return -energies.joint_energy(logits, rows(y, index)) + 2 * angle, logits

        return logit_and_angle
