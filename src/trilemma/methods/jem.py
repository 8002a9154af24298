"""JEM: a classifier is an energy model too (Grathwohl et al. 2020, arXiv 1912.03263)."""

from __future__ import annotations

from typing import ClassVar, Literal

from trilemma.methods.generative import LANGEVIN, JointEnergyModel, JointEnergyModelOptions


class JemOptions(JointEnergyModelOptions):
    sampler_defaults: ClassVar[dict[str, object]] = LANGEVIN

    name: Literal["jem"] = "jem"


class Jem(JointEnergyModel):
    """``L = w (mean E(x_data) - mean E(x^)) + mean CE(x, y)``, x^ from Langevin chains that start as noise.

    x_data are the classified images themselves. As published, training images carry Gaussian noise
    (``training.input_noise``), the network has no normalisation layers, and nothing holds a chain in the box:
    its images may leave [0, 1] while training.
    """

    Options = JemOptions
    clips_chains = False
