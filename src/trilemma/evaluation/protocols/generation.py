"""The protocol ``generation``: a set of samples beside its starts and beside real images, against training images."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import Splits
from trilemma.data.pictures import EXTENSIONS, decode, read_header
from trilemma.errors import ConfigError, DataError
from trilemma.evaluation.evaluate import environment
from trilemma.evaluation.protocol import Measurement, Protocol, Quantity, Request
from trilemma.metrics.features import MANIFOLD, extract, feature_figures, figure_names
from trilemma.metrics.frechet import Extractor, penultimate, to_levels
from trilemma.metrics.inception import inception

VERSION = 1
FRESH, UNSTATED = "fresh", "origin-unstated"


@dataclass(frozen=True)
class SampleSet:
    """Generated images as they were stored.

    Attributes:
        name: of the way they were made, or of the file.
        images: uint8 ``[N, C, H, W]``, in an order that any number of the first is fair to.
        starts: where each of them began, or ``None`` if that is not known.
        origin: ``fresh`` chains, a ``replay-buffer``, or what else the maker says; nothing is filtered here.
        checkpoint: of the classifier that made them, as far as it is known.
        seed: of their making, or ``None``.
    """

    name: str
    images: Tensor
    starts: Tensor | None = None
    origin: str = UNSTATED
    checkpoint: Mapping[str, Any] | None = None
    seed: int | None = None


def read_samples(path: str | Path, origin: str | None = None) -> SampleSet:
    """Samples from a file or folder.

    - what ``trilemma generate`` wrote: ``NAME.npz`` or the folder ``NAME`` beside it; fresh chains with their starts
    - any ``.npz`` with ``samples`` or ``arr_0``, uint8 ``[N, H, W, C]``
    - a folder of image files of one size; folders in it do not matter

    Args:
        path: the file or folder.
        origin: what the samples are, where the record beside them does not say.

    Raises:
        DataError: nothing there, or no such images.
    """
    place = Path(path)
    archive = place if place.suffix == ".npz" else place.with_name(place.name + ".npz")
    if archive.is_file():
        return _read_archive(archive, origin)
    if not place.is_dir():
        raise DataError(f"{path}: no such samples; give a folder of images or an .npz file")
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in EXTENSIONS)
    if not files:
        raise DataError(f"{path}: holds no image file; give a folder of images or an .npz file")
    shapes = {_shape(file) for file in files}
    if len(shapes) > 1:
        sizes = " and ".join(f"{h}x{w}" for h, w in sorted({shape[1:] for shape in shapes})[:2])
        raise DataError(
            f"{path}: images of different form ({sizes or 'grey and colour'}); store them all in one"
        )
    pixels = np.stack([decode(file.read_bytes(), next(iter(shapes)), str(file)) for file in files])
    return SampleSet(place.name, torch.from_numpy(pixels), origin=origin or UNSTATED)


def _shape(file: Path) -> tuple[int, int, int]:
    height, width, colour = read_header(file.read_bytes(), str(file))
    return 3 if colour else 1, height, width


def _read_archive(file: Path, origin: str | None) -> SampleSet:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("samples", "arr_0", "starts") if name in arrays}
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as an .npz file ({error}); write it again") from None
    pixels = found.get("samples", found.get("arr_0"))
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise DataError(
            f"{file}: needs an array 'samples' or 'arr_0', uint8 [N, H, W, C] with 1 or 3 channels"
        )
    record_file = file.with_suffix(".json")
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else {}
    both = {
        name: torch.from_numpy(array).permute(0, 3, 1, 2)
        for name, array in (("samples", pixels), ("starts", found.get("starts")))
        if array is not None
    }
    return SampleSet(
        record.get("name", file.stem),
        both["samples"],
        both.get("starts"),
        origin or (FRESH if record else UNSTATED),
        record.get("checkpoint"),
        record.get("seed"),
    )


def find_extractor(name: str, device: torch.device | str = "cpu") -> tuple[Extractor, Classifier | None]:
    """``inception``, ``inception:WEIGHTS``, or the classifier of a run or file; of the last also the classifier.

    A classifier's extractor is called by its method and data, such as ``standard-digits``.

    Raises:
        CheckpointError: no such classifier or weights.
        MissingExtraError: Inception without its extra.
    """
    from trilemma.classifier.load import load

    first, _, weights = name.partition(":")
    if first == "inception":
        return inception(weights or None, device), None
    clf = load(name).to(device)
    return classifier_extractor(clf, Path(name).stem), clf


def classifier_extractor(clf: Classifier, fallback: str = "classifier") -> Extractor:
    """:func:`trilemma.metrics.frechet.penultimate` of a classifier, under a name that its own record gives."""
    known = [str(clf.about[key]) for key in ("method", "data") if key in clf.about]
    return penultimate(clf, "-".join(known) or fallback)


def measure_samples(
    samples: SampleSet, data: Splits, extractor: Extractor, *, seed: int = 0
) -> dict[str, Any]:
    """The row of a set of samples.

    Samples, their starts, and as many real test images are each compared with all training images in the features of
    ``extractor``. All are 8-bit images; none is left out.

    Args:
        samples: at least 2.
        data: reference and real images: ``train`` and ``test``.
        extractor: must not be the classifier that made them.
        seed: of the subsets and splits of the figures.

    Returns:
        A row as of :func:`trilemma.evaluate`. Its name holds the distance's name, the samples, their number and
        origin, and
        the reference. ``value`` is the distance of the samples, ``also`` their other figures and the distance of starts
        and of real images, ``facts["sets"]`` all figures of ``start``, ``sample`` and ``real``.

    Raises:
        ConfigError: fewer than 2 samples.
        DataError: samples of another shape than the data.
    """
    count = len(samples.images)
    if count < 2:
        raise ConfigError(f"{samples.name}: {count} sample; a distance between sets needs at least 2")
    if tuple(samples.images.shape[1:]) != data.train.image_shape:
        shapes = ("x".join(map(str, shape)) for shape in (samples.images.shape[1:], data.train.image_shape))
        raise DataError(
            "{}: samples are {} (C, H, W), but {} has {}".format(samples.name, *shapes, data.train.name)
        )
    began = time.perf_counter()
    train = data.train
    reference = extract(extractor, train.first(len(train)).images)
    sets = {"start": samples.starts, "sample": samples.images, "real": data.test.first(count).images}
    figures = {
        name: feature_figures(extract(extractor, to_levels(images)), reference, seed)
        for name, images in sets.items()
        if images is not None
    }
    names = figure_names(extractor)
    sample = figures["sample"]
    also = {names[key]: sample[key] for key in ("kernel", "score")} | {key: sample[key] for key in MANIFOLD}
    also |= {f"of {name}": figures[name]["frechet"] for name in ("start", "real") if name in figures}
    whole = f"{train.name}-{train.split}-{len(train)}"
    return {
        "protocol": f"{names['frechet']}:{samples.name}:{count}-{samples.origin}:{whole}",
        "version": VERSION, "quantity": names["frechet"], "better": "lower",
        "value": sample["frechet"], "lower": None, "upper": None,
        "also": {name: value for name, value in also.items() if value is not None},
        "count": count,
        "data": {
            "name": train.name, "split": train.split, "images": f"all {len(train)}",
            "extractor": f"{extractor.name} {extractor.about.get('weights', '')}".strip(),
        },
        "threat": None, "seed": seed, "checkpoint": dict(samples.checkpoint or {}),
        "seconds": round(time.perf_counter() - began, 2),
        "facts": {
            "names": names, "sets": figures, "extractor": extractor.about,
            "samples": {"name": samples.name, "origin": samples.origin, "seed": samples.seed, "filtered": "none"},
        },
        **environment(torch.device(extractor.device)),
    }  # fmt: skip


def _needs_samples(request: Request) -> Measurement:
    """A classifier alone has no samples to judge."""
    raise ConfigError(
        "generation: judges samples; use `trilemma evaluate RUN --samples DIR --extractor RUN_OR_FILE`, or "
        "trilemma.evaluation.protocols.generation.measure_samples"
    )


generation = Protocol(VERSION, False, _needs_samples, Quantity("FD", "lower"))
