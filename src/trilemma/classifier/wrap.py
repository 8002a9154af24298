"""Arguments of public functions: networks, images and labels in the types in which people have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trilemma.classifier.classifier import Classifier, check_labels, check_type
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.output import as_module, logits_in, raised
from trilemma.errors import ConfigError, ImageError, NetworkError

Network = nn.Module | Callable[[Tensor], Any]
Images = Tensor | NDArray[Any]
Labels = Tensor | NDArray[Any] | Sequence[int]


def as_classifier(network: object, images: Tensor) -> Classifier:
    """``network`` itself if it is a :class:`trilemma.Classifier`, otherwise a classifier around it.

    Args:
        network: a module or function from images in [0, 1] to logits.
        images: ``[N, C, H, W]``; the first one, or a black one, shows how many classes there are.

    Raises:
        ImageError: images of a wrong type or number of dimensions.
        NetworkError: not a network, or one that does not return logits ``[N, K]``.
    """
    if isinstance(network, Classifier):
        return network
    check_type(images)
    module = as_module(network)
    probe = Classifier(module)
    example = images[:1] if len(images) else images.new_zeros(1, *images.shape[1:])
    example = on_device_of(probe, example).to(probe.dtype, copy=True)
    try:
        with torch.no_grad(), inner_loop(probe):
            logits = logits_in(module(example), None)
    except Exception as error:
        raise raised(error, example) from error
    if logits.dim() != 2 or len(logits) != 1 or not logits.shape[1]:
        raise NetworkError(f"network: returned {list(logits.shape)} for 1 image; return logits [N, K]")
    wrapped = Classifier(module, logits.shape[1])
    # The lint checks the mode in which a network was passed.
    wrapped.training = module.training if hasattr(module, "training") else False
    return wrapped


def on_device_of(clf: Classifier, images: Tensor) -> Tensor:
    """Images on the device of the classifier's weights; where there are none, such as of a function, unchanged."""
    has_weights = any(True for weights in (clf.parameters(), clf.buffers()) for _ in weights)
    return images.to(clf.device) if has_weights else images


def as_images(images: object) -> Tensor:
    """Images as a tensor without a graph; the caller's memory is not shared with an array of NumPy.

    Raises:
        ImageError: neither a tensor nor an array of numbers.
    """
    if isinstance(images, Tensor):
        # A tensor of inference mode takes no part in autograd, a copy does.
        return images.clone() if images.is_inference() else images.detach()
    if isinstance(images, np.ndarray) and images.dtype.kind in "fiub":
        return torch.from_numpy(images.astype(images.dtype.newbyteorder("="), order="C"))
    kind = f"an array of {images.dtype}" if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
    raise ImageError(f"images: {kind} given; pass a float32 tensor or array [N, C, H, W] in [0, 1]")


def as_labels(labels: object, images: Tensor | None, num_classes: int, name: str = "labels") -> Tensor:
    """Labels as int64 ``[N]``, on the device of ``images``.

    Args:
        labels: whole numbers, in a tensor, an array or a list.
        images: ``[N, C, H, W]``; ``None`` if any number of labels will do.
        num_classes: K.
        name: the argument's name, for the error message.

    Raises:
        ImageError: not whole numbers, not one per image, or not in 0 to K - 1.
    """
    if not isinstance(labels, Tensor):
        try:
            array = np.asarray(labels)
        # Lists of different lengths.
        except ValueError:
            array = np.asarray(None)
        if array.dtype.kind not in "iu" and array.size:
            raise ImageError(f"{name}: {type(labels).__name__} given; pass one class number per image")
        labels = torch.from_numpy(array.astype(np.int64))
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ImageError(f"{name}: {labels.dtype} given; pass one class number per image, int64")
    if labels.dim() != 1:
        raise ImageError(f"{name}: shape {list(labels.shape)} given; pass one class number per image")
    labels = labels.detach().to(labels.device if images is None else images.device, torch.int64)
    check_labels(labels, labels if images is None else images, num_classes, name)
    return labels


def check_generator(where: str, generator: object) -> None:
    """Checks that a generator is one of torch or ``None``; ``where`` is the function that it was passed to.

    Raises:
        ConfigError: it is neither, such as a seed.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ConfigError(
            f"{where}: generator={generator!r}; pass torch.Generator().manual_seed(SEED), or leave it out"
        )
