"""The classifier file: one safetensors file that carries all that evaluation needs. No pickle, no code."""

from __future__ import annotations

import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trilemma.classifier import Classifier
from trilemma.errors import CheckpointError
from trilemma.threat import Threat
from trilemma.weights_file import fit_weights

FORMAT = "trilemma-classifier"
# Until version 0.1.0 the project was called ebat.
FORMATS = (FORMAT, "ebat-classifier")
VERSION = 1

C = TypeVar("C", bound=Classifier)


def save(clf: Classifier, path: str | Path) -> None:
    """Writes ``clf`` atomically: a reader sees the old file or the new one.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    path = Path(path)
    tensors = {f"network.{name}": value for name, value in clf.network.state_dict().items()}
    tensors |= {f"statistics.{name}": value for name, value in clf.statistics.items()}
    header: dict[str, Any] = {
        "num_classes": clf.num_classes,
        "class_names": clf.class_names,
        "image_shape": clf.image_shape,
        "mean": None if clf.mean is None else clf.mean.flatten().tolist(),
        "std": None if clf.std is None else clf.std.flatten().tolist(),
        "threat": None if clf.threat is None else {"norm": clf.threat.norm, "radius": clf.threat.radius},
        "network": clf.network_config,
        "about": clf.about,
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "header": json.dumps(header)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a copy per tensor: safetensors refuses tied weights and strided views, and the file must hold both
        save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, temporary, metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be written ({reason}); choose another place") from None
    finally:
        with suppress(OSError):  # its folder may be what is missing
            temporary.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a classifier file.

    Raises:
        CheckpointError: missing, not ours, a pickle, cut short, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a run folder or a classifier file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in FORMATS:
                raise CheckpointError(
                    f"{path}: safetensors weights without trilemma's header; build the network and wrap it: "
                    "trilemma.Classifier(network, ...)"
                )
            if int(metadata["version"]) > VERSION:
                raise CheckpointError(
                    f"{path}: format version {metadata['version']}, but this trilemma reads up to {VERSION}; "
                    f"upgrade trilemma"
                )
            # clone: the tensors would otherwise map the file, which the next save replaces
            names = file.keys()  # a file is not iterable itself
            return json.loads(metadata["header"]), {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError:
        raise CheckpointError(f"{path}: {_what_it_is(path)}") from None


def is_ours(path: str | Path) -> bool:
    """Whether ``path`` is a classifier file, rather than weights from elsewhere."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") in FORMATS
    except (OSError, SafetensorError):
        return False


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(2)
    if zipfile.is_zipfile(path) or head[:1] == b"\x80":
        return (
            "a pickled checkpoint, which can run code when loaded, so it is refused; `trilemma evaluate` takes "
            "its weights "
            "with --model or --network, and in Python load it yourself with "
            "torch.load(..., weights_only=True) and wrap the network: trilemma.Classifier(network, ...)"
        )
    return "not a classifier file, or cut short; copy it again or train anew"


def load(cls: type[C], path: str | Path, network: nn.Module | None = None) -> C:
    """A classifier from its file, in eval mode on the CPU; see :meth:`trilemma.Classifier.load`."""
    header, tensors = read(path)
    shape = None if header["image_shape"] is None else tuple(header["image_shape"])
    if network is None:
        network = _rebuild(header, shape, path)
    weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    fit_weights(network, weights, path)
    threat = header["threat"]
    clf = cls(
        network,
        header["num_classes"],
        header["mean"],
        header["std"],
        class_names=header["class_names"],
        image_shape=shape,
        threat=None if threat is None else Threat(**threat),
        network_config=header["network"],
    )
    clf.statistics = {
        k.removeprefix("statistics."): v for k, v in tensors.items() if k.startswith("statistics.")
    }
    clf.about = header["about"]
    return clf.eval()


def _rebuild(header: dict[str, Any], shape: tuple[int, int, int] | None, path: str | Path) -> nn.Module:
    from trilemma.networks.create import create_network
    from trilemma.registry import NETWORKS

    config = header["network"]
    if config is None or shape is None:
        raise CheckpointError(
            f"{path}: holds the weights of a network that is not trilemma's; pass it: Classifier.load(path, "
            f"network=...)"
        )
    if config.get("pretrained"):  # the file brings the weights: nothing to download
        config = {**config, "pretrained": False}
    options = NETWORKS.options(config["name"]).model_validate(config)
    return create_network(options, header["num_classes"], shape)
