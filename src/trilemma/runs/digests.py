"""SHA-256 digests that tie results to a classifier: of its weights, and of its class names. No torch, no numpy."""

from __future__ import annotations

import hashlib
import json
import struct
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trilemma.errors import CheckpointError
from trilemma.files import stored_tensors

# Prefix of the names of the weights in a classifier file.
WEIGHTS = "network."
# Names of types in torch by those in safetensors files; types of less than 32 bits are converted when they are loaded.
_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "F32": "float32",
    "F64": "float64", "C64": "complex64",
}  # fmt: skip


def weights_digest(
    weights: Iterable[tuple[str, str, Sequence[int], Iterable[Any]]], settings: Sequence[Any]
) -> str:
    """SHA-256 of weights and settings, as text.

    Args:
        weights: name, type, shape and bytes of each tensor, sorted by name; the bytes in parts of any size.
        settings: JSON values beside the weights that the logits depend on: mean, std and output.
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, kind, shape, parts in weights:
        digest.update(json.dumps([name, kind, list(shape)]).encode())
        for part in parts:
            digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def stored_weights_digest(path: Path, header: Mapping[str, Any]) -> str | None:
    """:func:`weights_digest` of a classifier file, for one whose header has none.

    ``None`` if the file cannot be read, or holds weights in half precision.

    Args:
        path: the file.
        header: its header.
    """
    try:
        weights = (
            (name, f"torch.{_TYPES[kind]}", shape, parts)
            for name, kind, shape, parts in stored_tensors(path, WEIGHTS)
        )
        return weights_digest(weights, [header["mean"], header["std"], header["output"]])
    except (OSError, ValueError, LookupError, TypeError, struct.error, CheckpointError):
        return None


def classes_digest(names: Iterable[str]) -> str:
    """SHA-256 of class names in label order, as text; the same for all Unicode forms of a name."""
    normal = [unicodedata.normalize("NFC", name) for name in names]
    return f"sha256:{hashlib.sha256(json.dumps(normal).encode()).hexdigest()}"
