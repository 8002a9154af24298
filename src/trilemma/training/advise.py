"""Chooses image size, network, batch size and epochs for a user's own images and this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trilemma.config.config import Config
from trilemma.config.recipe import build_config
from trilemma.config.registry import METHODS
from trilemma.data.survey import Survey
from trilemma.networks.cost import count_macs
from trilemma.networks.create import create_network
from trilemma.training.estimate import forward_passes, seconds_per_image

# A first run should end while its user waits.
MINUTES = 5.0
MIN_EPOCHS, MAX_EPOCHS = 15, 60
# Steps per epoch below which a smaller batch is worth more than its speed costs.
STEPS_PER_EPOCH = 12
BATCH_SIZES = (128, 64, 32, 16)
# Image size, width and depth of small-resnet, the most accurate choice first.
CHOICES = ((64, 32, 14), (64, 16, 14), (48, 16, 14), (32, 16, 14), (32, 16, 8), (16, 16, 8))
# Held-out images of a class on average, below which selection is a matter of luck.
HELD_OUT_PER_CLASS = 5
TEST_SHARE = 0.2
# Half the usual radius: what a small network can learn to resist from few images.
RADIUS = "4/255"


@dataclass(frozen=True)
class Advice:
    """A recipe for a user's images.

    Attributes:
        sections: the keys that differ from the defaults, by section.
        config: the resolved configuration.
        train, held_out: number of images of these parts.
        seconds: estimated time of the whole run on this machine.
    """

    sections: dict[str, dict[str, Any]]
    config: Config
    train: int
    held_out: int
    seconds: float


def parts(found: Survey) -> tuple[int, int, float]:
    """Number of training and held-out images, and ``data.held_out``, for the images of a source."""
    counts = {split: sum(by_class.values()) for split, by_class in found.counts.items()}
    pool = counts.get("train") or round(counts.get("all", 0) * (1 - TEST_SHARE))
    if "val" in counts and "test" in counts:
        return pool, counts["val"], 0.1
    wanted = HELD_OUT_PER_CLASS * len(found.by_class) / max(1, pool)
    # In steps of 5 %, as a person would write it.
    share = math.ceil(20 * min(0.3, max(0.1, wanted))) / 20
    return pool - round(share * pool), round(share * pool), share


def advise(found: Survey, root: str, method: str, device: str) -> Advice:
    """Returns a recipe of ``method`` that trains for about five minutes on ``device``.

    The first of :data:`CHOICES` that the images are large enough for and that can see them 15 times in this time is
    taken, and trained for up to 60 epochs.

    Args:
        found: what the source holds.
        root: path of the source, as the recipe states it.
        method: a registered method.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UnknownNameError: no such method.
        ConfigError: the method does not work with the other choices.
    """
    train, held_out, share = parts(found)
    batch = next((size for size in BATCH_SIZES if train // size >= STEPS_PER_EPOCH), BATCH_SIZES[-1])
    side = min(found.size)
    fitting = [choice for choice in CHOICES if choice[0] <= side] or [(side, *CHOICES[-1][1:])]
    for size, width, depth in fitting:
        sections = _sections(found, root, method, (size, width, depth), share, min(batch, train))
        config = build_config(sections, "init")
        seconds = train * _seconds_per_training_image(config, found, size, device)
        if seconds * MIN_EPOCHS <= 60 * MINUTES:
            break
    epochs = int(min(MAX_EPOCHS, max(MIN_EPOCHS, 60 * MINUTES / seconds)))
    sections["training"] |= {"epochs": epochs, "evaluate_every": max(1, epochs // 10)}
    # The average forgets over a tenth of the run.
    steps = epochs * (train // sections["training"]["batch_size"])
    sections["training"]["ema"] = min(0.995, round(1 - 10 / max(steps, 50), 3))
    return Advice(sections, build_config(sections, "init"), train, held_out, epochs * seconds)


def _sections(
    found: Survey, root: str, method: str, choice: tuple[int, int, int], share: float, batch: int
) -> dict[str, dict[str, Any]]:
    """The sections of a recipe with one of :data:`CHOICES`."""
    size, width, depth = choice
    options = METHODS.options(method)
    square = found.sizes == 1 and found.size == (size, size)
    sections: dict[str, dict[str, Any]] = {
        "data": {"name": "folder", "root": root, "size": None if square else size, "held_out": share},
        "network": {"name": "small-resnet", "width": width, "depth": depth},
        "method": {"name": method},
        "threat": {"norm": "linf", "radius": RADIUS},
        "training": {"batch_size": batch, "lr": round(0.1 * batch / BATCH_SIZES[0], 4)},
    }
    if options.uses_attack and options.inner_attack and not options.single_step:
        sections["attack"] = {"steps": 5}
    if "buffer_size" in options.sampler_defaults:
        sections["sampler"] = {"buffer_size": 1000}
        # Chains of energy models need networks whose energy of an image does not depend on the others.
        sections["network"] |= {"norm": "group", "activation": "silu"}
    return sections


def _seconds_per_training_image(config: Config, found: Survey, size: int, device: str) -> float:
    shape = (3 if found.colour else 1, size, size)
    with torch.random.fork_rng(devices=()):
        network = create_network(config.network, len(found.by_class), shape).to(device)
    return seconds_per_image(network, count_macs(network, shape), shape) * forward_passes(config)


def chance(counts: Mapping[str, int]) -> float:
    """The accuracy of a classifier that answers the largest class for every image."""
    return max(counts.values()) / sum(counts.values())
