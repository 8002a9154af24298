"""The weights that a run begins with: another run's, a file's, or those of a stage that is trained first."""

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

# What a first stage takes over from the run that it is for, beside its data, network and threat.
_TRAINING = ("seed", "max_minutes", "precision", "channels_last", "compile")


def is_recipe(start: str) -> bool:
    """Whether ``training.start`` names a recipe; a packaged one wins over a path of the same name."""
    return start.endswith((".yaml", ".yml")) or start in recipe_names()


def first_stage(config: Config) -> Config | None:
    """The run to train before ``config``, on its data, network and threat; ``None`` where it needs none.

    Raises:
        ConfigError, UnknownNameError: no such recipe, one that does not fit, or recipes that begin with each other.
    """
    stage = _stage(config)
    seen, following = [config.training.start], stage
    while following is not None and (start := following.training.start) is not None:
        if start in seen:
            raise ConfigError(
                f"training.start: {' begins with '.join(map(str, [*seen, start]))}; break the circle"
            )
        seen.append(start)
        following = _stage(following)
    return stage


def _stage(config: Config) -> Config | None:
    start = config.training.start
    if start is None or not is_recipe(start):
        return None
    taken: dict[str, Any] = {"devices": config.devices}
    for section in ("data", "network") if config.threat is None else ("data", "network", "threat"):
        values = getattr(config, section).model_dump(mode="json")
        taken |= {f"{section}.{key}": value for key, value in values.items()}
    taken |= {f"training.{key}": getattr(config.training, key) for key in _TRAINING}
    return load_config(start, taken)


def check_start(config: Config, train: ImageSet) -> None:
    """Finds what is wrong with ``training.start`` before anything is written or trained.

    Raises:
        UserError: as of :func:`first_stage`, :func:`find_start` and :func:`check_fit`.
    """
    while (stage := first_stage(config)) is not None:
        config = stage
    if (start := config.training.start) is not None:
        with torch.random.fork_rng(devices=()):
            check_fit(build_classifier(config, train), find_start(start), start)


def find_start(start: str) -> Classifier:
    """The classifier that a ``training.start`` which is no recipe points to.

    Raises:
        CheckpointError: nothing there, or not a classifier.
    """
    if not (start.startswith("timm:") or Path(start).exists()):
        raise CheckpointError(
            f"training.start: {start} is neither a recipe nor a run folder or classifier file."
            f"{nearest(start, recipe_names())}"
        )
    return load(start)


def check_fit(clf: Classifier, start: Classifier, where: str) -> None:
    """Refuses weights of another network, other classes, images or normalisation.

    Raises:
        CheckpointError: in one line, both sides of the first difference.
    """
    for what, ours, theirs in (
        ("classes", clf.num_classes, start.num_classes),
        ("image shape (C, H, W)", _listed(clf.image_shape), _listed(start.image_shape)),
        ("mean of the images", _listed(clf.mean), _listed(start.mean)),
        ("standard deviation of the images", _listed(clf.std), _listed(start.std)),
    ):
        if ours != theirs:
            raise CheckpointError(f"training.start: {where} has {what} {theirs}, but this run has {ours}")
    own, given = clf.network.state_dict(), start.network.state_dict()
    odd = sorted(own.keys() ^ given.keys()) or [n for n in own if own[n].shape != given[n].shape]
    if odd:
        raise CheckpointError(
            f"training.start: {where} holds weights of another architecture ({len(odd)} tensors differ, first: "
            f"{odd[0]}); use its network: {start.network_config}"
        )


def begin_with(clf: Classifier, start: Classifier, where: str) -> None:
    """Gives ``clf`` the weights and BatchNorm statistics of ``start``; raises as :func:`check_fit`."""
    check_fit(clf, start, where)
    clf.network.load_state_dict(start.network.state_dict())


def described(start: Classifier) -> str:
    """`` (best of epoch 60, digits/pgd-at)``: what a classifier remembers of its training, if anything."""
    about = start.about
    if not about:
        return ""
    return f" ({about.get('checkpoint')} of epoch {about.get('epoch', 0):g}, {about.get('recipe')})"


def _listed(values: Tensor | tuple[int, ...] | None) -> list[float] | None:
    """Numbers that compare and print."""
    if values is None:
        return None
    return [round(v, 6) for v in values.flatten().tolist()] if isinstance(values, Tensor) else list(values)
