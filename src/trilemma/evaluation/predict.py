"""``trilemma.predict``: class, confidence and energy of images, from files or from memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.data.image_files import folder_images
from trilemma.data.image_set import ImageSet, as_float
from trilemma.data.pictures import decode
from trilemma.energies import marginal_energy
from trilemma.errors import ConfigError, DataError
from trilemma.evaluation.source import Source, open_source
from trilemma.tables import Records

BATCH_SIZE = 256

# Image files and folders of image files; or images in memory.
Images = str | Path | Sequence[str | Path] | Tensor | ImageSet


def predict(
    source: Source, images: Images, *, device: torch.device | str | None = None, batch_size: int = BATCH_SIZE
) -> Records:
    """Class, confidence and energy E(x) of images.

    Image files are converted to the format of the classifier: alpha is composited over black; the centre is cropped to
    the aspect ratio of the classifier's images and resized; colour becomes luminance for a grey classifier, and grey is
    repeated for a colour classifier. A lower E(x) means that the classifier rates the image as more similar to the
    training images.

    Args:
        source: a run folder, a classifier file, a :class:`Run` or a :class:`Classifier`; its state is restored.
        images: an image file, a folder (all image files in it, at any depth, sorted by path), or several of these; a
            tensor ``[N, C, H, W]``, uint8, or float in [0, 1]; or an image set.
        device: device to run on; by default that of a given classifier, and the CPU for everything that is loaded.
        batch_size: images per forward pass.

    Returns:
        One row per image: ``image`` (path, or index in memory), ``class`` (name), ``confidence`` in [0, 1] and
        ``marginal energy`` in logit units.

    Raises:
        DataError: a file that is missing or cannot be decoded, or a folder without image files.
        ConfigError: files for a classifier that stores no image shape.
        ImageError: tensors that the classifier does not take.
    """
    items = open_items(images)
    clf = open_source(source, items.tensor, device)
    rows = Records()
    for part in items.split(batch_size):
        logits = eval_logits(clf, part.read(clf))
        confidence, label = logits.softmax(1).max(1)
        columns = (part.names, label.tolist(), confidence.tolist(), marginal_energy(logits).tolist())
        rows += [
            {"image": name, "class": clf.class_names[k], "confidence": p, "marginal energy": energy}
            for name, k, p, energy in zip(*columns, strict=True)
        ]
    return rows


@torch.no_grad()
def eval_logits(clf: Classifier, images: Tensor) -> Tensor:
    """Logits ``[N, K]`` in eval mode, on the CPU; the state of ``clf`` is restored."""
    with inner_loop(clf, "eval"):
        logits: Tensor = clf(images.to(clf.device))
    return logits.cpu()


@dataclass(frozen=True)
class Items:
    """Images with the names that rows give them.

    Attributes:
        names: the path of a file; the index of an image in memory.
        tensor: uint8 or float images ``[N, C, H, W]``, or ``None`` for files.
    """

    names: list[str] | list[int]
    tensor: Tensor | None = None

    def split(self, size: int) -> list[Items]:
        """Parts of at most ``size`` images."""
        spans = [slice(start, start + size) for start in range(0, len(self.names), size)]
        return [Items(self.names[s], None if self.tensor is None else self.tensor[s]) for s in spans]

    def read(self, clf: Classifier) -> Tensor:
        """The images as float32 ``[N, C, H, W]`` in [0, 1]."""
        if self.tensor is not None:
            return as_float(self.tensor)
        return read_images([Path(name) for name in self.names], clf.image_shape)  # type: ignore[arg-type]


def open_items(images: Images) -> Items:
    """The images of an argument of :func:`predict`; files are not read yet.

    Raises:
        DataError: a path that does not exist, or a folder without image files.
    """
    if isinstance(images, ImageSet):
        images = images.images
    if isinstance(images, Tensor):
        return Items(list(range(len(images))), images)
    paths = [images] if isinstance(images, str | Path) else list(images)
    return Items([str(file) for path in paths for file in image_files(Path(path))])


def image_files(path: Path) -> list[Path]:
    """The file itself, or the image files of a folder at any depth, sorted by path; what is not counted is printed.

    Raises:
        DataError: no such file, or a folder without image files.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such image file")
    return folder_images(path)


def read_images(paths: Sequence[Path], shape: tuple[int, int, int] | None) -> Tensor:
    """Returns the images as float32 ``[N, C, H, W]`` in [0, 1], cropped and resized to ``shape`` (C, H, W).

    Raises:
        DataError: a file is missing or cannot be decoded.
        ConfigError: ``shape`` is ``None``.
    """
    if shape is None:
        raise ConfigError("this classifier stores no image shape; create it with image_shape=(C, H, W)")
    channels, height, width = shape
    pixels = []
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        picture = decode(data, (3, height, width), str(path))
        if channels == 1:
            grey = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).convert("L")
            picture = np.asarray(grey)[None]
        pixels.append(picture)
    return torch.from_numpy(np.stack(pixels)).float().div_(255)
