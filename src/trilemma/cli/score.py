"""``trilemma score``: energy, class and out-of-distribution percentile of image files."""

from __future__ import annotations

from typing import Annotated, Literal

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import Device, Json, choose_device, option, print_json, print_table
from trilemma.cli.model import ImagePaths, split_images, with_classifier
from trilemma.printing import print_block
from trilemma.tables import csv_table

Format = Annotated[Literal["table", "csv", "json"], option("--format", "format of the output")]
TRAINING_HELP = "training images for the percentile, name or path  [default: those stored in the classifier]"


@with_classifier
def score(
    classifier: ClassifierSource,
    images: ImagePaths = None,
    form: Format = "table",
    data: Annotated[str | None, option("--data NAME", TRAINING_HELP)] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Prints energy, class and percentile of image files.

    The energy E(x) says how unlike the training images an image is for this classifier. The out-of-distribution
    percentile is the percentage of training images with a lower E(x): images unlike the training images have
    percentiles near 100. It is interpolated between 1,001 quantiles of E(x) over at most 5,000 training images, which
    a finished run stores in its classifier file. For a file without them, name its training images by --data; without
    either, the percentile is empty. IMAGES are image files, and folders and archives of them; the classifier comes
    first, or is given by --model. A file that cannot be read is skipped with a message; if none can be read, the exit
    code is 2.

    \b
    Examples:
      trilemma score runs/digits-eb-jdat scans/
      trilemma score scans/ --model runs/digits-eb-jdat --json
      trilemma score model.safetensors scans.zip photo.jpg --format csv
      trilemma score old.safetensors photo.png --data digits
    """
    classifier, paths = split_images(classifier, images)
    classifier.check()
    from trilemma.evaluation.score import score as score_images

    rows = score_images(
        classifier, [*paths], device=choose_device(device), skip_unreadable=True, training_data=data
    )
    if as_json or form == "json":
        print_json(rows)
    elif form == "csv":
        print_block(csv_table(rows))
    else:
        print_table(rows)
