"""N-FGSM: a large random start, one full step, no projection onto the ball (de Jorge et al. 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from trilemma.classifier.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.methods.base import Method, MethodState, Points, Step
from trilemma.methods.fgsm import SingleStepOptions
from trilemma.methods.fgsm_rs import single_step_from_noise
from trilemma.methods.pgd_at import adversarial_cross_entropy


class NFgsmOptions(SingleStepOptions):
    keeps_start: ClassVar[bool] = True

    name: Literal["n-fgsm"] = "n-fgsm"
    noise: PositiveFloat = Field(2.0, description="half-width of the uniform noise, in radii")


class NFgsm(Method):
    """``L = mean CE(x*, y)``, ``x* = clip(x' + eps sign grad CE(x'))``, ``x' = clip(x + U(-2 eps, 2 eps))``.

    Under an L2 threat the noise is uniform in the ball of twice the radius and the step is normalised.
    """

    Options = NFgsmOptions

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        return single_step_from_noise(self, clf, batch, state, scale=self.options.noise, project=False)

    def terms(self, clf: Classifier, points: Points, state: MethodState) -> Step:
        return adversarial_cross_entropy(clf, points)
