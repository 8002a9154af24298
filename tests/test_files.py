"""Files of tensors hold digests: damage is found when they are read, and files without digests are still read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trilemma.attacks.ensemble.pool_file import FORMAT as ATTACK_STATE
from trilemma.errors import CheckpointError, DamagedError
from trilemma.files import (
    CLASSIFIER,
    TensorFormat,
    metadata_digest,
    parse_json,
    read_npz,
    tensors_digest,
    write_npz,
)
from trilemma.headers import ClassifierHeader
from trilemma.runs.state_file import STATE as TRAINING_STATE
from trilemma.samplers.replay_buffer import CHAINS

FORMATS = [CLASSIFIER, CHAINS, TRAINING_STATE, ATTACK_STATE]
HEADER = {
    "num_classes": 2, "class_names": ["cat", "dog"], "image_shape": [1, 8, 8], "mean": [0.5], "std": [0.25],
    "threat": {"norm": "linf", "radius": "8/255"}, "network": {"name": "small-cnn", "width": 4}, "about": {"step": 7},
    "output": None, "weights": None,
}  # fmt: skip
WORK = {"attacked": 3, "broken": 1, "unconfirmed": 0, "forwards": 9, "backwards": 6, "seconds": 0.5}
HEADERS = {
    "classifier": HEADER,
    "chains": {"class_names": ["cat", "dog"], "weights": "sha256:ab"},
    "training-state": {"$dict": [["step", 7]]},
    "attack-state": {
        "evaluation": "ab",
        "batch_size": 8,
        "running": "fab-t",
        "work": {"fab-t": WORK},
        "batches": None,
        "form": "cd",
    },
}


def as_json(header: Any) -> Any:
    """A header that was read, as it was written."""
    if isinstance(header, ClassifierHeader):
        return header.content()
    return header.model_dump() if isinstance(header, BaseModel) else header


def tensors() -> dict[str, torch.Tensor]:
    return {
        "weights": torch.linspace(-1, 1, 24).view(2, 3, 4), "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(7), "mask": torch.tensor([True, False]), "none": torch.empty(0, 4),
    }  # fmt: skip


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path: Path, form: TensorFormat[Any]) -> None:
    path = tmp_path / "x.safetensors"
    form.write(path, tensors(), HEADERS[form.name])
    content = path.read_bytes()
    generator, lines = random.Random(0), list[str]()
    for _ in range(150):
        damaged = bytearray(content)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            header, read = form.read(path)
        except CheckpointError as error:
            lines = [*lines, str(error)]
            continue
        assert as_json(header) == HEADERS[form.name] and equal(read, tensors())
    assert len(lines) > 120
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in lines)


def test_damage_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    CLASSIFIER.write(path, tensors(), HEADER)
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)
    expected = (
        f"{path}: damaged: its content does not match the digest stored in it; copy it again or train again"
    )
    with pytest.raises(DamagedError) as caught:
        CLASSIFIER.read(path)
    assert str(caught.value) == expected
    # The header is whole, and listing runs reads no weights.
    assert CLASSIFIER.read_header(path).content() == HEADER


def test_a_damaged_header_is_found_without_reading_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    CLASSIFIER.write(path, tensors(), HEADER)
    path.write_bytes(path.read_bytes().replace(b"8/255", b"9/255"))
    with pytest.raises(DamagedError, match="does not match the digest"):
        CLASSIFIER.read_header(path)


def test_a_file_of_an_earlier_version_has_no_digest_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    CLASSIFIER.write(path, tensors(), HEADER)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    old = {key: value for key, value in metadata.items() if key not in ("digest", "tensors")}
    save_file(load_file(path), path, old)
    header, read = CLASSIFIER.read(path)
    assert header.content() == HEADER and equal(read, tensors())
    assert CLASSIFIER.read_header(path) == header


def test_the_digest_is_of_names_types_shapes_and_bytes_in_any_order() -> None:
    ones = torch.ones(2, 3)
    digest = tensors_digest({"a": ones, "b": torch.zeros(2)})
    assert digest == tensors_digest({"b": torch.zeros(2), "a": ones})
    assert digest == tensors_digest({"a": torch.ones(3, 2).t(), "b": torch.zeros(2)})
    others = [
        {"a": ones, "c": torch.zeros(2)}, {"a": ones.view(3, 2), "b": torch.zeros(2)},
        {"a": ones.view(torch.int32), "b": torch.zeros(2)}, {"a": ones, "b": torch.tensor([0.0, -0.0])},
    ]  # fmt: skip
    assert digest not in map(tensors_digest, others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float64])
def test_every_changed_bit_of_a_large_tensor_changes_the_digest(dtype: torch.dtype) -> None:
    # Blocks of 1 MiB and a rest that is no whole row.
    bits = torch.randint(0, 2, (2_621_441 // dtype.itemsize,), dtype=torch.uint8)
    large = bits.to(dtype)
    digest = tensors_digest({"a": large})
    content = large.view(torch.uint8)
    for place in (0, 7, 4096, 1 << 20, len(content) - 1, *range(5000, len(content), 400_009)):
        content[place] ^= 1
        assert tensors_digest({"a": large}) != digest
        content[place] ^= 1
    assert (
        tensors_digest({"a": large}) == digest == tensors_digest({"a": torch.stack((large, large), 1)[:, 0]})
    )
    for start in (0, 1 << 20):
        damaged = large.clone()
        damaged.view(torch.uint8)[start : start + 4096] = 0
        assert tensors_digest({"a": damaged}) != digest
    # Content of one block in the place of another.
    swapped = torch.cat((content[1 << 20 : 2 << 20], content[: 1 << 20], content[2 << 20 :])).view(dtype)
    assert tensors_digest({"a": swapped}) != digest


def test_a_file_with_the_digest_of_all_bytes_is_read_and_verified(tmp_path: Path) -> None:
    path, weights = tmp_path / "x.safetensors", {"network.w": torch.rand(100, 100)}
    CLASSIFIER.write(path, weights, HEADER)
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), "tensors": tensors_digest(weights, "crc32:")}
    metadata["digest"] = metadata_digest(metadata)
    save_file(weights, path, metadata)
    assert equal(CLASSIFIER.read(path)[1], weights)
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="does not match the digest"):
        CLASSIFIER.read(path)


def test_a_key_that_is_given_twice_is_no_json() -> None:
    assert parse_json('{"a": 1, "b": {"a": 2}}') == {"a": 1, "b": {"a": 2}}
    with pytest.raises(ValueError, match="'value' is given twice"):
        parse_json('[{"value": 1, "value": 2}]')


def test_a_flipped_bit_in_an_npz_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path, arrays = tmp_path / "x.npz", {"a": np.arange(50.0), "b": np.ones((2, 3), np.uint8)}
    write_npz(path, arrays)
    assert [*read_npz(path, ["b", "c"])] == ["b"]
    content, refused = path.read_bytes(), 0
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            read = read_npz(path)
        except (ValueError, OSError):
            refused += 1
            continue
        # The directory at the end of the archive holds names, which have no checksum.
        assert all(np.array_equal(read[name], arrays[name]) for name in arrays if name in read)
    assert refused > len(content) / 9
