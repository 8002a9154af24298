"""An image set: images, labels, class names, and the name that identifies the data in result rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trilemma.data.class_names import distinct_names
from trilemma.data.splitting import stratified_order
from trilemma.errors import DataError
from trilemma.transfers import sent

if TYPE_CHECKING:
    from trilemma.data.stream import ShardStream


# Weights of red, green and blue in the luma, as Pillow converts colour to grey.
LUMA = (0.299, 0.587, 0.114)


def luma(images: Tensor) -> Tensor:
    """Converts float images ``[N, 3, H, W]`` to the luma of ITU-R BT.601, ``[N, 1, H, W]``."""
    weights = sent(torch.tensor(LUMA), images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def as_float(images: Tensor) -> Tensor:
    """Converts uint8 images (0..255) to contiguous float32 in [0, 1] by value / 255; returns float images unchanged."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def source_name(name: str) -> str:
    """The name of the data set in the name of an image set: ``digits`` for ``digits@16[:300]``."""
    return name.partition("[")[0].partition("@")[0]


@dataclass(frozen=True, repr=False)
class ImageSet:
    """Labelled images on the CPU.

    Attributes:
        images: uint8 ``[N, C, H, W]``, usually memory-mapped; float32 in [0, 1] only if the caller passed float tensors
            (they are not rounded). :meth:`float_images` converts both.
        labels: int64 ``[N]``, 0 to ``num_classes - 1``.
        class_names: one name per class, in label order.
        name: identifies the data in result rows: ``"digits"``, ``"cifar10-jpeg"``, ``"imagefolder:1a2b3c4d5e6f"``;
            followed by ``@SIZE`` if the images were resized, and by ``[:N]`` if only the first N training images are
            used.
        split: ``"train"``, ``"held-out"``, ``"test"`` or ``"all"``.
        selection: how the images were chosen and changed, where the split does not say it; for result rows.
        remarks: the kinds of files if there are several, and what is not counted, one line each.

    Raises:
        DataError: images, labels and class names do not fit together, or two classes have one name.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    split: str
    selection: str = ""
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # The names are stored in normal form, in which they are compared everywhere.
        object.__setattr__(self, "class_names", distinct_names(self.class_names, self.name))
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise DataError(
                f"{self.name}: images must be uint8 or float32 [N, C, H, W], "
                f"got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{self.name}: labels must be int64 [{len(self.images)}], one per image, "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )
        check_labels(self.labels, len(self.class_names), self.name)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:10]) + (", ..." if self.num_classes > 10 else "")
        shape = "x".join(map(str, self.image_shape))
        kind = str(self.images.dtype).removeprefix("torch.")
        size = f"{len(self)} images {shape} {kind}, {self.num_classes} classes"
        return f"ImageSet({self.name!r}, {self.split}: {size}: {names})"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def indices_by_class(self) -> tuple[Tensor, ...]:
        """The indices of the images of each class in ascending order, int64 ``[n_k]`` each; found once, by one sort."""
        order = torch.argsort(self.labels, stable=True)
        counts: list[int] = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        return torch.split(order, counts)

    def subset(self, index: Tensor | Sequence[int]) -> ImageSet:
        """The images at ``index`` (integers, or a boolean mask), in that order; a copy in memory."""
        positions = _integers(index)
        return dataclasses.replace(self, images=self.images[positions], labels=self.labels[positions])

    def first(self, count: int) -> ImageSet:
        """The first ``count`` images of a fixed stratified order; all images if there are fewer.

        With ten classes ``first(10)`` has one image of each; ``first(10)`` is a prefix of ``first(100)``.
        """
        return self.subset(stratified_order(self.labels)[:count])

    def float_images(
        self, index: Tensor | Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """All images, or those at ``index``, as contiguous float32 ``[N, C, H, W]`` in [0, 1] on ``device``."""
        images = self.images if index is None else self.images[_integers(index)]
        return as_float(images.to(device))


def _integers(index: Tensor | Sequence[int]) -> Tensor:
    """An index as an int64 tensor; a boolean mask is converted to the positions of its true entries."""
    tensor = torch.as_tensor(index)
    return tensor.nonzero().flatten() if tensor.dtype == torch.bool else tensor.long()


@dataclass(frozen=True, repr=False)
class Splits:
    """The three parts of a data set; checkpoints are selected on ``held_out``, never on ``test``.

    Attributes:
        train: training images; of a data set that is streamed, a bounded choice of them, for everything that needs
            images in memory: class statistics, starts of chains, reference images.
        held_out, test: the other parts.
        stream: all training images of a data set that is streamed.
    """

    train: ImageSet
    held_out: ImageSet
    test: ImageSet
    stream: ShardStream | None = None

    @property
    def training(self) -> ImageSet | ShardStream:
        """What a run trains on: the stream if there is one, else ``train``."""
        return self.train if self.stream is None else self.stream

    def __repr__(self) -> str:
        stream = "" if self.stream is None else f"  stream={self.stream},\n"
        return f"Splits(\n  train={self.train},\n  held_out={self.held_out},\n  test={self.test},\n{stream})"


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raises :class:`DataError` unless every label is in 0 to ``num_classes - 1``."""
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise DataError(
            f"{where}: label {int(labels[index])} of image {index} is out of range; "
            f"{num_classes} classes need labels 0 to {num_classes - 1}"
        )
