"""Weights saved by other programs: reads a state dict without running code and loads it into a network."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from trilemma.classifier.namings import recognise, translations, unsupported
from trilemma.errors import CheckpointError, DamagedError
from trilemma.files import PREFIXES as FORMAT_PREFIXES
from trilemma.files import intact, is_safetensors, is_zip, open_tensors, parse_json
from trilemma.headers import NetworkHeader, problem
from trilemma.limits import check_expansion

# Keys under which training scripts store the state dict in a checkpoint.
CONTAINERS = (
    "state_dict", "model_state_dict", "model_state", "state_dict_model", "model", "network", "net", "net_state_dict",
    "params", "weights", "module", "last",
)  # fmt: skip
# Keys under which they store an average of the weights over the training: ``state_dict_ema``, ``averaged_model``, ...
AVERAGE = re.compile(r"(^|[_.-])(ema|swa|avg|averaged?|polyak|shadow)([_.-]|$)", re.IGNORECASE)
# Prefixes that wrappers such as DataParallel and torch.compile add to parameter names; "1." is that of a network
# behind a normalisation in a Sequential.
PREFIXES = (
    "module.", "_orig_mod.", "model.", "network.", "net.", "backbone.", "encoder.", "basic_net.", "base_model.",
    "base.", "f.", "1.",
)  # fmt: skip
# Prefixes of a copy of the network whose weights are an average.
AVERAGE_PREFIXES = ("ema.", "model_ema.", "ema_model.", "ema_net.", "swa_model.", "averaged_model.")
# Usual names of the mean and the standard deviation of a normalisation.
NORMALISATIONS = (("mean", "std"), ("mu", "sigma"))
# Buffers that a file may lack, since a network creates them itself: its normalisation, and BatchNorm's batch counter.
CONSTANTS = (*NORMALISATIONS[0], *NORMALISATIONS[1], "num_batches_tracked")
# Tensors that are no part of a network: the counter of AveragedModel, and what profilers leave behind.
COUNTERS = ("n_averaged", "total_ops", "total_params")
# The statistics of a BatchNorm layer.
RUNNING = ("running_mean", "running_var")
# Types of weights, and of the other tensors of a network, that convert to each other.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Names of tensors in the message about weights that do not fit.
SHOWN_NAMES = 10


@dataclass(frozen=True)
class StoredWeights:
    """The content of a weights file.

    Attributes:
        path: the file, for messages.
        tensors: the state dict, floating-point values as float32.
        metadata: what ``trilemma export`` wrote beside it; ``None`` for other files.
        notes: what was chosen or converted, one line each.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: NetworkHeader | None
    notes: tuple[str, ...] = ()


def read_weights(path: str | Path) -> StoredWeights:
    """Reads the state dict of a PyTorch or safetensors file, at the top level or under a usual key.

    If the file holds an average of the weights beside the weights of the last step, the average is taken. Half-
    precision and double values are converted to float32. ``notes`` tells both.

    Raises:
        CheckpointError: the file is missing, cannot be read without running code, or has no weights.
    """
    path = Path(path)
    content, metadata = _read(path)
    tensors, notes = _state_dict(content, path)
    tensors, averaged = _one_copy(tensors)
    types = {value.dtype for value in tensors.values() if value.is_floating_point()} - {torch.float32}
    if types:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        notes = (*notes, f"{names} weights, converted to float32")
        tensors = {name: value.float() if value.dtype in types else value for name, value in tensors.items()}
    return StoredWeights(path, tensors, _export_metadata(metadata, path), (*notes, *averaged))


def _read(path: Path) -> tuple[Any, Any]:
    """The content of a file of weights, and the metadata beside it; raises :class:`CheckpointError`."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the file with the weights")
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path}: a TorchScript archive, which holds a program and not only weights; if you trust it, write a "
            f"function that returns torch.jit.load({str(path)!r}) and name it with --model MODULE:FUNCTION"
        )
    try:
        if is_safetensors(path) or path.suffix == ".safetensors":
            with open_tensors(path) as file:
                header = file.metadata() or {}
                # Copied, since the tensors are otherwise mapped to the file.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            text = header.get("trilemma")
            if not intact(header, tensors):
                raise DamagedError(
                    f"{path}: damaged: its content does not match the digest stored in it; copy it again"
                )
            return tensors, None if text is None else parse_json(text)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_types()):
            # About pickle protocols, which the unpickler either supports or refuses.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
            return content, content.get("metadata") if isinstance(content, Mapping) else None
    except CheckpointError:
        raise
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); change its permissions") from None
    # Any exception: torch.load raises many kinds for bytes that are not a pickle.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and is_pickle(path):
            raise CheckpointError(
                f"{path}: holds more than tensors, and reading it could run code, so it is refused; load it yourself "
                "if you trust it, and save its weights alone: torch.save(network.state_dict(), FILE)"
            ) from None
        raise CheckpointError(f"{path}: not a file of weights, or cut short; copy it again") from None


def _plain_types() -> list[Any]:
    """Types that checkpoints often hold beside the weights, and that run no code: arguments and NumPy numbers."""
    scalar = np.float64(0).__reduce__()[0]
    # NumPy 2 renamed the module, which older files name.
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [Namespace, *names, np.dtype, *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd")]


def is_pickle(path: Path) -> bool:
    """Whether the file begins like a pickle or is a zip archive, as ``torch.save`` writes."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or is_zip(path)


