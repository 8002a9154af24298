"""``trilemma.predict``: class, confidence and energy of images, from files or from memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.output import check_finite
from trilemma.data.containers import SUFFIXES, read_file
from trilemma.data.image_files import image_readers
from trilemma.data.image_set import ImageSet, as_float
from trilemma.data.pictures import decode, read_header
from trilemma.energies import marginal_energy
from trilemma.errors import ConfigError, DataError
from trilemma.evaluation.source import Source, open_source
from trilemma.printing import print_message
from trilemma.tables import Records

BATCH_SIZE = 256

# Image files, and folders and archives of image files; or images in memory.
Images = str | Path | Sequence[str | Path] | Tensor | ImageSet


def predict(
    source: Source,
    images: Images,
    *,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
    skip_unreadable: bool = False,
) -> Records:
    """Class, confidence and energy E(x) of images.

    Image files are converted to the format of the classifier: alpha is composited over black; the centre is cropped to
    the aspect ratio of the classifier's images and resized; colour becomes luminance for a grey classifier, and grey is
    repeated for a colour classifier. A lower E(x) means that the classifier rates the image as more similar to the
    training images.

    Args:
        source: a run folder, a classifier file, a :class:`Run` or a :class:`Classifier`; its state is restored.
        images: an image file, a folder or archive (all image files in it, at any depth, sorted by path), or several of
            these; a tensor ``[N, C, H, W]``, uint8, or float in [0, 1]; or an image set.
        device: device to run on; by default that of a given classifier, and the CPU for everything that is loaded.
        batch_size: images per forward pass.
        skip_unreadable: print a line about each file that cannot be read, and leave it out; otherwise it is an error.

    Returns:
        One row per image: ``image`` (path, or index in memory), ``class`` (name), ``confidence`` in [0, 1] and
        ``marginal energy`` in logit units.

    Raises:
        DataError: a file that is missing or cannot be decoded, or a folder without image files; with
            ``skip_unreadable``, if no file can be read.
        ConfigError: files for a classifier that stores no image shape.
        ImageError: tensors that the classifier does not take.
    """
    items = open_items(images, skip_unreadable)
    clf = open_source(source, items.tensor, device)
    rows = Records()
    for part in items.split(batch_size):
        names, pixels = part.read(clf, skip_unreadable)
        if not names:
            continue
        logits = eval_logits(clf, pixels)
        confidence, label = logits.softmax(1).max(1)
        columns = (names, label.tolist(), confidence.tolist(), marginal_energy(logits).tolist())
        rows += [
            {"image": name, "class": clf.class_names[k], "confidence": p, "marginal energy": energy}
            for name, k, p, energy in zip(*columns, strict=True)
        ]
    items.report_skipped(len(rows))
    return rows


@torch.no_grad()
def eval_logits(clf: Classifier, images: Tensor) -> Tensor:
    """Finite logits ``[N, K]`` in eval mode, on the CPU; the state of ``clf`` is restored.

    Raises:
        NetworkError: the logits of an image are not finite.
    """
    with inner_loop(clf, "eval"):
        logits: Tensor = clf(images.to(clf.device))
    check_finite(logits)
    return logits.cpu()


@dataclass(frozen=True)
class Items:
    """Images with the names that rows give them.

    Attributes:
        names: the path of a file; the index of an image in memory.
        tensor: uint8 or float images ``[N, C, H, W]``, or ``None`` for files.
        readers: one function per file, which returns its content.
        skipped: number of paths that were skipped before, as nothing in them can be read.
    """

    names: list[str] | list[int]
    tensor: Tensor | None = None
    readers: tuple[Callable[[], bytes], ...] = ()
    skipped: int = 0

    def split(self, size: int) -> list[Items]:
        """Parts of at most ``size`` images."""
        spans = [slice(start, start + size) for start in range(0, len(self.names), size)]
        return [
            Items(self.names[s], None if self.tensor is None else self.tensor[s], self.readers[s])
            for s in spans
        ]

    def read(
        self, clf: Classifier, skip_unreadable: bool = False, resize: bool = True
    ) -> tuple[list[str] | list[int], Tensor]:
        """Names and float32 pixels ``[N, C, H, W]`` in [0, 1] of the images.

        Args:
            clf: its image shape is that of the images.
            skip_unreadable: print a line about each file that cannot be read, and leave it out.
            resize: resize files of another size; otherwise they cannot be read.

        Raises:
            DataError: a file that cannot be read or decoded.
            ConfigError: files for a classifier that stores no image shape.
        """
        if self.tensor is not None:
            return self.names, as_float(self.tensor)
        if clf.image_shape is None:
            raise ConfigError(
                "this classifier stores no image shape; add --size N, or create it with image_shape=(C, H, W)"
            )
        names: list[str] = []
        pixels = []
        for name, read in zip(map(str, self.names), self.readers, strict=True):
            try:
                data = read()
                if not resize:
                    _check_size(data, clf.image_shape, name)
                pixels.append(pixels_of(data, clf.image_shape, name))
            except DataError as error:
                if not skip_unreadable:
                    raise
                _print_skipped(error)
            else:
                names.append(name)
        shape = (0, *clf.image_shape)
        images = torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(shape, dtype=torch.uint8)
        return names, as_float(images)

    def report_skipped(self, count: int) -> None:
        """Prints how many images were skipped if only ``count`` were read.

        Raises:
            DataError: none was read.
        """
        total = len(self.names) + self.skipped
        if count == total:
            return
        if count == 0:
            raise DataError(f"none of the {total} images can be read; the lines above say why")
        print_message(f"skipped {total - count} of {total} images, which cannot be read")


def _print_skipped(error: DataError) -> None:
    print_message(f"skipped: {error}")


def open_items(images: Images, skip_unreadable: bool = False) -> Items:
    """The images of an argument of :func:`predict`; files are not read yet.

    Args:
        images: as of :func:`predict`.
        skip_unreadable: print a line about each path in which there is nothing to read, and leave it out; if there is
            nothing in any of several, :meth:`Items.report_skipped` raises.

    Raises:
        DataError: a path that does not exist, or a folder or archive without image files.
    """
    if isinstance(images, ImageSet):
        images = images.images
    if isinstance(images, Tensor):
        return Items(list(range(len(images))), images)
    paths = [images] if isinstance(images, str | Path) else list(images)
    readers: dict[str, Callable[[], bytes]] = {}
    skipped = 0
    for path in paths:
        try:
            readers |= _readers(Path(path))
        except DataError as error:
            if not skip_unreadable or len(paths) == 1:
                raise
            _print_skipped(error)
            skipped += 1
    return Items(list(readers), None, tuple(readers.values()), skipped)


def _readers(path: Path) -> dict[str, Callable[[], bytes]]:
    """Name and reader of the image file, or of the image files in a folder or archive."""
    if not path.exists():
        raise DataError(f"{path}: no such image file")
    if path.is_dir() or path.name.lower().endswith(SUFFIXES):
        return image_readers(path)

    return {str(path): lambda: read_file(path, str(path))}


def _check_size(data: bytes, shape: tuple[int, int, int], where: str) -> None:
    """Raises :class:`DataError` if an encoded image has another height and width than ``shape`` (C, H, W)."""
    height, width, _ = read_header(data, where)
    if (height, width) != shape[1:]:
        raise DataError(
            f"{where}: {width} x {height} pixels, but the classifier takes {shape[2]} x {shape[1]}; resize it first, "
            "or add --resize (in Python resize=True)"
        )


def pixels_of(data: bytes, shape: tuple[int, int, int], where: str) -> NDArray[np.uint8]:
    """The pixels ``[C, H, W]`` of an encoded image, cropped and resized to ``shape``, in its number of channels.

    Args:
        data: content of the file.
        shape: (C, H, W) of the result.
        where: the file, for messages.

    Raises:
        DataError: it cannot be decoded.
    """
    channels, height, width = shape
    picture = decode(data, (3, height, width), where)
    if channels > 1:
        return picture
    grey = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).convert("L")
    return np.asarray(grey)[None]
