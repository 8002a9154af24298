"""``trilemma.score``: per image, how far the classifier rates it from its training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import ImageSet
from trilemma.data.layout import LayoutError
from trilemma.data.outlier_images import convert_channels
from trilemma.data.pictures import endings
from trilemma.data.sources import load_images, load_unlabelled
from trilemma.energies import marginal_energy
from trilemma.errors import CheckpointError, ConfigError, DataError
from trilemma.evaluation.evaluate import run_splits
from trilemma.evaluation.predict import BATCH_SIZE, eval_logits, open_items
from trilemma.evaluation.source import Data, Source, find_run, open_images, open_source
from trilemma.printing import print_message
from trilemma.tables import Records
from trilemma.training.statistics import energy_quantiles


def score(
    source: Source,
    data: Data | Tensor | list[str | Path] | None = None,
    images: int | None = None,
    *,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
    skip_unreadable: bool = False,
    training_data: Data | None = None,
) -> Records:
    """Energy, class, confidence and out-of-distribution percentile of each image.

    Args:
        source: a run folder, a classifier file, a :class:`Run`, a :class:`Classifier` or a network; its state is
            restored.
        data: name of a data set or a path (of both, the test images as in :func:`trilemma.evaluate`),
            ``(images, labels)`` or an image set; without labels, one image file, a list of files, folders and archives,
            or a tensor ``[N, C, H, W]``. By default the run's own test images.
        images: number of labelled images, the first ones of a fixed stratified order; ``None`` for all.
        device: device to run on; by default that of a given classifier, and the CPU for everything that is loaded.
        batch_size: images per forward pass.
        skip_unreadable: print a line about each file that cannot be read, and leave it out; otherwise it is an error.
        training_data: the classifier's training images, for one that stores no energies of them: name of a data set, a
            path (of both, the training part), ``(images, labels)`` or an image set. By default those of the run.

    Returns:
        One row per image: ``image`` (path, or index), ``label`` (name of the true class; only of labelled images),
        ``class`` (name of the predicted class), ``confidence`` in [0, 1], ``marginal energy`` E(x) in logit units, and
        ``percentile``: the percentage of training images whose E(x) is below that of the image, from 0 to 100. Images
        unlike the training images have percentiles near 100. It is interpolated between the 1,001 quantiles of E(x)
        over at most 5,000 training images, without augmentation, that a finished run stores in the classifier file; of
        ``training_data``, the same quantiles are computed. Without either it is ``None``, and a line on standard error
        says so.

    Raises:
        ConfigError: a count below 1, or a plain network without labelled data.
        DataError: data that cannot be read or have other classes.
        ImageError: images of a shape that the classifier does not take.
        CheckpointError: an energy is not finite.
    """
    if images is not None and images < 1:
        raise ConfigError(f"images: {images}; must be at least 1, or None for all")
    if isinstance(data, Tensor | list) or (isinstance(data, str | Path) and _is_image_file(Path(data))):
        items, labels = open_items(data, skip_unreadable), None
        clf = open_source(source, items.tensor, device)
    else:
        clf = open_source(source, data, device)
        image_set: ImageSet = open_images(clf, find_run(source), data)
        part = image_set if images is None or images >= len(image_set) else image_set.first(images)
        items, labels = open_items(part), part.labels.tolist()
    quantiles = _quantiles(clf, source, training_data)
    rows = Records()
    for number, batch in enumerate(items.split(batch_size)):
        start = number * batch_size
        names, pixels = batch.read(clf, skip_unreadable)
        if names:
            part_labels = None if labels is None else labels[start : start + batch_size]
            rows += _rows(clf, names, pixels, part_labels, quantiles)
    items.report_skipped(len(rows))
    return rows


def _quantiles(clf: Classifier, source: Source, training_data: Data | None) -> Tensor | None:
    """Evenly spaced quantiles of E(x) over training images; ``None``, with a printed line, if they are unknown.

    They are those of ``training_data``, those stored with the classifier, or those of the training images of the run.
    """
    if training_data is not None:
        return energy_quantiles(clf, _training_images(clf, training_data))
    if "energy_quantiles" in clf.statistics:
        return clf.statistics["energy_quantiles"]
    run, reason = find_run(source), ""
    if run is not None:
        try:
            return energy_quantiles(clf, run_splits(run.path).train)
        except DataError as error:
            reason = f", and those of its run cannot be read ({error})"
    print_message(
        f"percentile: not known, as the classifier stores no energies of its training images{reason}; add --data NAME "
        "or a path of them (in Python training_data=)"
    )
    return None


def _training_images(clf: Classifier, data: Data) -> ImageSet:
    """The training part of ``data`` in the size and the channels of the classifier."""
    if isinstance(data, ImageSet):
        return data
    if not isinstance(data, str | Path):
        return load_images(data, "train")
    channels, *sides = clf.image_shape or (None,)
    size = (sides[0], sides[1]) if sides else None
    try:
        images = load_images(data, "train", size=size)
    except LayoutError:
        images = load_unlabelled(data, "train", size)
    return images if channels is None else convert_channels(images, channels)


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in endings() and path.is_file()


def _rows(
    clf: Classifier,
    names: list[str] | list[int],
    pixels: Tensor,
    labels: list[int] | None,
    quantiles: Tensor | None,
) -> list[dict[str, Any]]:
    logits = eval_logits(clf, pixels)
    energy = marginal_energy(logits)
    if not bool(torch.isfinite(energy).all()):
        raise CheckpointError(
            f"score: E(x) of image {names[int((~torch.isfinite(energy)).nonzero()[0])]} is not finite; the "
            "classifier has diverged, use an earlier checkpoint"
        )
    confidence, predicted = logits.softmax(1).max(1)
    ranks = None if quantiles is None else energy_percentiles(quantiles, energy)
    return [
        {
            "image": name,
            **({} if labels is None else {"label": clf.class_names[labels[k]]}),
            "class": clf.class_names[int(predicted[k])],
            "confidence": float(confidence[k]),
            "marginal energy": float(energy[k]),
            "percentile": None if ranks is None else float(ranks[k]),
        }
        for k, name in enumerate(names)
    ]


def energy_percentiles(quantiles: Tensor, energy: Tensor) -> Tensor:
    """The percentage of training images whose E(x) is below each of ``energy``, ``[N]``.

    Args:
        quantiles: evenly spaced quantiles of E(x) over training images, ascending, from the minimum to the maximum;
            between two of them the percentage is interpolated.
        energy: ``[N]``.
    """
    quantiles = quantiles.to(energy)
    right = torch.searchsorted(quantiles, energy).clamp(1, len(quantiles) - 1)
    low, high = quantiles[right - 1], quantiles[right]
    share = ((energy - low) / (high - low).clamp_min(torch.finfo(energy.dtype).tiny)).clamp(0.0, 1.0)
    return 100 * (right - 1 + share) / (len(quantiles) - 1)
