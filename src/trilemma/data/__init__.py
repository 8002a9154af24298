"""Data: named data sets, image folders and archives, the loader, augmentation and class statistics.

The names below are imported on first use, so that the table of data sets (:mod:`trilemma.data.catalogue`) can be read
without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilemma.data.augmentation import Augmentation, default_augmentation
    from trilemma.data.batch import Batch
    from trilemma.data.image_set import ImageSet, Splits
    from trilemma.data.loader import Loader
    from trilemma.data.sources import load_images, load_splits
    from trilemma.data.statistics import ClassGaussian, ClassPCA, GaussianBank, class_means

_MODULES = {
    "Augmentation": "augmentation",
    "Batch": "batch",
    "ClassGaussian": "statistics",
    "ClassPCA": "statistics",
    "GaussianBank": "statistics",
    "ImageSet": "image_set",
    "Loader": "loader",
    "Splits": "image_set",
    "class_means": "statistics",
    "default_augmentation": "augmentation",
    "load_images": "sources",
    "load_splits": "sources",
}

__all__ = [
    "Augmentation",
    "Batch",
    "ClassGaussian",
    "ClassPCA",
    "GaussianBank",
    "ImageSet",
    "Loader",
    "Splits",
    "class_means",
    "default_augmentation",
    "load_images",
    "load_splits",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