def _is_torchscript(path: Path) -> bool:
    """Whether the file is an archive that ``torch.jit.save`` wrote: a zip file with a folder of code.

    Raises:
        CheckpointError: an archive that expands to more than weights do; PyTorch itself compresses nothing.
    """
    if not is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    # zipfile raises many kinds of exceptions for a damaged file, which torch refuses as well.
    except Exception:
        return False
    for info in members:
        check_expansion(info.file_size, info.compress_size, str(path), CheckpointError)
    parts = [info.filename.split("/") for info in members]
    return any("constants.pkl" in part for part in parts) and any("code" in part for part in parts)


def _export_metadata(metadata: Any, path: Path) -> NetworkHeader | None:
    """The metadata if ``trilemma export --state-dict`` wrote them; ``None`` for those of other programs."""
    formats = [f"{prefix}export" for prefix in FORMAT_PREFIXES]
    if not isinstance(metadata, Mapping) or metadata.get("format") not in formats:
        return None
    try:
        return NetworkHeader.model_validate(dict(metadata))
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its metadata are invalid: {problem(error)}; export the classifier again"
        ) from None


def _state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The mapping of names to tensors in ``content``, found by following known keys, and notes about the choice."""
    notes: tuple[str, ...] = ()
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == len(content):
            return tensors, notes
        inside = {str(key): value for key, value in content.items() if _holds_tensors(value)}
        average = next((key for key in inside if AVERAGE.search(key)), None)
        raw = next((key for key in CONTAINERS if key in inside), None)
        key = average or raw
        if key is None:
            break
        if average is not None:
            beside = "" if raw is None else f", not the weights of the last step ({raw})"
            notes = (*notes, f"using the averaged weights ({average}){beside}")
        content = inside[key] | (inside.get("stats", {}) if key == "params" else {})
    keys = ", ".join(list(map(str, content))[:5]) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"{path}: no state dict at the top level or under {', '.join(CONTAINERS[:7])}, ... (found: {keys}); "
        "save it alone: torch.save(network.state_dict(), FILE)"
    )


def _holds_tensors(value: object) -> bool:
    """Whether it is a mapping with a tensor among its values, at any depth."""
    return isinstance(value, Mapping) and any(
        isinstance(inner, Tensor) or _holds_tensors(inner) for inner in value.values()
    )


def _one_copy(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the averaged copy, if there is one, and a note about it; without counters."""
    note: tuple[str, ...] = ()
    if "n_averaged" in tensors:
        note = (f"an AveragedModel, using its average of {int(tensors['n_averaged'])} updates",)
    for prefix in AVERAGE_PREFIXES:
        copy = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }
        if copy:
            others = ", not the other copy in the file" if len(copy) < len(tensors) else ""
            tensors, note = copy, (f"using the averaged weights ({prefix}*){others}",)
            break
    return {name: v for name, v in tensors.items() if name.rpartition(".")[2] not in COUNTERS}, note


def load_weights(network: nn.Module, stored: StoredWeights) -> tuple[list[float], list[float]] | None:
    """Loads the weights of a file into ``network``.

    Prefixes such as ``module.`` are removed if the network's names do not have them, and names of public code bases are
    translated (:mod:`trilemma.classifier.namings`). Constants that the network creates itself (:data:`CONSTANTS`) may
    be missing in the file; no other tensor may.

    Returns:
        Mean and standard deviation of a normalisation that is in the file but not in the network, as
        ``trilemma export --state-dict`` writes it; ``None`` if the file has none.

    Raises:
        CheckpointError: weights of another architecture, or of one with another order of operations.
    """
    weights = named_as_in(network, stored)
    normalisation = _normalisation(weights.keys() - network.state_dict().keys())
    network_weights = {name: value for name, value in weights.items() if name not in normalisation}
    try:
        fit_weights(network, network_weights, stored.path, constants=CONSTANTS)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{architecture(stored)}") from None
    if not normalisation:
        return None
    mean, std = (weights[name].double().flatten().tolist() for name in normalisation)
    return mean, std


def named_as_in(network: nn.Module, stored: StoredWeights) -> dict[str, Tensor]:
    """The tensors of a file under the names of ``network``, as far as the names can be translated.

    Raises:
        CheckpointError: the names are those of a network with another order of operations.
    """
    expected = network.state_dict()
    best, order = stored.tensors, None
    for tensors in _without_prefixes(stored.tensors):
        for naming, named in [(None, tensors), *translations(network, tensors)]:
            if _misfits(named, expected) < _misfits(best, expected):
                best, order = named, naming
    fits = all(name in expected or name.rpartition(".")[2] in CONSTANTS for name in best)
    if order is not None and fits and (option := order.missing_option(network)) is not None:  # type: ignore[arg-type]
        raise CheckpointError(
            f"{stored.path}: has the names of {order.origin}, whose network computes something else than this one; "
            f"add {option} to its options"
        )
    return best


