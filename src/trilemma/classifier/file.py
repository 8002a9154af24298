"""The classifier file: one safetensors file with everything that evaluation needs. No pickle, no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from trilemma.classifier.foreign_weights import is_pickle
from trilemma.classifier.statistics import PREFIX, wrong_statistic
from trilemma.config.registry import NETWORKS
from trilemma.errors import CheckpointError, ConfigError, UserError
from trilemma.files import CLASSIFIER, is_safetensors, tensor_bytes
from trilemma.headers import ClassifierHeader, NetworkHeader, problem
from trilemma.networks.create import create_network
from trilemma.networks.wrappers import unwrapped
from trilemma.runs import digests


def read(path: str | Path) -> tuple[ClassifierHeader, dict[str, Tensor]]:
    """Returns the header and the tensors of a classifier file.

    Raises:
        CheckpointError: the file is missing, a pickle, another format, truncated, of a newer version, or its header or
            its statistics are invalid.
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
    header, tensors = CLASSIFIER.read(path)
    statistics = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
    if (wrong := wrong_statistic(header, statistics)) is not None:
        raise CLASSIFIER.invalid(path, wrong)
    return header, tensors


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

    Weights in half precision have the digest of the float32 weights that they become when a file is loaded.

    Args:
        weights: the state dict of a network.
        settings: JSON values beside the weights that the logits depend on.
    """
    half = (torch.float16, torch.bfloat16)
    entries = (
        (name, value.float() if value.dtype in half else value) for name, value in sorted(weights.items())
    )
    return digests.weights_digest(
        ((name, str(value.dtype), value.shape, [tensor_bytes(value)]) for name, value in entries), settings
    )


def rebuild_network(header: NetworkHeader, path: str | Path, weights: Mapping[str, Tensor]) -> nn.Module:
    """Creates the network that the header describes; its weights are arbitrary, and must all be loaded.

    A header may describe a network of any size. Its shapes are compared with those of the weights first, without
    memory for them, as far as the network can be created so.

    Args:
        header: number of classes, image shape and network.
        path: the file, for messages.
        weights: the weights that the network is for.

    Raises:
        CheckpointError: the file does not say which network of the registry it is, or the network has other weights.
    """
    if header.network is None or header.shape is None:
        raise CheckpointError(
            f"{path}: holds the weights of a network that is not in trilemma's registry; pass it: "
            "Classifier.load(path, network=...)"
        )
    config = header.network.options()
    # The file has the weights, so nothing needs to be downloaded.
    if config.get("pretrained"):
        config = {**config, "pretrained": False}
    try:
        options = NETWORKS.options(config["name"]).model_validate(config)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: network.{problem(error)}; copy the file again or train again"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from None
    # Some parameters are replaced while a network is created, and tied ones are stored once.
    values = sum(value.numel() for value in weights.values())
    try:
        return create_network(
            options, header.num_classes, header.shape, most=(2 * values + 64, 2 * len(weights) + 64),
            initialised=False,
        )  # fmt: skip
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; copy the file again or train again") from error
