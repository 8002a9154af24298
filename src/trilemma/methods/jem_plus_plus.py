"""JEM++: JEM with batch normalisation, clamped steps without noise, and class-Gaussian starts (Yang and Ji 2021)."""

from __future__ import annotations

from typing import Literal

from trilemma.methods.generative import JointEnergyModel, JointEnergyModelOptions


class JemPlusPlusOptions(JointEnergyModelOptions):
    name: Literal["jem++"] = "jem++"


class JemPlusPlus(JointEnergyModel):
    """``L = w (mean E(x_data) - mean E(x^)) + mean CE(x, y)`` as in JEM, x^ from proximal steps.

    Chains start at draws from class Gaussians and take ten steps ``clip(x - 0.25 clamp(grad E(x), +-2), 0, 1)`` with
    BatchNorm in train mode. The inner loop of the release repeats the gradient of an affine layer; these steps reach
    the same points without it (see :func:`trilemma.samplers.samplers.proximal`).
    """

    Options = JemPlusPlusOptions
