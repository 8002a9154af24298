"""The protocol ``generation``: distances of samples, their starts and real images from the training images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.data.containers import read_file
from trilemma.data.image_files import folder_images
from trilemma.data.image_set import Splits, as_float
from trilemma.data.pictures import decode, read_header
from trilemma.errors import ConfigError, DataError
from trilemma.evaluation.evaluate import environment, which_images
from trilemma.evaluation.protocol import Measurement, Protocol, Quantity, Request
from trilemma.files import file_sha256, read_npz
from trilemma.metrics.efficientnet import NAME as EFFICIENTNET
from trilemma.metrics.efficientnet import efficientnet_lite0
from trilemma.metrics.features import MANIFOLD, Features, extract, feature_metrics, metric_names
from trilemma.metrics.frechet import Extractor, penultimate, to_levels
from trilemma.metrics.generation import memorisation, nearest_distance
from trilemma.metrics.inception import inception
from trilemma.metrics.interval import FEWEST, WORDS, bootstrap_interval
from trilemma.runs.records import read_record

if TYPE_CHECKING:
    from trilemma.evaluation.samples import Generated

VERSION = 1
FRESH, UNSTATED = "fresh", "origin-unstated"
# Metrics of a set that have an interval if there are several draws.
WITH_INTERVAL = ("frechet", "kernel", "score", *MANIFOLD, "distance", "distance_ratio", "near_copies")


@dataclass(frozen=True)
class SampleSet:
    """Generated images as stored.

    Attributes:
        name: name of their settings, or of the file.
        images: uint8 ``[N, C, H, W]``, ordered so that every prefix is class-balanced.
        starts: start of each sample's chain, like ``images``; ``None`` if unknown.
        origin: ``fresh`` chains, a ``replay-buffer``, or another word of their author; no image is filtered here.
        checkpoint: record of the classifier that generated them; ``None`` if unknown.
        seed: seed of their generation, or ``None``.
    """

    name: str
    images: Tensor
    starts: Tensor | None = None
    origin: str = UNSTATED
    checkpoint: Mapping[str, Any] | None = None
    seed: int | None = None


def read_samples(path: str | Path, origin: str | None = None) -> SampleSet:
    """Reads samples from a file or folder, one of:

    - output of ``trilemma generate``: ``NAME.npz`` or the folder ``NAME`` beside it; fresh chains with their starts
    - any ``.npz`` with ``samples`` or ``arr_0``, uint8 ``[N, H, W, C]``
    - a folder of image files of one size, also in subfolders

    Args:
        path: the file or folder.
        origin: origin of the samples; by default ``fresh`` for output of ``trilemma generate``, else unstated.

    Raises:
        DataError: the path does not exist or holds no such images.
    """
    source = Path(path)
    archive = source if source.suffix == ".npz" else source.with_name(source.name + ".npz")
    if archive.is_file():
        return _read_archive(archive, origin)
    if not source.is_dir():
        raise DataError(f"{path}: no such samples; give a folder of images or an .npz file")
    files = folder_images(source)
    shapes = {_shape(file) for file in files}
    if len(shapes) > 1:
        sizes = " and ".join(f"{h}x{w}" for h, w in sorted({shape[1:] for shape in shapes})[:2])
        raise DataError(
            f"{path}: images of different form ({sizes or 'grey and colour'}); store all in one size and mode"
        )
    pixels = np.stack([decode(read_file(file, str(file)), next(iter(shapes)), str(file)) for file in files])
    return SampleSet(source.name, torch.from_numpy(pixels), origin=origin or UNSTATED)


def sample_set(generated: Generated) -> SampleSet:
    """Samples that have just been generated, as :func:`read_samples` returns them from their archive."""
    record = generated.record
    return SampleSet(
        record["name"],
        to_levels(generated.images),
        to_levels(generated.starts),
        FRESH,
        record["checkpoint"],
        record["seed"],
    )


def _shape(file: Path) -> tuple[int, int, int]:
    """Channels, height and width of an image file."""
    height, width, colour = read_header(read_file(file, str(file)), str(file))
    return 3 if colour else 1, height, width


def _read_archive(file: Path, origin: str | None) -> SampleSet:
    """Reads an ``.npz`` file, and the record of ``trilemma generate`` beside it if there is one."""
    try:
        arrays = read_npz(file, ("samples", "arr_0", "starts"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as an .npz file ({error}); write it again") from None
    pixels = arrays.get("samples", arrays.get("arr_0"))
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise DataError(
            f"{file}: has no array 'samples' or 'arr_0', uint8 [N, H, W, C] with 1 or 3 channels; add it"
        )
    record_file = file.with_suffix(".json")
    record = read_record(record_file) if record_file.exists() else {}
    if record.get("archive_sha256") not in (None, file_sha256(file)):
        raise DataError(f"{file}: not the samples that {record_file} describes; generate them again")
    tensors = {
        name: torch.from_numpy(array).permute(0, 3, 1, 2)
        for name, array in (("samples", pixels), ("starts", arrays.get("starts")))
        if array is not None
    }
    return SampleSet(
        record.get("name", file.stem),
        tensors["samples"],
        tensors.get("starts"),
        origin or (FRESH if record else UNSTATED),
        record.get("checkpoint"),
        record.get("seed"),
    )


def load_extractor(name: str, device: torch.device | str = "cpu") -> tuple[Extractor, Classifier | None]:
    """The feature extractor called ``name``, and the classifier that it is taken from, if any.

    An extractor from a classifier is named by the classifier's method and data, such as ``standard-digits``.

    Args:
        name: ``inception``, ``inception:WEIGHTS``, ``efficientnet-lite0``, or the path of a run or classifier file.
        device: device to run on.

    Raises:
        CheckpointError: no such classifier or weights.
        MissingExtraError: the extra for the network is not installed.
    """
    from trilemma.classifier.load import load

    first, _, weights = name.partition(":")
    if name == EFFICIENTNET:
        return efficientnet_lite0(device), None
    if first == "inception":
        return inception(weights or None, device), None
    clf = load(name).to(device)
    return classifier_extractor(clf, Path(name).stem), clf


def classifier_extractor(clf: Classifier, fallback: str = "classifier") -> Extractor:
    """:func:`trilemma.metrics.frechet.penultimate` of a classifier, named by its method and data or ``fallback``."""
    parts = [str(clf.about[key]) for key in ("method", "data") if key in clf.about]
    return penultimate(clf, "-".join(parts) or fallback)


def measure_samples(
    samples: SampleSet,
    data: Splits,
    extractor: Extractor,
    *,
    seed: int = 0,
    draws: int = 1,
    reference: int | None = None,
) -> dict[str, Any]:
    """The result row of a set of samples.

    Samples, their starts, and the same number of real test images are each compared with the training images, by the
    features of ``extractor``, and by the pixel distance to the nearest training image. All images are in 8 bits; none
    is left out.

    With ``draws`` R, sample i belongs to draw ``i mod R``: R independent draws, if the chains are independent. Every
    metric is the mean of its values for the draws, and has a 95 % interval
    (:func:`trilemma.metrics.interval.bootstrap_interval`), which covers the chains, not the choice of training images.

    Args:
        samples: at least 2 per draw.
        data: ``train`` is the reference, ``test`` the real images.
        extractor: must not be taken from the classifier that generated the samples.
        seed: seed of the random subsets and splits of the metrics.
        draws: number of draws of equal size, 1 or at least 5.
        reference: number of training images whose features are compared, the first ones of a fixed stratified order;
            ``None`` for all. Nearest training images are always those among all.

    Returns:
        A row as of :func:`trilemma.evaluate`. Its name consists of the distance, the samples, their number and origin,
        and the reference. ``value`` is the distance of the samples, ``lower`` and ``upper`` its interval (``None``
        without draws); ``also`` holds their other metrics and the distances of starts and real images;
        ``facts["sets"]`` all metrics of ``start``, ``sample`` and ``real``, with draws also their ``intervals``.

    Raises:
        ConfigError: fewer than 2 samples per draw, draws of different size, 2 to 4 draws, or a reference below 2.
        DataError: the samples have another image shape than the data.
    """
    _check_samples(samples, data, draws, reference)
    started = time.perf_counter()
    train, count = data.train, len(samples.images)
    part = train.first(len(train) if reference is None else min(reference, len(train)))
    measure = _SetMetrics(extractor, train.images, extract(extractor, part.images), draws, seed)
    real = data.test.first(count // draws).images
    sets = {"start": samples.starts, "sample": samples.images, "real": real}
    metrics = measure(sets, real)
    names = metric_names(extractor)
    sample = metrics["sample"]
    also = {names[key]: sample[key] for key in ("kernel", "score")} | {key: sample[key] for key in MANIFOLD}
    also |= {f"of {name}": metrics[name]["frechet"] for name in ("start", "real") if name in metrics}
    also |= {"memorisation ratio": sample["distance_ratio"], "near copies": sample["near_copies"]}
    reference_name = f"{train.name}-{train.split}-{len(part)}"
    counts = str(count) if draws == 1 else f"{draws}x{count // draws}"
    lower, upper = sample.get("intervals", {}).get("frechet", (None, None))
    of_draws = {"count": draws, "images": count // draws, "interval": WORDS}
    return {
        "protocol": f"{names['frechet']}:{samples.name}:{counts}-{samples.origin}:{reference_name}",
        "version": VERSION, "quantity": names["frechet"], "better": "lower",
        "value": sample["frechet"], "lower": lower, "upper": upper,
        "also": {name: value for name, value in also.items() if value is not None},
        "count": count,
        "data": {
            "name": train.name, "split": train.split, "images": which_images(part, len(train)),
            "extractor": f"{extractor.name} {extractor.about.get('weights', '')}".strip(),
        },
        "threat": None, "seed": seed, "checkpoint": dict(samples.checkpoint or {}),
        "seconds": round(time.perf_counter() - started, 2),
        "facts": {
            "names": names, "sets": metrics, "extractor": extractor.about,
            "samples": {"name": samples.name, "origin": samples.origin, "seed": samples.seed, "filtered": "none"},
            **({"draws": of_draws} if draws > 1 else {}),
        },
        **environment(torch.device(extractor.device)),
    }  # fmt: skip


def _check_samples(samples: SampleSet, data: Splits, draws: int, reference: int | None) -> None:
    """The checks of :func:`measure_samples`."""
    count = len(samples.images)
    if draws < 1 or 1 < draws < FEWEST:
        raise ConfigError(f"draws: {draws}; an interval needs at least {FEWEST} draws, or leave draws out")
    if count % draws:
        raise ConfigError(
            f"{samples.name}: {count} samples cannot be divided into {draws} draws of equal size; generate a multiple"
        )
    if count // draws < 2:
        each = "" if draws == 1 else f" for {draws} draws"
        raise ConfigError(f"{samples.name}: {count} samples{each}; a distance between sets needs at least 2")
    if reference is not None and reference < 2:
        raise ConfigError(f"reference: {reference}; must be at least 2, or None for all training images")
    if tuple(samples.images.shape[1:]) != data.train.image_shape:
        shapes = ("x".join(map(str, shape)) for shape in (samples.images.shape[1:], data.train.image_shape))
        raise DataError(
            "{}: samples are {} (C, H, W), but {} has {}".format(samples.name, *shapes, data.train.name)
        )


@dataclass(frozen=True)
class _SetMetrics:
    """Computes the metrics of sets of images against the training images.

    Attributes:
        extractor: features of images.
        train: all training images, for the nearest distance.
        reference: features of those training images that are compared.
        draws: number of draws in the sets, except in the real images.
        seed: seed of the random subsets and splits of the metrics.
    """

    extractor: Extractor
    train: Tensor
    reference: Features
    draws: int
    seed: int

    def __call__(self, sets: Mapping[str, Tensor | None], real: Tensor) -> dict[str, dict[str, Any]]:
        """The metrics of each set, ``[N, C, H, W]``, by name; ``real`` are the real images, a set of one draw."""
        of_real = self._distances(real)
        return {
            name: self._of_set(to_levels(images), of_real, 1 if images is real else self.draws)
            for name, images in sets.items()
            if images is not None
        }

    def _distances(self, images: Tensor) -> Tensor:
        return nearest_distance(as_float(to_levels(images)), self.train)

    def _of_set(self, images: Tensor, of_real: Tensor, draws: int) -> dict[str, Any]:
        features, distances = extract(self.extractor, images), self._distances(images)
        each = [
            feature_metrics(features.every(draws, k), self.reference, self.seed)
            | memorisation(distances[k::draws], of_real)
            for k in range(draws)
        ]
        if draws == 1:
            return each[0]
        values = {key: [metrics[key] for metrics in each] for key in each[0]}
        known = {key: series for key, series in values.items() if None not in series}
        counts = {key: series[0] for key, series in values.items() if key.endswith("count")}
        means = {key: sum(known[key]) / draws if key in known else None for key in values}
        by_draw = {key: known[key] for key in WITH_INTERVAL if key in known}
        intervals = {key: bootstrap_interval(series) for key, series in by_draw.items()}
        return {**means, **counts, "intervals": intervals, "by_draw": by_draw}


def _needs_samples(request: Request) -> Measurement:
    """Refuses to run as a protocol of ``evaluate``, which has no samples.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "generation: evaluates samples; use `trilemma evaluate RUN --samples DIR --extractor RUN_OR_FILE`, or "
        "trilemma.evaluation.protocols.generation.measure_samples"
    )


generation = Protocol(VERSION, False, _needs_samples, Quantity("FD", "lower"))
