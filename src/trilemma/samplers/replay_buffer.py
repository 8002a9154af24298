"""Replay buffer of persistent chains, stored on the device (JEM, arXiv 1912.03263)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# From labels, int64 [n], to starting images [n, C, H, W].
StartFunction = Callable[[Tensor], Tensor]


class ReplayBuffer:
    """``size`` chains, each an image and its class; initially the classes are balanced.

    Args:
        start: makes starting images for labels.
        size: number of chains.
        num_classes: K.
        reinit: probability that a drawn chain is restarted, with a uniform random class.
        device: device of the images.
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
        """Draws ``count`` chains with replacement and restarts some of them.

        Returns:
            Images ``[count, C, H, W]``, labels int64 ``[count]``, and the chains' indices in the buffer, int64
            ``[count]``, for :meth:`write`.
        """
        device = self.labels.device
        indices = torch.randint(len(self), (count,), generator=generator).to(device)
        images, labels = self.images[indices], self.labels[indices]
        restarts = torch.rand(count, generator=generator) < self.reinit
        classes = torch.randint(self.num_classes, (count,), generator=generator)
        # ``restarts`` is on the CPU, so that the branch does not wait for the device.
        if bool(restarts.any()):
            restarted = restarts.nonzero().squeeze(1).to(device)
            labels[restarted] = classes[restarts].to(device)
            images[restarted] = self.start(labels[restarted])
        return images, labels, indices

    def write(self, places: Tensor, images: Tensor, labels: Tensor) -> None:
        """Stores the final images and labels of drawn chains.

        Args:
            places: the chains' indices in the buffer, as returned by :meth:`draw`. If an index occurs more than once,
                the last chain is stored.
            images, labels: ``[count, C, H, W]`` and int64 ``[count]``.
        """
        order = torch.arange(len(places), device=places.device)
        last = torch.zeros_like(self.labels).scatter_reduce_(0, places, order, "amax", include_self=False)
        # Writes to a repeated index come in undefined order on a device, so all of them write the same chain.
        sources = last[places]
        self.images[places] = images.detach()[sources]
        self.labels[places] = labels[sources]

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the images and labels of the chains, not copied."""
        return {"images": self.images, "labels": self.labels}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores saved chains. The tensors are copied, so that later writes do not change ``state``."""
        self.images = state["images"].to(self.images, copy=True)
        self.labels = state["labels"].to(self.labels, copy=True)
