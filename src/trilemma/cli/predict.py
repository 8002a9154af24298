"""``trilemma predict``: class, confidence and energy of image files."""

from __future__ import annotations

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import (
    Device,
    Json,
    choose_device,
    print_json,
    print_table,
)
from trilemma.cli.model import ImagePaths, split_images, with_classifier


@with_classifier
def predict(
    classifier: ClassifierSource,
    images: ImagePaths = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Prints class, confidence and energy E(x) of image files.

    Of a folder or archive, all image files at any depth are used, sorted by path. A file that cannot be read is
    skipped with a message; if none can be read, the exit code is 2. Images are converted to the classifier's
    format: alpha is composited over black; the centre is cropped to the classifier's aspect ratio and resized (box
    filter to shrink, bilinear to enlarge); for a grey classifier, colour is converted to luminance
    (0.299 R + 0.587 G + 0.114 B); for a colour classifier, grey is repeated in three channels. A lower E(x) means
    that this classifier rates the image as more similar to the training images.

    \b
    Examples:
      trilemma predict runs/digits-eb-jdat photo.png
      trilemma predict model.safetensors scans/ --json
      trilemma predict weights.pt photo.png --network preact-resnet --size 32 --classes names.txt
    """
    classifier, paths = split_images(classifier, images)
    classifier.check()
    from trilemma.evaluation.predict import predict as predict_images

    rows = predict_images(classifier, paths, device=choose_device(device), skip_unreadable=True)
    if as_json:
        print_json(rows)
    else:
        print_table(rows)
