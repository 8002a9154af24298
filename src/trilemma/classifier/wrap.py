"""A classifier for whatever network a public function is given, with as many classes as the network has outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.output import as_module, logits_in, raised
from trilemma.errors import NetworkError


def as_classifier(network: object, images: Tensor) -> Classifier:
    """``network`` itself if it is a :class:`trilemma.Classifier`, otherwise a classifier around it.

    Args:
        network: a module or function from images in [0, 1] to logits.
        images: ``[N, C, H, W]``; the first one, or a black one, shows how many classes there are.

    Raises:
        NetworkError: not a network, or one that does not return logits ``[N, K]``.
    """
    if isinstance(network, Classifier):
        return network
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
