"""Tiny classifiers whose accuracy, clean and under attack, is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trilemma


class Brightness(nn.Module):
    """Two classes: logit difference ``8 (mean - 1/2)``, so class 1 is every image brighter than 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = self.scale * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-score / 2, score / 2], dim=1)


@pytest.fixture
def clf() -> trilemma.Classifier:
    return trilemma.Classifier(Brightness(), num_classes=2, image_shape=(1, 2, 2))


@pytest.fixture
def grey() -> tuple[torch.Tensor, torch.Tensor]:
    """Flat images of brightness 0.05, 0.15, ..., 0.95; the brightest and the darkest are labelled wrongly."""
    levels = torch.arange(10) / 10 + 0.05
    labels = (levels > 0.5).long()
    labels[0], labels[-1] = 1, 0
    return levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), labels
