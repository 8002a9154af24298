"""Builds the parts of a run from its configuration: data, classifier, loader, optimiser, weight update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import set_batch_norm_momentum
from trilemma.classifier.winograd import WinogradConvolutions, has_wide_convolutions
from trilemma.config.config import Config
from trilemma.config.sections import AugmentationConfig, UpdateConfig
from trilemma.data.augmentation import Augmentation, default_augmentation
from trilemma.data.image_set import ImageSet, Splits
from trilemma.data.loader import Loader
from trilemma.data.sources import load_splits
from trilemma.data.stream import ShardStream
from trilemma.methods.base import Step
from trilemma.networks.create import create_network
from trilemma.threat import Threat
from trilemma.training.layers import freeze, parameter_groups
from trilemma.updates.updates import Reduce, awp, plain, sam

# Mean and standard deviation of the normalisation: the network's input is 2 x - 1, the scale of the published methods.
CENTRE, HALF_WIDTH = 0.5, 0.5

Update = Callable[[Callable[[], Step], torch.optim.Optimizer, Reduce], Step]


def build_data(config: Config) -> Splits:
    """Loads the data of a configuration, split into training, held-out and test images."""
    data = config.data
    return load_splits(
        data.name,
        root=data.root,
        size=data.size,
        held_out=data.held_out,
        train_images=data.train_images,
        window=data.window,
        resident=data.resident,
    )


def build_classifier(config: Config, train: ImageSet, start: Classifier | None = None) -> Classifier:
    """Returns a classifier with the configured network, for the classes and image shape of ``train``.

    Args:
        config: configuration of the run; its frozen layers are frozen.
        train: training images.
        start: classifier with the initial weights, whose normalisation is taken over; its weights are not loaded.
    """
    network = create_network(config.network, train.num_classes, train.image_shape)
    if config.training.bn_momentum is not None:
        set_batch_norm_momentum(network, config.training.bn_momentum)
    freeze(network, config.training.freeze)
    mean, std = normalisation(config, network, train.image_shape[0], start)
    return Classifier(
        network,
        train.num_classes,
        mean=mean,
        std=std,
        class_names=train.class_names,
        image_shape=train.image_shape,
        threat=None if config.threat is None else Threat(config.threat.norm, config.threat.radius),
        network_config=config.network.model_dump(mode="json"),
    )


def normalisation(
    config: Config, network: nn.Module, channels: int, start: Classifier | None = None
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Returns mean and standard deviation before the network: the given ones, else those of its weights, else 0.5.

    Weights of another training expect its normalisation: that of ``start``, or that of published weights.
    """
    training = config.training
    if training.mean is not None:
        return training.mean, training.std
    if start is not None:
        values = (start.mean, start.std)
        mean, std = (None if value is None else value.flatten().tolist() for value in values)
        return mean, std
    published = getattr(network, "pretrained_cfg", None)
    if getattr(config.network, "pretrained", False) and isinstance(published, Mapping):
        # The weights of the first layer are summed over the channels for grey images.
        parts = [list(published["mean"]), list(published["std"])]
        mean, std = (part if len(part) == channels else [sum(part) / len(part)] * channels for part in parts)
        return mean, std
    return [CENTRE] * channels, [HALF_WIDTH] * channels


def synchronised(network: nn.Module, config: Config) -> nn.Module:
    """The network with BatchNorm layers that normalise by the batch of all processes, for GPUs; the same weights."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    # The layers are new ones, which are not frozen yet.
    freeze(network, config.training.freeze)
    return network


def build_convolutions(config: Config, network: nn.Module) -> AbstractContextManager[object]:
    """The context of every training step: ``WinogradConvolutions``, or none, for the device where ``network`` is.

    None under autocast; and a compiled network chooses its convolutions itself.
    """
    training = config.training
    possible = training.winograd and training.precision == "fp32" and not training.compile
    return WinogradConvolutions() if possible and has_wide_convolutions(network) else nullcontext()


def build_augmentation(section: AugmentationConfig, train: ImageSet | ShardStream) -> Augmentation:
    """Returns the augmentation of a configuration; ``auto`` becomes the default of the data set."""
    default = default_augmentation(train.name, train.image_shape)
    return Augmentation(
        crop=default.crop if section.crop == "auto" else section.crop,
        flip=default.flip if section.flip == "auto" else section.flip,
        cutout=section.cutout,
        policy=section.policy,
    )


def build_loader(
    config: Config,
    train: ImageSet | ShardStream,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Returns the loader that yields augmented batches of training images on ``device``."""
    return Loader(
        train,
        config.training.batch_size,
        device=device,
        augmentation=build_augmentation(config.augmentation, train),
        seed=config.training.seed,
        rank=rank,
        world_size=world_size,
        repeats=config.method.repeats,
    )


def build_optimiser(
    config: Config, clf: Classifier, method_parameters: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Returns SGD or Adam over the parameters of the classifier and of the method's own networks."""
    section, lr = config.optimiser, config.training.lr
    weights = parameter_groups(clf.network, config.training, method_parameters)
    if section.name == "adam":
        return torch.optim.Adam(
            weights, lr=lr, betas=(section.momentum, 0.999), weight_decay=section.weight_decay
        )
    return torch.optim.SGD(
        weights,
        lr=lr,
        momentum=section.momentum,
        nesterov=section.nesterov,
        weight_decay=section.weight_decay,
    )


def build_update(section: UpdateConfig, clf: Classifier, epoch: int) -> Update:
    """Returns the weight update of an epoch: plain, SAM, or AWP from ``update.from_epoch`` on.

    Args:
        section: the configuration of the update.
        clf: the classifier.
        epoch: counted from 1.
    """
    if section.name == "sam":
        return partial(sam, network=clf, rho=section.rho)
    if section.name == "awp" and epoch >= section.from_epoch:
        return partial(awp, network=clf, gamma=section.gamma)
    return plain
