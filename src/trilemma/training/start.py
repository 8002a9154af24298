"""The initial weights of a run (``training.start``): from another run, a file, or a first stage trained before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.config import Config
from trilemma.config.recipe import load_config, recipe_names
from trilemma.data.image_set import ImageSet
from trilemma.errors import CheckpointError, ConfigError, nearest
from trilemma.training.build import build_classifier

# Keys of ``training`` that a first stage takes from its run, besides data, network and threat.
_INHERITED = ("seed", "max_minutes", "precision", "channels_last", "compile")


def is_recipe(start: str) -> bool:
    """Returns whether ``training.start`` names a recipe; a packaged recipe has priority over a path of that name."""
    return start.endswith((".yaml", ".yml")) or start in recipe_names()


def first_stage(config: Config) -> Config | None:
    """Returns the configuration of the first stage of ``config``, with its data, network and threat.

    ``None`` if ``training.start`` is not a recipe.

    Raises:
        ConfigError, UnknownNameError: unknown or unsuitable recipe, or recipes that start from each other.
    """
    stage = _stage_config(config)
    starts, following = [config.training.start], stage
    while following is not None and (start := following.training.start) is not None:
        if start in starts:
            raise ConfigError(
                f"training.start: recipes start from each other ({' -> '.join(map(str, [*starts, start]))}); change "
                "training.start of one of them"
            )
        starts.append(start)
        following = _stage_config(following)
    return stage


def _stage_config(config: Config) -> Config | None:
    """Returns the configuration of the recipe that ``training.start`` names; ``None`` if it names no recipe."""
    start = config.training.start
    if start is None or not is_recipe(start):
        return None
    overrides: dict[str, Any] = {"devices": config.devices}
    for section in ("data", "network") if config.threat is None else ("data", "network", "threat"):
        values = getattr(config, section).model_dump(mode="json")
        overrides |= {f"{section}.{key}": value for key, value in values.items()}
    overrides |= {f"training.{key}": getattr(config.training, key) for key in _INHERITED}
    return load_config(start, overrides)


def check_start(config: Config, train: ImageSet) -> None:
    """Checks ``training.start``, also of first stages, before anything is written or trained.

    Raises:
        UserError: see :func:`first_stage`, :func:`load_start` and :func:`check_compatible`.
    """
    while (stage := first_stage(config)) is not None:
        config = stage
    if (start := config.training.start) is not None:
        with torch.random.fork_rng(devices=()):
            check_compatible(build_classifier(config, train), load_start(start), start)


def load_start(start: str) -> Classifier:
    """Loads the classifier of a ``training.start`` that is not a recipe.

    Raises:
        CheckpointError: there is no such file or folder, or it holds no classifier.
    """
    if not (start.startswith("timm:") or Path(start).exists()):
        raise CheckpointError(
            f"training.start: {start} is neither a recipe nor a run folder or classifier file."
            f"{nearest(start, recipe_names())}"
        )
    return load(start)


def check_compatible(clf: Classifier, start: Classifier, source: str) -> None:
    """Checks that ``start`` has the classes, image shape, normalisation and architecture of ``clf``.

    Args:
        clf: the classifier to train.
        start: the classifier with the initial weights.
        source: value of ``training.start``, for the message.

    Raises:
        CheckpointError: they differ; the message states the first difference.
    """
    for name, expected, given in (
        ("classes", clf.num_classes, start.num_classes),
        ("image shape (C, H, W)", _as_list(clf.image_shape), _as_list(start.image_shape)),
        ("mean of the images", _as_list(clf.mean), _as_list(start.mean)),
        ("standard deviation of the images", _as_list(clf.std), _as_list(start.std)),
    ):
        if expected != given:
            raise CheckpointError(
                f"training.start: {source} has {name} {given}, but this run has {expected}; use a classifier with "
                "the same"
            )
    weights, start_weights = clf.network.state_dict(), start.network.state_dict()
    mismatched = sorted(weights.keys() ^ start_weights.keys()) or [
        name for name in weights if weights[name].shape != start_weights[name].shape
    ]
    if mismatched:
        raise CheckpointError(
            f"training.start: {source} holds weights of another architecture ({len(mismatched)} tensors differ, "
            f"first: {mismatched[0]}); use its network: {start.network_config}"
        )


def load_initial_weights(clf: Classifier, start: Classifier, source: str) -> None:
    """Copies the weights and BatchNorm statistics of ``start`` into ``clf``.

    Raises:
        CheckpointError: see :func:`check_compatible`.
    """
    check_compatible(clf, start, source)
    clf.network.load_state_dict(start.network.state_dict())


def provenance(start: Classifier) -> str:
    """Returns checkpoint, epoch and recipe of a classifier, as in `` (best of epoch 60, digits/pgd-at)``.

    Empty if the classifier holds no such metadata.
    """
    about = start.about
    if not about:
        return ""
    return f" ({about.get('checkpoint')} of epoch {about.get('epoch', 0):g}, {about.get('recipe')})"


def _as_list(values: Tensor | tuple[int, ...] | None) -> list[float] | None:
    """Returns the values as a list, tensors rounded to 6 decimals, for comparison and messages."""
    if values is None:
        return None
    return [round(v, 6) for v in values.flatten().tolist()] if isinstance(values, Tensor) else list(values)
