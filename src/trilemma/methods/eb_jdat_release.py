"""EB-JDAT as in its authors' code of May 2025, for comparison with the paper's equation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

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

# Released weights of backbone jem. Those of the two backbones with BatchNorm are the defaults of the options.
JEM_WEIGHTS = {"generative": 0.45, "align": 0.05, "clean": 0.45, "adversarial": 0.45}


class EbJdatReleaseOptions(JointModelOptions):
    # Half a radius of random start plus five steps of an eighth of the radius.
    reach: ClassVar[float] = 9 / 8
    attack_defaults: ClassVar[dict[str, object]] = {"steps": 5, "step_share": "1/8"}

    name: Literal["eb-jdat-release"] = "eb-jdat-release"
    inner: Inner = "logit"
    alignment: Alignment = "widen-data"
    start_scale: StartScale = 0.5
    project: Project = False
    # 0.03 on images in [-1, 1].
    data_noise: DataNoise = 0.015
    align: Align = 0.1

    @model_validator(mode="before")
    @classmethod
    def _set_backbone_weights(cls, values: Any) -> Any:
        """Sets the released weights of backbone ``jem`` where a weight is not given."""
        if isinstance(values, dict) and values.get("backbone") == "jem":
            return {**JEM_WEIGHTS, **values}
        return values


class EbJdatRelease(EbJdat):
    """The loss of :class:`EbJdat` with the released inner step, alignment, weights and attack radius::

        L = w1 (mean E(x_data) - mean E(x^)) + w2 (mean E(x_data) - mean E(x*))
          + a mean CE(x, y) + b mean CE(x*, y)
        x* <- clip(x* + a sign grad [f(x*)[y] + 2 (1 - cos(f(x), f(x*)))])

    The inner step raises the true logit, and the second term widens the gap. In the release, x_data and x are two
    different random batches. Here x_data is the data view of the labelled batch itself. Both terms are differences
    of two means, so the pairing of the images changes neither value nor gradient. What differs is the variance: both
    means are over the same images, so the estimate has the expectation of the released one and less noise.

    x* starts within half a radius and takes five steps of an eighth of the radius. It is clipped to [0, 1] but not
    projected onto the ball, so it reaches 9/8 radii. The released radius of 8/255 is for images in [-1, 1], which is
    4/255 in the pixel units of the threat.
    """

    Options = EbJdatReleaseOptions
