"""The replay buffer of persistent chains, on the device (JEM, arXiv 1912.03263)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

StartFunction = Callable[[Tensor], Tensor]  # labels int64 [n] -> starts [n, C, H, W]


class ReplayBuffer:
    """``size`` chain states with their classes, equal shares per class at the beginning.

    Args:
        start: makes fresh starts for labels.
        size: number of chains.
        num_classes: K.
        reinit: probability that a drawn chain starts anew, its class uniform.
        device: where the images live.
    """

    def __init__(
        self,
        start: StartFunction,
        size: int,
        num_classes: int,
        reinit: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.start = start
        self.reinit = reinit
        self.num_classes = num_classes
        self.labels = torch.arange(size, device=device) % num_classes
        self.images = torch.cat([start(part) for part in self.labels.split(1000)])

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` chains with replacement: images, labels and their places, to be written back."""
        device = self.labels.device
        places = torch.randint(len(self), (count,), generator=generator).to(device)
        images, labels = self.images[places], self.labels[places]
        anew = torch.rand(count, generator=generator) < self.reinit
        classes = torch.randint(self.num_classes, (count,), generator=generator)
        if bool(anew.any()):  # decided on the CPU: no wait for the device
            rows = anew.nonzero().squeeze(1).to(device)
            labels[rows] = classes[anew].to(device)
            images[rows] = self.start(labels[rows])
        return images, labels, places

    def write(self, places: Tensor, images: Tensor, labels: Tensor) -> None:
        """Stores the final states of drawn chains; of a place drawn twice, the last one."""
        order = torch.arange(len(places), device=places.device)
        last = torch.zeros_like(self.labels).scatter_reduce_(0, places, order, "amax", include_self=False)
        winners = last[places]  # else a device might write two chains over each other in any order
        self.images[places] = images.detach()[winners]
        self.labels[places] = labels[winners]

    def state_dict(self) -> dict[str, Tensor]:
        return {"images": self.images, "labels": self.labels}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over chains saved earlier; copies, so that a rollback state stays what it was."""
        self.images = state["images"].to(self.images, copy=True)
        self.labels = state["labels"].to(self.labels, copy=True)
