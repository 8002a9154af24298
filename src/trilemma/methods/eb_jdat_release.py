"""EB-JDAT as its authors' code of May 2025 trains it, for comparison with the paper's equation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import (
    model_validator,
)

from trilemma.methods.eb_jdat import (
    Align,
    Alignment,
    DataNoise,
    EbJdat,
    Inner,
    JointModelOptions,
    Project,
    StartScale,
)

# The released weights of the two backbones with BatchNorm are the defaults below; these are jem's.
JEM_WEIGHTS = {"generative": 0.45, "align": 0.05, "clean": 0.45, "adversarial": 0.45}


class EbJdatReleaseOptions(JointModelOptions):
    reach: ClassVar[float] = 9 / 8  # half a radius of start and five steps of an eighth
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 5, "step_share": "1/8"}

    name: Literal["eb-jdat-release"] = "eb-jdat-release"
    inner: Inner = "logit"
    alignment: Alignment = "widen-data"
    start_scale: StartScale = 0.5
    project: Project = False
    data_noise: DataNoise = 0.015  # 0.03 on [-1, 1]
    align: Align = 0.1

    @model_validator(mode="before")
    @classmethod
    def _weights_of_the_backbone(cls, given: Any) -> Any:
        """Backbone jem was released with weights of its own."""
        if isinstance(given, dict) and given.get("backbone") == "jem":
            return {**JEM_WEIGHTS, **given}
        return given


class EbJdatRelease(EbJdat):
    """The equation of :class:`EbJdat` with the released inner step, alignment, weights and reach::

        L = w1 (mean E(x_data) - mean E(x^)) + w2 (mean E(x_data) - mean E(x*))
          + a mean CE(x, y) + b mean CE(x*, y)
        x* <- clip(x* + a sign grad [f(x*)[y] + 2 (1 - cos(f(x), f(x*)))])

    The step raises the true logit, and the second term widens the gap. In the release, x_data and x are two
    different random batches. Here x_data is the data view of the labelled batch itself. Both terms are
    differences of two means, so which image stands beside which changes neither value nor gradient, and rolling
    x_data by one place would do nothing. What does differ: the two means are over the same images, so the
    estimate has the expectation of the released one and less noise.

    x* starts within half a radius and takes five steps of an eighth, kept in the box but not in the ball: it
    reaches 9/8 radii. The released 8/255 is meant on [-1, 1], half of what the threat says here.
    """

    Options = EbJdatReleaseOptions
