"""JEM: a classifier trained as an energy model as well (Grathwohl et al. 2020, arXiv 1912.03263)."""

from __future__ import annotations

from typing import ClassVar, Literal

from trilemma.methods.generative import LANGEVIN, JointEnergyModel, JointEnergyModelOptions


class JemOptions(JointEnergyModelOptions):
    sampler_defaults: ClassVar[dict[str, object]] = LANGEVIN

    name: Literal["jem"] = "jem"


class Jem(JointEnergyModel):
    """``L = w (mean E(x_data) - mean E(x^)) + mean CE(x, y)``, x^ from Langevin chains that start at uniform noise.

    x_data are the classified images. As published, Gaussian noise is added to the training images
    (``training.input_noise``), the network has no normalisation layers, and chains are not clipped to [0, 1] during
    training.
    """

    Options = JemOptions
    clips_chains = False
