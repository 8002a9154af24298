"""``trilemma predict``: class, confidence and energy of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import (
    Device,
    Json,
    argument,
    choose_device,
    print_json,
    print_table,
)
from trilemma.cli.model import with_classifier
from trilemma.errors import DataError


@with_classifier
def predict(
    classifier: ClassifierSource,
    images: Annotated[list[Path], argument("IMAGES...", "image files, or folders of them")],
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Prints class, confidence and energy E(x) of image files.

    Of a folder, all image files at any depth are used, sorted by path. Images are converted to the classifier's
    format: alpha is composited over black; the centre is cropped to the classifier's aspect ratio and resized (box
    filter to shrink, bilinear to enlarge); for a grey classifier, colour is converted to luminance
    (0.299 R + 0.587 G + 0.114 B); for a colour classifier, grey is repeated in three channels. A lower E(x) means
    that this classifier rates the image as more similar to the training images.

    \b
    Examples:
      trilemma predict runs/digits-eb-jdat photo.png
      trilemma predict model.safetensors scans/*.png --json
    """
    for path in images:
        if not path.exists():
            raise DataError(f"{path}: no such image file")
    classifier.check()
    from trilemma.evaluation.predict import predict as predict_images

    rows = predict_images(classifier.open(choose_device(device)), images)
    if as_json:
        print_json(rows)
    else:
        print_table(rows)
