"""SADA-JEM: a joint energy model whose data term sees un-augmented images (Yang et al. 2023)."""

from __future__ import annotations

from torch import Tensor

from trilemma.data.batch import Batch
from trilemma.methods import options
from trilemma.methods.generative import JointEnergyModel, data_view


class SadaJem(JointEnergyModel):
    """``L = w (mean E(x_data) - mean E(x^)) + mean CE(x, y)``, with the chains of JEM++.

    The data term sees un-augmented images, the cross-entropy augmented ones. Its published form updates
    the weights with adaptive SAM (``update.name: sam``).
    """

    Options = options.SadaJem
    views = ("unaugmented",)

    def real_images(self, batch: Batch) -> Tensor:
        return data_view(batch, self.options.data_view)
