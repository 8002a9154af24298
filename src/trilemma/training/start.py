"""The initial weights of a run (``training.start``): of any classifier or weights, or of a stage trained before."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.foreign_weights import load_weights, read_weights
from trilemma.classifier.opening import dimensions, note
from trilemma.classifier.source import ClassifierSource
from trilemma.config.config import Config
from trilemma.config.recipe import load_config, recipe_names
from trilemma.config.registry import NETWORKS
from trilemma.data.class_names import numbers
from trilemma.data.image_set import ImageSet
from trilemma.errors import CheckpointError, ConfigError, nearest
from trilemma.files import CLASSIFIER
from trilemma.networks.create import create_network
from trilemma.training.build import build_classifier, normalisation

# Keys of ``training`` that a first stage takes from its run, besides data, network and threat.
_INHERITED = ("seed", "max_minutes", "precision", "channels_last", "winograd", "compile", "sync_bn")


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
        UserError: see :func:`first_stage`, :func:`load_start` and :func:`load_initial_weights`.
    """
    while (stage := first_stage(config)) is not None:
        config = stage
    if config.training.start is not None:
        with torch.random.fork_rng(devices=()):
            start = load_start(config, train)
            load_initial_weights(build_classifier(config, train, start), start, config)


def load_start(config: Config, train: ImageSet) -> Classifier:
    """Loads the classifier of a ``training.start`` that is not a recipe.

    Weights that do not say which network they belong to are those of the run's own network.

    Raises:
        CheckpointError: there is no such file or folder, or its weights do not fit the network.
        UserError: the published network or the user's function cannot be loaded.
    """
    start = str(config.training.start)
    described = ClassifierSource(start)
    path = described.path
    if isinstance(described.function, str):
        # A recipe may come from others: only functions that are declared to return a network are called.
        NETWORKS.get(described.function)
    if path is None or path.is_dir():
        return described.open(data=train)
    if not path.is_file():
        raise CheckpointError(
            f"training.start: {start} is neither a recipe nor a run folder or classifier file."
            f"{nearest(start, recipe_names())}"
        )
    if CLASSIFIER.matches(path):
        header = CLASSIFIER.read_header(path)
        if header.network is not None:
            return described.open()
        shape = header.shape or train.image_shape
        return Classifier.load(path, create_network(config.network, header.num_classes, shape))
    stored = read_weights(path)
    if stored.metadata is not None and stored.metadata.network is not None:
        return described.open()
    for line in stored.notes:
        note(f"{start}: {line}")
    try:
        classes = dimensions(config.network, stored)[0] or train.num_classes
    except ConfigError:
        # A network of the user's with a fixed number of classes.
        classes = train.num_classes
    network = create_network(config.network, classes, train.image_shape)
    mean, std = load_weights(network, stored) or normalisation(config, network, train.image_shape[0])
    names = None if stored.metadata is None else stored.metadata.class_names
    return Classifier(network, classes, mean, std, class_names=names, image_shape=train.image_shape)


def load_initial_weights(clf: Classifier, start: Classifier, config: Config) -> str:
    """Copies the weights and BatchNorm statistics of ``start`` into ``clf``.

    The layer of the logits keeps its random weights if the classes differ.

    Args:
        clf: the classifier to train; the classes are those of its data.
        start: the classifier with the initial weights.
        config: configuration of the run.

    Returns:
        What was not copied, as text; empty if everything was.

    Raises:
        CheckpointError: another number of channels or another architecture; the message states the first difference.
    """
    source = f"training.start: {config.training.start}"
    shapes = [None if shape is None else list(shape) for shape in (start.image_shape, clf.image_shape)]
    if shapes[0] is not None and shapes[1] is not None and shapes[0][0] != shapes[1][0]:
        raise CheckpointError(
            f"{source} takes images of shape (C, H, W) {shapes[0]}, but those of this run have {shapes[1]}; use a "
            "classifier of images with as many channels"
        )
    given, own = start.network.state_dict(), clf.network.state_dict()
    same_classes = _same_classes(start, clf)
    replaced = [] if same_classes else _logit_layer(config, clf)
    different = sorted(given.keys() ^ own.keys()) or [
        name for name in own if own[name].shape != given[name].shape and name not in replaced
    ]
    if different:
        raise CheckpointError(
            f"{source} holds weights of another architecture ({len(different)} tensors differ, first: "
            f"{different[0]}); use its network: {start.network_config}"
        )
    clf.network.load_state_dict({**given, **{name: own[name] for name in replaced}})
    if not replaced:
        return ""
    return (
        f"the classifier layer ({', '.join(replaced)}) is new: {start.num_classes} classes there, {clf.num_classes} "
        f"{'here' if start.num_classes != clf.num_classes else 'others here'}"
    )


def _same_classes(start: Classifier, clf: Classifier) -> bool:
    """Whether the logits mean the same classes, as far as their names say."""
    if start.num_classes != clf.num_classes:
        return False
    numbered = numbers(clf.num_classes)
    return start.class_names == clf.class_names or numbered in (start.class_names, clf.class_names)


def _logit_layer(config: Config, clf: Classifier) -> list[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    assert clf.image_shape is not None
    with torch.random.fork_rng(devices=()):
        try:
            other: nn.Module = create_network(
                _unpretrained(config.network), clf.num_classes + 1, clf.image_shape
            )
        except ConfigError:
            # A network of the user's with a fixed number of classes.
            return []
    own = clf.network.state_dict()
    return [name for name, value in other.state_dict().items() if value.shape != own[name].shape]


def _unpretrained(options: Any) -> Any:
    """The options of a network without published weights, which only its shapes are needed of."""
    return (
        options.model_copy(update={"pretrained": False}) if getattr(options, "pretrained", False) else options
    )


def provenance(start: Classifier) -> str:
    """Returns checkpoint, epoch and recipe of a classifier, as in `` (best of epoch 60, digits/pgd-at)``.

    Empty if the classifier holds no such metadata.
    """
    about = start.about
    if "checkpoint" not in about:
        return ""
    return f" ({about.get('checkpoint')} of epoch {about.get('epoch', 0):g}, {about.get('recipe')})"