def _misfits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    """The number of names that only one of the two has."""
    return len(weights.keys() ^ expected.keys())


def _normalisation(names: Set[str]) -> tuple[str, ...]:
    """The names of mean and standard deviation among ``names``; empty unless there is exactly one of each."""
    for pair in NORMALISATIONS:
        matches = [[name for name in names if name.rpartition(".")[2] == last] for last in pair]
        if all(len(match) == 1 for match in matches):
            return matches[0][0], matches[1][0]
    return ()


def _without_prefixes(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights under their own names, then with one known prefix removed, then with two, and so on."""
    candidates = [weights]
    while True:
        names = candidates[-1]
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in names)), None)
        if prefix is None:
            return candidates
        candidates.append({name.removeprefix(prefix): value for name, value in names.items()})


def architecture(stored: StoredWeights) -> str:
    """What the names of a file say about its network, as the end of a message; empty if they are not known."""
    for tensors in reversed(_without_prefixes(stored.tensors)):
        if (reason := unsupported(tensors)) is not None:
            return f"; by their names they belong to {reason}, so use --model MODULE:FUNCTION"
        names = {name for name in tensors if name.rpartition(".")[2] not in CONSTANTS}
        if (network := recognise({name: tensors[name] for name in names})) is not None:
            return f"; by their names they fit --network {network}"
    return ""


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
        CheckpointError: tensors are missing, unknown, of another shape or type, or not finite; the message has the
            first ten of their names.
    """
    expected = network.state_dict()
    missing = sorted(
        name for name in expected.keys() - weights.keys() if name.rpartition(".")[2] not in constants
    )
    unknown = sorted(weights.keys() - expected.keys())
    wrong = sorted(
        name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape
    )
    typed = sorted(
        name
        for name in expected.keys() & weights.keys()
        if not _holds(expected[name].dtype, weights[name].dtype, name)
    )
    if typed and not (missing or unknown or wrong):
        kinds = [f"{name} {weights[name].dtype} for {expected[name].dtype}" for name in typed[:3]]
        raise CheckpointError(
            f"{path}: {len(typed)} tensors of another type than in the network: "
            f"{', '.join(kinds).replace('torch.', '')}; save the weights as they were trained"
        )
    if missing or unknown or wrong:
        shapes = [f"{name} {list(weights[name].shape)} for {list(expected[name].shape)}" for name in wrong]
        lists = {"missing": missing, "unknown": unknown, "shape": shapes}
        raise CheckpointError(
            f"{path}: weights of another architecture ({len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(wrong)} of another shape; first {_first_names(lists)}); pass the network they belong to"
        )
    network.load_state_dict(weights, strict=False)
    check_weights(network, path)


def _holds(expected: torch.dtype, stored: torch.dtype, name: str) -> bool:
    """Whether the conversion of a tensor of type ``stored`` to the type of the network keeps its meaning."""
    if name.rpartition(".")[2] == "num_batches_tracked":
        # A counter, of which an average of several networks has fractions.
        return not stored.is_complex
    if expected.is_floating_point:
        return stored in _FLOATS
    return stored == expected or (stored in _INTEGERS and expected in _INTEGERS)


def check_weights(network: nn.Module, where: object) -> None:
    """Checks that the weights and the BatchNorm statistics of a network are finite.

    Args:
        network: a network that is about to be used.
        where: its file or name, for the message.

    Raises:
        CheckpointError: they are not.
    """
    wrong = [name for name, value in network.named_parameters() if not _finite(value)]
    for name, value in network.named_buffers():
        last = name.rpartition(".")[2]
        # A mask may hold infinities.
        finite = _finite(value) if last in RUNNING else not bool(value.isnan().any())
        if not finite or (last == RUNNING[1] and bool((value < 0).any())):
            wrong.append(name)
    if wrong:
        raise CheckpointError(
            f"{where}: this classifier has diverged: {wrong[0]} has values that are not finite; use an earlier "
            "checkpoint, or train again with a lower training.lr"
        )


def _finite(value: Tensor) -> bool:
    # The sum is finite for all but huge values, and much faster.
    return bool(torch.isfinite(value.detach().sum())) or bool(torch.isfinite(value).all())


def _first_names(lists: Mapping[str, list[str]]) -> str:
    """The first ten names of all lists, shared evenly between the lists."""
    left, parts = SHOWN_NAMES, []
    filled = [(kind, names) for kind, names in lists.items() if names]
    for index, (kind, names) in enumerate(filled):
        rest = sum(min(len(others), 3) for _, others in filled[index + 1 :])
        shown = names[: max(1, left - rest)]
        left -= len(shown)
        parts.append(f"{kind}: {', '.join(shown)}")
    return "; ".join(parts)
