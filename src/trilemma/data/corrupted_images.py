"""Common corruptions of test images: 15 types in 5 severities (Hendrycks and Dietterich 2019, arXiv 1903.12261).

Three sources: a folder of arrays as CIFAR-10-C is published, a folder of image folders, and images that the package
``imagecorruptions`` makes from the test images.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import metadata
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma import noise
from trilemma.data.catalogue import CIFAR10, CIFAR100
from trilemma.data.image_set import ImageSet, as_float
from trilemma.data.outlier_images import in_channels
from trilemma.data.sources import load_images
from trilemma.data.splitting import stratified_order
from trilemma.errors import DataError, MissingExtraError

TYPES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
# The name of images that are made from the test images: the types and severities are those of ImageNet-C.
IMAGENET_C = "imagenet-c"
# Smallest side of an image that the package takes.
MIN_SIDE = 32
PACKAGE = "imagecorruptions-imaug"


class CorruptedImages(ABC):
    """Test images in each type and severity.

    Attributes:
        name: for the name of a result row.
        count: number of images of each type and severity.
        facts: JSON-like description of the source.
    """

    name: str
    count: int
    facts: dict[str, Any]

    @abstractmethod
    def batch(self, kind: str, severity: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[n, C, H, W]``, uint8 or float32 in [0, 1], and labels int64 ``[n]``, at ``index`` of ``count``."""


