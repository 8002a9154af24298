"""Weights saved by other programs: reads a state dict without running code and loads it into a network."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trilemma.errors import CheckpointError
from trilemma.files import PREFIXES as FORMAT_PREFIXES
from trilemma.files import is_safetensors

# Keys under which training scripts store the state dict in a checkpoint.
CONTAINERS = ("state_dict", "model_state_dict", "model", "network", "net")
# Prefixes that wrappers such as DataParallel and torch.compile add to parameter names.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
# Usual names of the mean and the standard deviation of a normalisation.
NORMALISATIONS = (("mean", "std"), ("mu", "sigma"))
# Buffers that a file may lack, since a network creates them itself: its normalisation, and BatchNorm's batch counter.
CONSTANTS = (*NORMALISATIONS[0], *NORMALISATIONS[1], "num_batches_tracked")


@dataclass(frozen=True)
class StoredWeights:
    """The content of a weights file.

    Attributes:
        path: the file, for messages.
        tensors: the state dict.
        metadata: what ``trilemma export`` wrote beside it; empty for other files.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def load_weights(network: nn.Module, stored: StoredWeights) -> tuple[list[float], list[float]] | None:
    """Loads the weights of a file into ``network``.

    Prefixes such as ``module.`` are removed if the network's names do not have them. Constants that the network creates
    itself (:data:`CONSTANTS`) may be missing in the file; no other tensor may.

    Returns:
        Mean and standard deviation of a normalisation that is in the file but not in the network, as
        ``trilemma export --state-dict`` writes it; ``None`` if the file has none.

    Raises:
        CheckpointError: weights of another architecture.
    """
    network_weights = network.state_dict()
    weights = named_as_in(network, stored.tensors)
    normalisation = _normalisation(weights.keys() - network_weights.keys())
    fit_weights(
        network,
        {name: value for name, value in weights.items() if name not in normalisation},
        stored.path,
        constants=CONSTANTS,
    )
    if not normalisation:
        return None
    mean, std = (weights[name].double().flatten().tolist() for name in normalisation)
    return mean, std


def named_as_in(network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the prefixes removed that ``network`` does not have in its names."""
    names = network.state_dict().keys()
    return max(_without_prefixes(tensors), key=lambda named: len(named.keys() & names))


def _normalisation(names: Set[str]) -> tuple[str, ...]:
    """The names of mean and standard deviation among ``names``; empty unless there is exactly one of each."""
    for pair in NORMALISATIONS:
        matches = [[name for name in names if name.rpartition(".")[2] == last] for last in pair]
        if all(len(match) == 1 for match in matches):
            return matches[0][0], matches[1][0]
    return ()


def read_weights(path: str | Path) -> StoredWeights:
    """Reads the state dict of a PyTorch or safetensors file, at the top level or in a container key.

    Raises:
        CheckpointError: the file is missing, cannot be read without running code, or has no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the file with the weights")
    try:
        if is_safetensors(path) or path.suffix == ".safetensors":
            return StoredWeights(path, load_file(path), {})
        with warnings.catch_warnings():
            # About pickle protocols, which the unpickler either supports or refuses.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); change its permissions") from None
    # Any exception: torch.load raises many kinds for bytes that are not a pickle.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
            raise CheckpointError(
                f"{path}: holds more than tensors, and reading it could run code, so it is refused; load it yourself "
                "if you trust it, and save its weights alone: torch.save(network.state_dict(), FILE)"
            ) from None
        raise CheckpointError(f"{path}: not a file of weights, or cut short; copy it again") from None
    return StoredWeights(path, _state_dict(content, path), _export_metadata(content))


def _export_metadata(content: Any) -> dict[str, Any]:
    """The metadata of a file that ``trilemma export --state-dict`` wrote; empty for others."""
    metadata = content.get("metadata") if isinstance(content, Mapping) else None
    exported = isinstance(metadata, Mapping) and metadata.get("format") in [
        prefix + "export" for prefix in FORMAT_PREFIXES
    ]
    return dict(metadata) if exported and metadata is not None else {}


def _is_pickle(path: Path) -> bool:
    """Whether the file begins like a pickle or is a zip archive, as ``torch.save`` writes."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in ``content``, found by following the keys of :data:`CONTAINERS`."""
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == len(content):
            return tensors
        inside = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inside is None:
            break
        content = content[inside]
    keys = ", ".join(list(map(str, content))[:5]) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"{path}: no state dict at the top level or under {', '.join(CONTAINERS)} (found: {keys}); "
        "save it alone: torch.save(network.state_dict(), FILE)"
    )


def _without_prefixes(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights under their own names, then with one known prefix removed, then with two, and so on."""
    candidates = [weights]
    while True:
        names = candidates[-1]
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in names)), None)
        if prefix is None:
            return candidates
        candidates.append({name.removeprefix(prefix): value for name, value in names.items()})


def fit_weights(
    network: nn.Module, weights: Mapping[str, Tensor], path: str | Path, constants: tuple[str, ...] = ()
) -> None:
    """``network.load_state_dict`` with an error of one line.

    Args:
        network: its weights are overwritten.
        weights: tensors by name.
        path: the file of the weights, for the error message.
        constants: last components of names that ``weights`` may lack.

    Raises:
        CheckpointError: tensors are missing, unknown or of another shape; the message has the first of their names.
    """
    expected = network.state_dict()
    missing = sorted(
        name for name in expected.keys() - weights.keys() if name.rpartition(".")[2] not in constants
    )
    unknown = sorted(weights.keys() - expected.keys())
    wrong = sorted(
        name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape
    )
    if missing or unknown or wrong:
        shapes = [
            f"{name} {list(weights[name].shape)} for {list(expected[name].shape)}" for name in wrong[:1]
        ]
        lists = (("missing", missing[:2]), ("unknown", unknown[:2]), ("shape", shapes))
        first = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in lists if names)
        raise CheckpointError(
            f"{path}: weights of another architecture ({len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(wrong)} of another shape; first {first}); pass the network they belong to"
        )
    network.load_state_dict(weights, strict=False)
