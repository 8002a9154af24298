"""The digits embedded in scikit-learn: 1,797 grey 8x8 images, 1,200 train / 200 held out / 397 test.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI (its test part).
"""

from __future__ import annotations

import numpy as np
import torch

from trilemma.data.arrays import Arrays
from trilemma.data.splitting import stratified_split

TEST, HELD_OUT = 397, 200


def read_digits() -> Arrays:
    """Pixels 0..16 become round(v * 255 / 16); the splits are stratified and never change."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = data.target.astype(np.int64)
    rest, test = stratified_split(torch.from_numpy(labels), TEST)
    train, held_out = stratified_split(torch.from_numpy(labels)[rest], HELD_OUT)
    places = {"train": rest[train].numpy(), "val": rest[held_out].numpy(), "test": test.numpy()}
    return Arrays({split: (images[place], labels[place]) for split, place in places.items()}, None)
