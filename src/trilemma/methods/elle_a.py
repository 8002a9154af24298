"""ELLE-A: ELLE whose weight is raised when the linearity error is an outlier (Abad Rocamora et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from trilemma import shares
from trilemma.classifier.classifier import Classifier
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet
from trilemma.methods.base import MethodState, Points, Step
from trilemma.methods.elle import Elle
from trilemma.methods.fgsm import SingleStepOptions

# Keys of ``MethodState.extra``: number, sum and sum of squares of the errors so far, and the last weight.
STATE_KEYS = ("count", "sum", "squares", "weight")


class ElleAOptions(SingleStepOptions):
    leaves_box: ClassVar[bool] = True
    image_sets: ClassVar[int] = 4

    name: Literal["elle-a"] = "elle-a"
    weight: PositiveFloat = Field(
        4000.0, description="weight of the linearity error at a step where it is an outlier"
    )
    decay: float = Field(
        0.99, ge=0, le=1, description="factor that multiplies the weight at every other step"
    )


class ElleA(Elle):
    """ELLE's loss with a ``lam`` that starts at 0 and is updated at every step, before it is used::

        lam = 4000 if error > mean + 2 std of all errors so far, and there are more than two, else 0.99 lam

    The standard deviation is the population one (divided by the number of errors, as in NumPy). The state keeps only
    the number, sum and sum of squares of the errors, in float64.
    """

    Options = ElleAOptions

    def init_state(self, clf: Classifier, data: ImageSet, seed: int) -> MethodState:
        state = super().init_state(clf, data, seed)
        state.extra |= {name: torch.zeros((), dtype=torch.float64, device=clf.device) for name in STATE_KEYS}
        return state

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        """Returns ELLE's points with the outlier limit of this step and the weight of the last step in ``extra``.

        They are in the points because ``terms`` may be called twice per step.
        """
        points = super().points(clf, batch, state)
        count, total, squares, weight = (state.extra[name].to(batch.images.device) for name in STATE_KEYS)
        mean = total / count.clamp_min(1)
        std = (squares / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
        limit = torch.where(count > 2, mean + 2 * std, torch.inf)
        return replace(points, extra={**points.extra, "limit": limit, "weight": weight})

    def weight(self, points: Points, error: Tensor) -> Tensor:
        is_outlier = shares.current().mean(error.double()) > points.extra["limit"]
        return torch.where(is_outlier, self.options.weight, self.options.decay * points.extra["weight"])

    def after_backward(self, points: Points, state: MethodState, step: Step) -> None:
        """Adds the error of this step to the statistics and stores its weight."""
        error = shares.current().mean(step.metrics["linearity_error"].double())
        count, total, squares, _ = (state.extra[name].to(error.device) for name in STATE_KEYS)
        updated = (count + 1, total + error, squares + error.square(), step.metrics["weight"])
        state.extra |= dict(zip(STATE_KEYS, updated, strict=True))
