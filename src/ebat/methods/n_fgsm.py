"""N-FGSM: strong noise, one full step, no projection to the ball (de Jorge et al. 2022)."""

from __future__ import annotations

from ebat import noise
from ebat.attacks import objectives
from ebat.classifier import Classifier
from ebat.data.batch import Batch
from ebat.methods import options
from ebat.methods.base import Method, MethodState, Points, Step
from ebat.methods.inner import attacked, fresh_seeds
from ebat.methods.pgd_at import adversarial_cross_entropy


class NFgsm(Method):
    """``L = mean CE(x*, y)``, ``x* = clip(x' + eps sign grad CE(x'))``, ``x' = clip(x + U(-2 eps, 2 eps))``.

    Under an L2 threat the noise is uniform in the ball of twice the radius and the step is normalised.
    """

    Options = options.NFgsm

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        x, y = batch.images, batch.labels
        seeds = noise.derive(fresh_seeds(state, x), 0)
        noisy = self.threat.random_start(x, seeds, scale=self.options.noise)
        starred = attacked(self, clf, x, noisy, lambda: objectives.cross_entropy(clf, y), project=False)
        return Points(x, y, **starred)

    def terms(self, clf: Classifier, points: Points) -> Step:
        return adversarial_cross_entropy(clf, points)