def open_corrupted(
    path: str | Path, images: Tensor, labels: Tensor, class_names: Sequence[str]
) -> CorruptedImages:
    """The corrupted images of a folder.

    The folder has ``TYPE.npy`` for each type and ``labels.npy``, as CIFAR-10-C: uint8 ``[5 N, H, W, C]``, the
    severities one after the other; or image folders ``TYPE/SEVERITY/CLASS``.

    Args:
        path: the folder.
        images: the test images ``[N, C, H, W]``, which give the number of images to use and their shape.
        labels: their labels, int64 ``[N]``.
        class_names: the classes in the order of the labels.

    Raises:
        DataError: no such folder, a missing type, or images or labels that do not belong to the test images.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(
            f"corruptions:{path}: not a folder; give one with TYPE.npy and labels.npy, as CIFAR-10-C, or with folders "
            f"TYPE/SEVERITY/CLASS, or leave the path out to make the images"
        )
    arrays = (folder / "labels.npy").is_file()
    missing = [kind for kind in TYPES if not (folder / (f"{kind}.npy" if arrays else kind)).exists()]
    if missing:
        what = "arrays TYPE.npy" if arrays else "labels.npy or folders TYPE/SEVERITY/CLASS"
        raise DataError(
            f"corruptions:{path}: {len(missing)} of {len(TYPES)} types are missing ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); the folder needs {what} of every type"
        )
    source = _Arrays if arrays else _Folders
    return source(folder, images, labels, tuple(class_names))


class _Arrays(CorruptedImages):
    """Arrays as CIFAR-10-C and CIFAR-100-C are published; every severity has the test images in their order."""

    def __init__(self, folder: Path, images: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> None:
        self.name, self.count = folder.resolve().name.lower(), len(labels)
        numbers = _read(folder / "labels.npy")
        self._size = len(numbers) // len(SEVERITIES)
        blocks = numbers[: self._size * len(SEVERITIES)].reshape(len(SEVERITIES), -1)
        if numbers.ndim != 1 or len(numbers) % len(SEVERITIES) or (blocks != blocks[0]).any():
            raise DataError(
                f"{folder / 'labels.npy'}: must hold the same labels for each of 5 severities, one after the other; "
                f"got shape {list(numbers.shape)}"
            )
        self._labels = _in_order(torch.from_numpy(blocks[0].astype(np.int64)), class_names)
        everything = self.count == self._size
        self._index = torch.arange(self._size) if everything else stratified_order(self._labels)[: self.count]
        if not torch.equal(self._labels[self._index], labels):
            raise DataError(
                f"{folder / 'labels.npy'}: its {self._size} labels are not those of the {self.count} test images; "
                "evaluate on the data set that the arrays were made from"
            )
        shape = (len(numbers), *images.shape[2:], images.shape[1])
        self._arrays = {kind: _read(folder / f"{kind}.npy") for kind in TYPES}
        for kind, array in self._arrays.items():
            if array.shape != shape or array.dtype != np.uint8:
                raise DataError(
                    f"{folder / kind}.npy: is {array.dtype} {list(array.shape)}, but must be uint8 {list(shape)}"
                )
        digest = hashlib.sha256(numbers.tobytes())
        for array in self._arrays.values():
            # One image in a thousand tells two sets apart without reading gigabytes.
            digest.update(np.ascontiguousarray(array[::1000]).tobytes())
        self.facts = {"source": "arrays", "sha256": digest.hexdigest()[:12]}

    def batch(self, kind: str, severity: int, index: Tensor) -> tuple[Tensor, Tensor]:
        place = self._index[index]
        images = self._arrays[kind][(place + self._size * (severity - 1)).numpy()]
        return torch.from_numpy(images).permute(0, 3, 1, 2), self._labels[place]


def _read(file: Path) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    # Any exception: NumPy parses the header of a damaged file as Python code.
    except Exception as error:
        raise DataError(f"{file}: cannot be read as an .npy file ({error}); write it again") from None
    return array


def _in_order(labels: Tensor, class_names: tuple[str, ...]) -> Tensor:
    """Labels of the official class order in the order of ``class_names``, if these are the official names."""
    for official in (CIFAR10, CIFAR100):
        names = official.class_names or ()
        if class_names != names and sorted(class_names) == sorted(names):
            return torch.tensor([class_names.index(name) for name in names])[labels]
    return labels


class _Folders(CorruptedImages):
    """Image folders ``TYPE/SEVERITY/CLASS``; classes are matched by name."""

    def __init__(self, folder: Path, images: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> None:
        size = images.shape[2] if images.shape[2] == images.shape[3] else None
        self._channels = images.shape[1]
        self._sets: dict[tuple[str, int], ImageSet] = {}
        for kind in TYPES:
            for severity in SEVERITIES:
                place = folder / kind / str(severity)
                if not place.is_dir():
                    raise DataError(f"{place}: no such folder; every type needs its severities 1 to 5")
                found = load_images(place, split="all", size=size, class_names=class_names)
                if found.image_shape[1:] != tuple(images.shape[2:]):
                    raise DataError(
                        f"{place}: images are {found.image_shape}, the test images {images.shape[1:]}"
                    )
                self._sets[kind, severity] = found
        self.count = min(len(labels), *map(len, self._sets.values()))
        self._sets = {
            key: found.first(self.count) if self.count < len(found) else found
            for key, found in self._sets.items()
        }
        self.name = folder.resolve().name.lower()
        digest = hashlib.sha256("".join(found.name for found in self._sets.values()).encode())
        self.facts = {"source": "folders", "sha256": digest.hexdigest()[:12]}

    def batch(self, kind: str, severity: int, index: Tensor) -> tuple[Tensor, Tensor]:
        found = self._sets[kind, severity]
        return in_channels(found.float_images(index), self._channels), found.labels[index]


class MadeImages(CorruptedImages):
    """Images that the package ``imagecorruptions`` makes from the test images, with the severities of ImageNet-C.

    Args:
        images: the test images ``[N, C, H, W]``, uint8 or float, square or not, at least 32x32.
        labels: int64 ``[N]``.
        seed: seed of the random numbers; each image has its own, which do not depend on the batch.

    Raises:
        MissingExtraError: the extra ``corruptions`` is not installed.
        DataError: images that are too small, or neither grey nor RGB.
    """

    def __init__(self, images: Tensor, labels: Tensor, seed: int) -> None:
        try:
            import imagecorruptions
        except ImportError as error:
            raise MissingExtraError(
                f"corruptions: making corrupted images needs {PACKAGE} ({error}); pip install -e '.[corruptions]' in "
                "the clone, or give a folder of corrupted images: corruptions:PATH"
            ) from error
        channels, height, width = images.shape[1:]
        if min(height, width) < MIN_SIDE or channels not in (1, 3):
            raise DataError(
                f"corruptions: images are {channels}x{height}x{width} (C, H, W), but corruptions are defined for grey "
                f"and RGB of at least {MIN_SIDE}x{MIN_SIDE} pixels; give other data or a folder: corruptions:PATH"
            )
        self.name, self.count = IMAGENET_C, len(labels)
        self._images, self._labels = images, labels
        self._functions: dict[str, Callable[..., Any]] = imagecorruptions.corruption_dict
        self._corrupt: Callable[..., np.ndarray[Any, Any]] = imagecorruptions.corrupt
        self._seeds = noise.image_seeds(len(labels), torch.Generator().manual_seed(seed))
        self.facts = {
            "source": f"{PACKAGE} {metadata.version(PACKAGE)}",
            "note": "types and severities of ImageNet-C, made from the test images; not comparable with CIFAR-10-C, "
            "which has other, mostly milder severities",
        }

    def batch(self, kind: str, severity: int, index: Tensor) -> tuple[Tensor, Tensor]:
        images = as_float(self._images[index])
        colour = (in_channels(images, 3) * 255).round().to(torch.uint8)
        pixels = colour.permute(0, 2, 3, 1).contiguous().numpy()
        seeds = noise.derive(self._seeds[index], 10 * TYPES.index(kind) + severity) % 2**32
        made = [
            self._one(image, kind, severity, seed) for image, seed in zip(pixels, seeds.tolist(), strict=True)
        ]
        corrupted = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
        return in_channels(as_float(corrupted), images.shape[1]), self._labels[index]

    def _one(self, image: np.ndarray[Any, Any], kind: str, severity: int, seed: int) -> np.ndarray[Any, Any]:
        """One corrupted image ``[H, W, 3]``, uint8."""
        # Some functions draw from NumPy's default generator, others from one that they seed themselves.
        own = {"seed": seed} if "seed" in signature(self._functions[kind]).parameters else {}
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            return self._corrupt(image, severity=severity, corruption_name=kind, **own)
        finally:
            np.random.set_state(state)
