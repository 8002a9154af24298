"""Replay buffer of persistent chains, stored on the device (JEM, arXiv 1912.03263)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trilemma import shares
from trilemma.classifier.source import ClassifierSource
from trilemma.data.image_set import ImageSet
from trilemma.errors import ConfigError, DataError
from trilemma.files import CLASSIFIER, TensorFormat
from trilemma.headers import ChainsHeader
from trilemma.printing import print_message
from trilemma.transfers import sent

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

    Several processes share the chains out: process r of n stores those at indices r, r + n, r + 2n, ... All draw the
    chains of the whole batch and exchange them, so that a step draws and writes the same chains for every n.

    Args:
        start: makes starting images on ``device`` for labels on the CPU.
        size: number of chains, of all processes together.
        num_classes: K.
        reinit: probability that a drawn chain is restarted, with a uniform random class.
        device: device of the images.

    Attributes:
        share: the share of this process.
        images, labels: the chains that this process stores, float32 ``[n, C, H, W]`` and int64 ``[n]``.
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
        self.share = shares.current()
        self.size = size
        labels = torch.arange(size) % num_classes
        self.labels = labels[self._own].to(device, copy=True)
        # Every process makes all starts, which is how their random numbers stay the same.
        stored = (torch.arange(size) % self.share.count == self.share.rank).split(1000)
        parts = zip(labels.split(1000), (own.nonzero().squeeze(1) for own in stored), strict=True)
        self.images = torch.cat([start(part)[own.to(device)] for part, own in parts])

    def __len__(self) -> int:
        return self.size

    @property
    def _own(self) -> slice:
        """The indices of the chains that this process stores."""
        return slice(self.share.rank, None, self.share.count)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draws ``count`` chains for each process, with replacement, and restarts some of them.

        Args:
            count: number of chains of this process.
            generator: in the same state in all processes.

        Returns:
            Images ``[count, C, H, W]``, labels int64 ``[count]``, and for :meth:`write` the indices of the chains of
            all processes in the buffer, int64 ``[count * processes]`` on the CPU.
        """
        total = count * self.share.count
        places = torch.randint(len(self), (total,), generator=generator)
        images, labels = self._drawn(self.images, places), self._drawn(self.labels, places)
        restarts = torch.rand(total, generator=generator) < self.reinit
        classes = torch.randint(self.num_classes, (total,), generator=generator)
        # ``restarts`` is on the CPU, so that the branch does not wait for the device.
        if bool(restarts.any()):
            restarted = sent(restarts.nonzero().squeeze(1), labels.device)
            labels[restarted] = sent(classes[restarts], labels.device)
            images[restarted] = self.start(classes[restarts])
        return self.share.part(images), self.share.part(labels), places

    def write(self, places: Tensor, images: Tensor, labels: Tensor) -> None:
        """Stores the final images and labels of drawn chains.

        Args:
            places: the indices of the chains of all processes, as returned by :meth:`draw`. If an index occurs more
                than once, the last chain is stored.
            images, labels: ``[count, C, H, W]`` and int64 ``[count]``, of this process.
        """
        images, labels = self.share.whole(images.detach()), self.share.whole(labels)
        own, indices = self._stored(places)
        places = sent(places, labels.device)
        order = torch.arange(len(places), device=places.device)
        last = order.new_zeros(len(self)).scatter_reduce_(0, places, order, "amax", include_self=False)
        # Writes to a repeated index come in undefined order on a device, so all of them write the same chain.
        sources = last[places[own]]
        self.images[indices] = images[sources]
        self.labels[indices] = labels[sources]

    def _stored(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in ``places`` of the chains that this process stores, and their indices in ``images``."""
        own = (places % self.share.count == self.share.rank).nonzero().squeeze(1)
        device = self.labels.device
        return sent(own, device), sent(places[own] // self.share.count, device)

    def _drawn(self, stored: Tensor, places: Tensor) -> Tensor:
        """A copy of the rows of the whole buffer at ``places``; ``stored`` are those of this process."""
        own, indices = self._stored(places)
        if self.share.count == 1:
            return stored[indices]
        rows = stored.new_zeros(len(places), *stored.shape[1:])
        rows[own] = stored[indices]
        return self.share.sum(rows)

    def _whole(self, stored: Tensor) -> Tensor:
        """All rows of the buffer; ``stored`` are those of this process."""
        if self.share.count == 1:
            return stored
        rows = stored.new_zeros(len(self), *stored.shape[1:])
        rows[self._own] = stored
        return self.share.sum(rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the images and labels of all chains, of one process not copied; to be called by all processes."""
        return {"images": self._whole(self.images), "labels": self._whole(self.labels)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores this process's part of saved chains, copied, so that later writes do not change ``state``."""
        self.images = state["images"][self._own].to(self.images, copy=True)
        self.labels = state["labels"][self._own].to(self.labels, copy=True)


def save_chains(
    path: Path, chains: Mapping[str, Tensor], class_names: tuple[str, ...], weights: str | None = None
) -> None:
    """Writes the chains of a replay buffer as images of 8 bits, clipped to [0, 1].

    Args:
        path: the file; beside a classifier it is called :data:`CHAINS_FILE`.
        chains: ``images`` and ``labels``, as :meth:`ReplayBuffer.state_dict` returns them.
        class_names: one name per class.
        weights: digest of the weights that the chains belong to.

    Raises:
        NotStoredError: the file cannot be written.
    """
    images = (chains["images"].clamp(0, 1) * 255).round().to(torch.uint8)
    CHAINS.write(
        path,
        {"images": images, "labels": chains["labels"]},
        {"class_names": list(class_names), "weights": weights},
    )


def load_chains(source: str | Path) -> ImageSet:
    """Returns the chains that training kept.

    A line on standard error says so if they belong to other weights than the classifier beside them.

    Args:
        source: a run folder (the chains of its best checkpoint), a classifier file of a run, or the file of chains.

    Raises:
        ConfigError: there are none.
        CheckpointError: no such file, or it is damaged.
    """
    path, classifier_file = Path(source), None
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
    beside = None if classifier_file is None else CLASSIFIER.read_header(classifier_file).weights
    if None not in (beside, header.weights) and beside != header.weights:
        print_message(f"warning: {path}: chains of other weights than the classifier beside them has")
    images, labels = tensors.get("images"), tensors.get("labels")
    if images is None or labels is None or images.dtype != torch.uint8 or not len(images):
        raise CHAINS.invalid(path, "images of 8 bits and labels are missing")
    try:
        return ImageSet(images, labels, tuple(header.class_names), str(source), "chains")
    except DataError as error:
        raise CHAINS.invalid(path, str(error)) from None
