"""FGSM from a random start (Wong, Rice and Kolter 2020), and the attack that it shares with N-FGSM and AAER."""

from __future__ import annotations

from typing import ClassVar, Literal

from trilemma import noise
from trilemma.classifier.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.fgsm import SingleStepOptions
from trilemma.methods.inner import attacked, fresh_seeds
from trilemma.methods.pgd_at import adversarial_cross_entropy
from trilemma.walks import objectives


class FgsmRSOptions(SingleStepOptions):
    keeps_start: ClassVar[bool] = True
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 1, "step_share": "5/4"}

    name: Literal["fgsm-rs"] = "fgsm-rs"


class FgsmRS(Method):
    """``L = mean CE(x*, y)``, ``x* = project(x0 + 5/4 eps sign grad CE(x0, y))``, ``x0 = clip(x + U(-eps, eps))``.

    Under an L2 threat the start is uniform in the ball and the step is normalised.
    """

    Options = FgsmRSOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        return single_step_from_noise(self, clf, batch, state, scale=1.0, project=True)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        return adversarial_cross_entropy(clf, points)


def single_step_from_noise(
    method: Method, clf: Classifier, batch: Batch, state: MethodState, *, scale: float, project: bool
) -> Points:
    """Returns points whose x* is the method's step up the cross-entropy from a uniform random start.

    The start is in ``extra["start"]``, ``[N, C, H, W]``.

    Args:
        scale: half-width of the noise, in radii. The noisy image is clipped to [0, 1] before the gradient.
        project: project x* onto the ball, besides clipping it to [0, 1].
    """
    x, y = batch.images, batch.labels
    start = method.threat.random_start(x, noise.derive(fresh_seeds(state, x), 0), scale=scale)
    adversarial = attacked(method, clf, x, start, lambda: objectives.cross_entropy(clf, y), project=project)
    return Points(x, y, extra={"start": start}, **adversarial)
