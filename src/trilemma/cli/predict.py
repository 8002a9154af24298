"""``trilemma predict``: class, confidence and energy of image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from trilemma.cli.common import (
    Device,
    Json,
    Source,
    argument,
    find_run,
    load_classifier,
    print_json,
    print_table,
)
from trilemma.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from trilemma.classifier.classifier import Classifier

BATCH_SIZE = 256


def predict(
    source: Source,
    images: Annotated[list[Path], argument("IMAGES...", "image files")],
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Prints class, confidence and energy E(x) of image files.

    Images are converted to the classifier's format: alpha is composited over black; the centre is cropped to the
    classifier's aspect ratio and resized (box filter to shrink, bilinear to enlarge); for a grey classifier,
    colour is converted to luminance (0.299 R + 0.587 G + 0.114 B); for a colour classifier, grey is repeated in three
    channels. A lower E(x) means that this classifier rates the image as more similar to the training images.

    \b
    Examples:
      trilemma predict runs/digits-eb-jdat photo.png
      trilemma predict model.safetensors scans/*.png --json
    """
    for path in images:
        if not path.is_file():
            raise DataError(
                f"{path}: {'is a folder; expected image files' if path.is_dir() else 'no such image file'}"
            )
    find_run(source)
    clf = load_classifier(source, device)
    rows = predictions(clf, images)
    if as_json:
        print_json(rows)
    else:
        print_table(rows)


def predictions(clf: Classifier, paths: list[Path]) -> list[dict[str, Any]]:
    """Returns one table row per file: class, confidence in [0, 1], marginal energy."""
    import torch

    from trilemma.energies import marginal_energy

    rows: list[dict[str, Any]] = []
    for start in range(0, len(paths), BATCH_SIZE):
        batch = paths[start : start + BATCH_SIZE]
        with torch.no_grad():
            logits = clf(read_images(batch, clf.image_shape).to(clf.device))
        confidence, label = logits.softmax(1).max(1)
        columns = (batch, label.tolist(), confidence.tolist(), marginal_energy(logits).tolist())
        rows += [
            {"image": str(path), "class": clf.class_names[k], "confidence": p, "marginal energy": energy}
            for path, k, p, energy in zip(*columns, strict=True)
        ]
    return rows


def read_images(paths: list[Path], shape: tuple[int, int, int] | None) -> Tensor:
    """Returns the images as float32 ``[N, C, H, W]`` in [0, 1], cropped and resized to ``shape`` (C, H, W).

    Raises:
        DataError: a file is missing or cannot be decoded.
        ConfigError: ``shape`` is ``None``.
    """
    import numpy as np
    import torch
    from PIL import Image

    from trilemma.data.pictures import decode

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
