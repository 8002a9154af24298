"""Replay buffer of persistent chains, stored on the device (JEM, arXiv 1912.03263)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trilemma.classifier.source import ClassifierSource
from trilemma.data.image_set import ImageSet
from trilemma.errors import ConfigError, DataError
from trilemma.files import TensorFormat
from trilemma.headers import ChainsHeader

# From labels, int64 [n], to starting images [n, C, H, W].
StartFunction = Callable[[Tensor], Tensor]


# Chains of a finished run, beside its classifier.
CHAINS_FILE = "chains.safetensors"
CHAINS = TensorFormat(
    name="chains",
    version=1,
    foreign="not a file of chains of trilemma",
    damaged="not a file of chains, or cut short",
    remedy="copy it again or train again",
    advice="free space or choose another --out",
    validate=ChainsHeader.model_validate,
)


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


def save_chains(path: Path, buffer: ReplayBuffer, class_names: tuple[str, ...]) -> None:
    """Writes the chains of a replay buffer as images of 8 bits, clipped to [0, 1].

    Args:
        path: the file; beside a classifier it is called :data:`CHAINS_FILE`.
        buffer: the chains.
        class_names: one name per class.

    Raises:
        NotStoredError: the file cannot be written.
    """
    images = (buffer.images.clamp(0, 1) * 255).round().to(torch.uint8)
    CHAINS.write(path, {"images": images, "labels": buffer.labels}, {"class_names": list(class_names)})


def load_chains(source: str | Path) -> ImageSet:
    """Returns the chains that training kept.

    Args:
        source: a run folder (the chains of its best checkpoint), a classifier file of a run, or the file of chains.

    Raises:
        ConfigError: there are none.
        CheckpointError: no such file, or it is damaged.
    """
    path = Path(source)
    if path.name != CHAINS_FILE:
        described = ClassifierSource(source)
        described.check()
        classifier_file = described.classifier_file()
        path = path if classifier_file is None else classifier_file.with_name(CHAINS_FILE)
    if not path.is_file():
        raise ConfigError(
            f"start: 'replay-buffer' needs the chains of training, and {source} has none: runs with "
            "sampler.buffer_size above 0 keep them, those of earlier versions do not; train again or choose another "
            "start"
        )
    header, tensors = CHAINS.read(path)
    images, labels = tensors.get("images"), tensors.get("labels")
    if images is None or labels is None or images.dtype != torch.uint8 or not len(images):
        raise CHAINS.invalid(path, "images of 8 bits and labels are missing")
    try:
        return ImageSet(images, labels, tuple(header.class_names), str(source), "chains")
    except DataError as error:
        raise CHAINS.invalid(path, str(error)) from None
