"""JEM: a classifier is an energy model too (Grathwohl et al. 2020, arXiv 1912.03263)."""

from __future__ import annotations

from trilemma.methods import options
from trilemma.methods.generative import JointEnergyModel


class Jem(JointEnergyModel):
    """``L = w (mean E(x_data) - mean E(x^)) + mean CE(x, y)``, x^ from Langevin chains that start as noise.

    x_data are the classified images themselves. As published, training images carry Gaussian noise
    (``training.input_noise``), the network has no normalisation layers, and nothing holds a chain in the box:
    its images may leave [0, 1] while training.
    """

    Options = options.Jem
    clips_chains = False
