"""The classifier file: one safetensors file with everything that evaluation needs. No pickle, no code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.classifier.foreign_weights import is_pickle
from trilemma.config.registry import NETWORKS
from trilemma.errors import CheckpointError
from trilemma.files import CLASSIFIER, is_safetensors, tensor_bytes
from trilemma.networks.create import create_network
from trilemma.networks.wrappers import unwrapped


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the header and the tensors of a classifier file.

    Raises:
        CheckpointError: the file is missing, a pickle, another format, truncated, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "no such file"
        advice = "a run folder or a classifier file"
        if path.parent.name == "best":
            advice = "the classifier again, or --checkpoint last for that of the last step"
        raise CheckpointError(f"{path}: {problem}; give {advice}")
    if not is_safetensors(path) and is_pickle(path):
        raise CheckpointError(
            f"{path}: a pickled checkpoint, which can run code when loaded, so it is refused; `trilemma evaluate` "
            "takes its weights with --model or --network, and in Python load it yourself with "
            "torch.load(..., weights_only=True) and wrap the network: trilemma.Classifier(network, ...)"
        )
    return CLASSIFIER.read(path)


def weights_of(network: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """The state dict of the :func:`unwrapped` network, to be written to ``path``.

    Raises:
        CheckpointError: the network holds weights that are no tensors of numbers, or hides them.
    """
    inner = unwrapped(network)
    weights: dict[str, Tensor] = inner.state_dict()
    # A frozen TorchScript network has its weights in its code.
    if isinstance(inner, torch.jit.ScriptModule) and not weights:
        raise CheckpointError(
            f"{path}: a frozen network hides its weights; save the network from which it was made"
        )
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.is_quantized:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(
                f"{path}: {name} of the network is a {kind}, which a classifier file cannot hold; if it was quantised, "
                "save the network from which it was made"
            )
    return weights


def weights_digest(weights: Mapping[str, Tensor], *settings: Any) -> str:
    """SHA-256 of weights: of their names, types, shapes and bytes, in any order, and of ``settings``.

    Args:
        weights: the state dict of a network.
        settings: JSON values beside the weights that the logits depend on.
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name in sorted(weights):
        value = weights[name]
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(tensor_bytes(value))
    return f"sha256:{digest.hexdigest()}"


def rebuild_network(header: dict[str, Any], path: str | Path) -> nn.Module:
    """Creates the network that the header describes, with randomly initialised weights.

    Raises:
        CheckpointError: the file does not say which network of the registry it is.
    """
    config, shape = header["network"], header["image_shape"]
    if config is None or shape is None:
        raise CheckpointError(
            f"{path}: holds the weights of a network that is not in trilemma's registry; pass it: "
            "Classifier.load(path, network=...)"
        )
    # The file has the weights, so nothing needs to be downloaded.
    if config.get("pretrained"):
        config = {**config, "pretrained": False}
    options = NETWORKS.options(config["name"]).model_validate(config)
    return create_network(options, header["num_classes"], tuple(shape))
