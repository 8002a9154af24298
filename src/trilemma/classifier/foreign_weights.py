"""Weights from elsewhere: a state dict as others save it, read without running code, and fitted to a network."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trilemma.errors import CheckpointError

# Where training scripts put the weights, and what wrappers put before their names.
CONTAINERS = ("state_dict", "model_state_dict", "model", "network", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
# What scripts call the two tensors of their normalisation.
NORMALISATIONS = (("mean", "std"), ("mu", "sigma"))
# Constants that a network makes itself: its normalisation, and the counter that BatchNorm does not use.
CONSTANTS = (*NORMALISATIONS[0], *NORMALISATIONS[1], "num_batches_tracked")


def load_weights(network: nn.Module, path: str | Path) -> tuple[list[float], list[float]] | None:
    """Puts the weights of ``path`` into ``network``.

    Prefixes such as ``module.`` are dropped where the network does not have them. A constant that the network makes
    itself (``mean``, ``std``, ``mu``, ``sigma``) may be missing in the file; nothing else may.

    Returns:
        Mean and standard deviation of a normalisation that the file holds and the network has no place for, as
        ``trilemma export --state-dict`` writes it; else ``None``.

    Raises:
        CheckpointError: no weights, or those of another architecture; the first names are given.
    """
    found, own = read_weights(path), network.state_dict()
    weights = max(_spellings(found), key=lambda names: len(names.keys() & own.keys()))
    apart = _normalisation(weights.keys() - own.keys())
    fit_weights(
        network,
        {name: value for name, value in weights.items() if name not in apart},
        path,
        constants=CONSTANTS,
    )
    if not apart:
        return None
    mean, std = (weights[name].double().flatten().tolist() for name in apart)
    return mean, std


def _normalisation(names: Set[str]) -> tuple[str, ...]:
    """The two of ``names`` that can only be a normalisation; none if they are not just two."""
    for pair in NORMALISATIONS:
        found = [[name for name in names if name.rpartition(".")[2] == last] for last in pair]
        if all(len(one) == 1 for one in found):
            return found[0][0], found[1][0]
    return ()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a ``.pt``, ``.pth`` or ``.safetensors`` file, wherever in the file it lies.

    Raises:
        CheckpointError: missing, not readable without running code, or without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the file with the weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); give yourself the right to"
        ) from None
    except Exception as error:  # bytes that are no pickle make its reader stumble in any way
        if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
            raise CheckpointError(
                f"{path}: holds more than tensors, and reading it could run code, so it is refused; load it where you "
                "trust it and save its weights alone: torch.save(network.state_dict(), FILE)"
            ) from None
        raise CheckpointError(f"{path}: not a file of weights, or cut short; copy it again") from None
    return _state_dict(content, path)


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == len(content):
            return tensors
        inside = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inside is None:
            break
        content = content[inside]
    seen = ", ".join(list(map(str, content))[:5]) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"{path}: no state dict at the top or under {', '.join(CONTAINERS)} (found: {seen}); "
        "save it alone: torch.save(network.state_dict(), FILE)"
    )


def _spellings(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights by the names they have, and by those with one prefix after the other taken off."""
    spellings = [weights]
    while True:
        names = spellings[-1]
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in names)), None)
        if prefix is None:
            return spellings
        spellings.append({name.removeprefix(prefix): value for name, value in names.items()})


def fit_weights(
    network: nn.Module, weights: Mapping[str, Tensor], path: str | Path, constants: tuple[str, ...] = ()
) -> None:
    """``network.load_state_dict``, refusing in one line what does not fit.

    Args:
        constants: last parts of names that ``weights`` may lack.

    Raises:
        CheckpointError: counting what is missing, unknown or of another shape, with the first names.
    """
    own = network.state_dict()
    missing = sorted(name for name in own.keys() - weights.keys() if name.rpartition(".")[2] not in constants)
    unknown = sorted(weights.keys() - own.keys())
    wrong = sorted(name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape)
    if missing or unknown or wrong:
        shapes = [f"{name} {list(weights[name].shape)} for {list(own[name].shape)}" for name in wrong[:1]]
        lists = (("missing", missing[:2]), ("unknown", unknown[:2]), ("shape", shapes))
        first = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in lists if names)
        raise CheckpointError(
            f"{path}: weights of another architecture ({len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(wrong)} of another shape; first {first}); pass the network they belong to"
        )
    network.load_state_dict(weights, strict=False)
