"""Checks of a run before it writes anything, the same for ``train`` and ``validate``."""

from __future__ import annotations

import math

import torch

from trilemma.classifier.batch_size import free_memory
from trilemma.config.config import Config
from trilemma.data.image_set import ImageSet, Splits
from trilemma.errors import ConfigError, NetworkError
from trilemma.methods.base import check_state, check_step
from trilemma.methods.creation import create_from_config
from trilemma.networks.create import check_outputs
from trilemma.training import build
from trilemma.training.start import check_start, first_stage
from trilemma.units import byte_size

# Images of the trial step, and images per class from which its chains start.
TRIAL_IMAGES, IMAGES_PER_CLASS = 2, 20


def check_run(config: Config, data: Splits) -> None:
    """Checks the initial weights, the method, the batches and one small step, of the first stages too.

    Raises:
        UserError: the run, or one of its first stages, could not take its first step.
    """
    check_start(config, data.train)
    stage: Config | None = config
    while stage is not None:
        create_from_config(stage).check(data.train)
        _check_buffer(stage, data.train)
        build.build_loader(stage, data.training, torch.device("cpu"), 0, stage.devices)
        _try_step(stage, data.train)
        stage = first_stage(stage)


def _check_buffer(config: Config, train: ImageSet) -> None:
    """Checks that the replay buffer fits into the free memory.

    Raises:
        ConfigError: it does not.
    """
    size = (config.sampler.buffer_size or 0) if config.method.uses_sampler else 0
    free = free_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    # An image in float32 and its class.
    needed = size * (4 * math.prod(train.image_shape) + 8)
    if needed > free:
        raise ConfigError(
            f"sampler.buffer_size: {size:,} images need {byte_size(needed)} of memory, and {byte_size(free)} are "
            "free; use fewer"
        )


def _try_step(config: Config, train: ImageSet) -> None:
    """Computes the loss of a few images and its gradient, with one step per walk; the random state is kept.

    Raises:
        UserError: the network or the method cannot do this.
    """
    count = max(1, min(TRIAL_IMAGES, config.training.batch_size // config.devices))
    subset = train.first(max(count, IMAGES_PER_CLASS * train.num_classes))
    small = config.model_copy(
        update={
            "attack": config.attack.model_copy(update={"steps": config.attack.steps and 1}),
            "sampler": config.sampler.model_copy(
                update={
                    "steps": config.sampler.steps and 1,
                    "buffer_size": config.sampler.buffer_size and count,
                }
            ),
            "training": config.training.model_copy(update={"batch_size": count}),
        }
    )
    with torch.random.fork_rng(devices=()):
        clf = build.build_classifier(small, subset)
        check_outputs(config.network.model_dump()["name"], clf.network, clf.num_classes, subset.image_shape)
        method = create_from_config(small)
        state = check_state(config.method.name, method.init_state(clf, subset, config.training.seed))
        batch = next(build.build_loader(small, subset, torch.device("cpu")).epoch(0))
        build.build_optimiser(small, clf, state.parameters())
        clf.train()
        try:
            points = method.points(clf, batch, state)
            step = check_step(config.method.name, method.terms(clf, points, state))
        except NetworkError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                "training.batch_size: BatchNorm needs more than one value per channel, but this network reduces one "
                f"image of {list(subset.image_shape)} to a single value; use a larger batch or network.norm=group"
            ) from None
        step.loss.backward()
