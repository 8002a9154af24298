"""The first argument of the public functions: a run, a file, a classifier or a plain network, and its test images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.opening import name_by_order
from trilemma.classifier.source import ClassifierSource
from trilemma.classifier.wrap import Network, as_classifier
from trilemma.config.registry import DATASETS
from trilemma.data.class_names import names_by_order, numbers
from trilemma.data.image_set import ImageSet, as_float, source_name
from trilemma.data.outlier_images import convert_channels
from trilemma.data.sources import in_class_order, load_images
from trilemma.errors import ConfigError, DataError
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.run import Run

# A run folder, a classifier file or the name of a published network; a description of a classifier; a run; a
# classifier, or a network around which a classifier is made.
Source = str | PathLike[str] | ClassifierSource | Run | nn.Module | Callable[[Tensor], Any]
# A name, a path, or images with labels, as for trilemma.data.given.given_images.
Data = str | Path | ImageSet | Sequence[Any] | Dataset[Any] | DataLoader[Any]


def find_run(source: object) -> RunDirectory | None:
    """The run folder of a source; ``None`` for everything else.

    Raises:
        RunError: a folder that is not a run.
    """
    if isinstance(source, ClassifierSource):
        return source.run
    if not isinstance(source, str | PathLike) or not Path(source).is_dir():
        return None
    return RunDirectory.open(source)


def open_source(
    source: Source, data: Data | Tensor | None = None, device: torch.device | str | None = None
) -> Classifier:
    """The classifier of a source, on the chosen device, with the modes of its layers as they are.

    Args:
        source: what :func:`trilemma.load` takes as its first argument, or a :class:`ClassifierSource`; the :class:`Run`
            that :func:`trilemma.train` returns; a :class:`Classifier`; or any network or function from images in [0, 1]
            to logits.
        data: data whose classes are those of a plain network, or images ``[N, C, H, W]`` for which its outputs are
            counted. Not read for other sources.
        device: device to run on; by default that of a given module, and the CPU for everything that is loaded.

    Raises:
        ConfigError: something else, or a plain network without data.
        UserError: the classifier or the data cannot be loaded.
    """
    if isinstance(source, Run):
        clf = source.classifier
    elif isinstance(source, Classifier):
        clf = source
    elif isinstance(source, str | PathLike | ClassifierSource):
        named = source if isinstance(source, ClassifierSource) else ClassifierSource(os.fspath(source))
        return named.open(device or "cpu", data if isinstance(data, str | Path | ImageSet) else None)
    elif callable(source):
        clf = _wrapped(source, data)
    else:
        raise ConfigError(
            f"source: of type {type(source).__name__}; pass a run folder, a file, a Run, a Classifier or a "
            "torch.nn.Module"
        )
    return clf if device is None else clf.to(device)


def _wrapped(network: Network, data: Data | Tensor | None) -> Classifier:
    """A classifier around ``network`` with the classes of ``data``, or one per output for images."""
    if isinstance(data, Tensor):
        return as_classifier(network, as_float(data[:1]))
    if data is None:
        raise ConfigError(
            "source: a plain network has no data of its own; pass data, or wrap it: "
            "trilemma.Classifier(network, num_classes=K)"
        )
    images = data if isinstance(data, ImageSet) else load_images(data)
    if images.class_names == numbers(images.num_classes):
        # The largest label need not be that of the last output.
        return as_classifier(network, images.float_images([0]))
    names, _ = names_by_order(images.class_names)
    return name_by_order(Classifier(network, images.num_classes, class_names=names), images)


def open_data(
    clf: Classifier, data: Data, root: str | Path | None = None, size: int | None = None
) -> ImageSet:
    """The images to evaluate on, with labels in the classifier's class order.

    Classes are matched by name if both sides have names (:func:`trilemma.data.class_names.match_classes`). Images of a
    name or a path that are not of the classifier's size are resized; those of a path are also converted between grey
    and RGB.

    Args:
        clf: its class names, its image shape and the name of its training data are used.
        data: as in :func:`trilemma.evaluate`.
        root: folder of a named data set.
        size: side in pixels to resize images to, instead of the classifier's.
    """
    if isinstance(data, ImageSet):
        images = in_class_order(data, clf.class_names)
    elif isinstance(data, str | Path):
        images = _read(clf, data, root, size)
    else:
        return load_images(data, class_names=clf.class_names)
    by_order = clf.about.get("class_names", "")
    if by_order in images.selection:
        return images
    return replace(images, selection=", ".join(filter(None, (images.selection, by_order))))


def _read(clf: Classifier, data: str | Path, root: str | Path | None, size: int | None) -> ImageSet:
    """The images of a name or a path, as :func:`open_data` returns them."""
    trained_on = clf.about.get("data")

    def opened(shape: int | tuple[int, int] | None) -> ImageSet:
        return load_images(data, None, root, shape, clf.class_names, trained_on)

    images = opened(size)
    if clf.image_shape is None or size is not None:
        return images
    channels, *sides = clf.image_shape
    if images.image_shape[1:] != tuple(sides):
        images = opened((sides[0], sides[1]))
    return images if str(data) in DATASETS else convert_channels(images, channels)


def open_images(clf: Classifier, run: RunDirectory | None, data: Data | None) -> ImageSet:
    """The images of ``data`` to evaluate on, by default the test images of the run's or the classifier's own data.

    A classifier file stores only the name of its data; a run also stores their path and image size.

    Args:
        clf: its class names give the label order, its image shape the size of other data.
        run: the run that the classifier belongs to, or ``None``.
        data: as in :func:`trilemma.evaluate`. The path of the run's own data means their test images.

    Raises:
        DataError: the data are unknown or cannot be read.
    """
    run_data = None if run is None else run.config().data
    if run_data is not None and (data is None or data == run_data.name or _same_path(data, run_data.root)):
        return open_data(clf, run_data.name, run_data.root, run_data.size)
    if data is None:
        data = source_name(str(clf.about.get("data", "not stored")))
        if data not in DATASETS:
            raise DataError(
                f"the training data of this classifier are not a known data set ({data}); add --data NAME or a path"
            )
    return open_data(clf, data)


def _same_path(data: Data, root: str | Path | None) -> bool:
    """Whether ``data`` is the path ``root``, also by links."""
    if root is None or not isinstance(data, str | Path):
        return False
    return os.path.realpath(data) == os.path.realpath(root)
