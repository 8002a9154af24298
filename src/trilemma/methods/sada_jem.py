"""SADA-JEM: a joint energy model with un-augmented images in the generative term (Yang et al. 2023)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from trilemma.data.batch import Batch
from trilemma.methods.generative import DataView, JointEnergyModel, JointEnergyModelOptions, data_view


class SadaJemOptions(JointEnergyModelOptions):
    image_sets: ClassVar[int] = 3

    name: Literal["sada-jem"] = "sada-jem"
    data_view: DataView = "unaugmented"

    @property
    def loss_sets(self) -> int:
        return self.image_sets - (self.data_view == "classified")


class SadaJem(JointEnergyModel):
    """``L = w (mean E(x_data) - mean E(x^)) + mean CE(x, y)``, with the chains of JEM++.

    x_data are un-augmented images, x augmented ones. The published form updates the weights with adaptive SAM
    (``update.name: sam``).
    """

    Options = SadaJemOptions
    views = ("unaugmented",)

    def real_images(self, batch: Batch) -> Tensor:
        return data_view(batch, self.options.data_view)
