"""Checks of the statistics of the training images that a classifier file holds: types, shapes and ranges.

They are computed by :mod:`trilemma.training.statistics`, and chains start from them and are guided by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from trilemma.headers import MOST_PIXEL_VALUES, NetworkHeader

# Of the names of statistics in a classifier file.
PREFIX = "statistics."
# Statistics of the class PCA, all of which are needed.
PCA = ("means", "components", "singular_values", "counts", "explained_variance", "image_shape")
_RANGES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "energy_std": (lambda value: value >= 0, "at least 0"),
    "energy_quantiles": (lambda value: value.diff() >= 0, "ascending"),
    "logit_covariance": (lambda value: value.diagonal(dim1=1, dim2=2) >= 0, "of variances of at least 0"),
    "pca.singular_values": (lambda value: value >= 0, "at least 0"),
    "pca.counts": (lambda value: (value >= 1) & (value < 2**53), "at least 1"),
    "pca.explained_variance": (lambda value: (value > 0) & (value <= 1), "in (0, 1]"),
}


def wrong_statistic(header: NetworkHeader, statistics: Mapping[str, Tensor]) -> str | None:
    """What is wrong with statistics, as text; ``None`` if nothing is.

    Args:
        header: number of classes and image shape.
        statistics: tensors by name with :data:`PREFIX`; unknown names are not checked.
    """
    values = {name.removeprefix(PREFIX): value for name, value in statistics.items()}
    if not values.keys().isdisjoint({f"pca.{name}" for name in PCA}):
        lacking = [name for name in PCA if f"pca.{name}" not in values]
        if lacking:
            return f"the class PCA lacks {', '.join(lacking)}"
        if (wrong := _wrong_shape(header, values["pca.image_shape"])) is not None:
            return wrong
    for name, shape in _shapes(header.num_classes, values).items():
        if (wrong := _wrong(name, values[name], shape)) is not None:
            return wrong
    return None


def as_computed(statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Statistics of the types that chains compute with: those of logits and pixels as float32."""
    return {
        name: value.float() if value.dtype == torch.float64 and value.ndim else value
        for name, value in statistics.items()
    }


def _wrong_shape(header: NetworkHeader, stored: Tensor) -> str | None:
    """What is wrong with the image shape of the class PCA."""
    if stored.dtype != torch.int64 or stored.shape != (3,):
        return f"{PREFIX}pca.image_shape is {_kind(stored)}, not int64 [3]"
    shape = stored.tolist()
    if min(shape) < 1 or max(shape) > MOST_PIXEL_VALUES or tuple(shape) != (header.shape or tuple(shape)):
        return f"{PREFIX}pca.image_shape is {shape}, but images are {list(header.shape or ())}"
    return None


def _shapes(classes: int, values: Mapping[str, Tensor]) -> dict[str, tuple[int | None, ...]]:
    """The expected shapes of the statistics that are stored; ``None`` for any length."""
    pixels = prod(values["pca.image_shape"].tolist()) if "pca.image_shape" in values else 0
    singular = values.get("pca.singular_values", torch.empty(0, 0))
    components = singular.shape[1] if singular.ndim == 2 else None
    shapes: dict[str, tuple[int | None, ...]] = {
        "energy_mean": (classes,),
        "energy_std": (classes,),
        "energy_quantiles": (None,),
        "logit_mean": (classes, classes),
        "logit_covariance": (classes, classes, classes),
        "pca.means": (classes, pixels),
        "pca.singular_values": (classes, None),
        "pca.components": (classes, components, pixels),
        "pca.counts": (classes,),
        "pca.explained_variance": (),
    }
    return {name: shape for name, shape in shapes.items() if name in values}


def _wrong(name: str, value: Tensor, shape: tuple[int | None, ...]) -> str | None:
    """What is wrong with one statistic."""
    types: tuple[torch.dtype, ...] = (
        (torch.int64,) if name == "pca.counts" else (torch.float32, torch.float64)
    )
    # The largest ones are stored in half precision.
    types += (torch.float16,) if name in ("pca.means", "pca.components") else ()
    fits = len(shape) == value.ndim and all(
        length == expected if expected is not None else length >= 1
        for length, expected in zip(value.shape, shape, strict=True)
    )
    if value.dtype not in types or not fits:
        expected = ", ".join("N" if length is None else str(length) for length in shape)
        return f"{PREFIX}{name} is {_kind(value)}, not {str(types[0]).removeprefix('torch.')} [{expected}]"
    if not bool(torch.isfinite(value).all()):
        return f"{PREFIX}{name} has values that are not finite, as of a classifier that has diverged"
    if name in _RANGES:
        in_range, text = _RANGES[name]
        if not bool(in_range(value).all()):
            return f"{PREFIX}{name} has values that are not {text}"
    return None


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
