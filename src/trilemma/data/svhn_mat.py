"""SVHN's cropped digits: MATLAB files with X [32, 32, 3, N] and y [N, 1], where 10 stands for the digit 0.

Source: Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011 (format 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trilemma.data.arrays import Arrays
from trilemma.errors import DataError


def read_svhn(files: Sequence[Path]) -> Arrays:
    """``train_32x32.mat`` and ``test_32x32.mat``, digit 0 as class 0."""
    return Arrays({"train": _read(files[0]), "test": _read(files[1])}, None)


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        content = loadmat(path, variable_names=("X", "y"))
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
    except Exception as error:  # scipy raises many kinds for a damaged file; all of them mean the same
        raise DataError(f"{path}: truncated or damaged MATLAB file ({error}); get it again") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2:] != (3, len(labels)):
        raise DataError(
            f"{path}: X is {images.dtype} {images.shape}, expected uint8 [32, 32, 3, {len(labels)}]"
        )
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.astype(np.int64) % 10
