"""``trilemma score``: energy, class and out-of-distribution percentile of image files."""

from __future__ import annotations

import csv
import sys
from typing import Annotated, Literal

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import Device, Json, choose_device, option, print_json, print_table
from trilemma.cli.model import ImagePaths, split_images, with_classifier

Format = Annotated[Literal["table", "csv", "json"], option("--format", "format of the output")]


@with_classifier
def score(
    classifier: ClassifierSource,
    images: ImagePaths = None,
    form: Format = "table",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Prints energy and out-of-distribution percentile of image files.

    The energy E(x) says how unlike the training images an image is for this classifier. The percentile is the
    percentage of training images with a lower E(x): images unlike the training images have percentiles near 100. It is
    empty for a classifier that stores no energies of its training images. IMAGES are image files, and folders and
    archives of them. A file that cannot be read is skipped with a message; if none can be read, the exit code is 2.

    \b
    Examples:
      trilemma score runs/digits-eb-jdat scans/
      trilemma score model.safetensors scans.zip photo.jpg --format csv
    """
    classifier, paths = split_images(classifier, images)
    classifier.check()
    from trilemma.evaluation.score import score as score_images

    rows = score_images(classifier, [*paths], device=choose_device(device), skip_unreadable=True)
    if as_json or form == "json":
        print_json(rows)
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print_table(rows)
