"""Ways to damage a file."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

Way = Callable[[Path, random.Random], None]


def _empty(file: Path, chance: random.Random) -> None:
    _rewrite(file, b"")


def _cut(share: float) -> Way:
    def cut(file: Path, chance: random.Random) -> None:
        content = file.read_bytes()
        _rewrite(file, content[: min(int(share * len(content)), len(content) - 2)])

    return cut


def _flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    _rewrite(file, bytes(content))


def _exponent(file: Path, chance: random.Random) -> None:
    """Flips the highest bit of the exponent of one weight of a safetensors file."""
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    weights = [name for name in sorted(entries) if "weight" in name and entries[name].get("dtype") == "F32"]
    first, last = entries[chance.choice(weights)]["data_offsets"]
    content[8 + length + chance.randrange(first, last, 4) + 3] ^= 0x40
    _rewrite(file, bytes(content))


def _latin(file: Path, chance: random.Random) -> None:
    content = file.read_bytes()
    place = chance.randrange(1, len(content))
    _rewrite(file, content[:place] + b"\xe9" + content[place:])


def _utf16(file: Path, chance: random.Random) -> None:
    _rewrite(file, file.read_text(encoding="utf-8").encode("utf-16"))


def _zeros(file: Path, chance: random.Random) -> None:
    _rewrite(file, bytes(file.stat().st_size))


def _other_kind(file: Path, chance: random.Random) -> None:
    _rewrite(file, b'["one", 2]\n')


def _folder(file: Path, chance: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _loop(file: Path, chance: random.Random) -> None:
    file.unlink()
    os.symlink(file.name, file)


def _missing(file: Path, chance: random.Random) -> None:
    file.unlink()


def _without_end(file: Path, chance: random.Random) -> None:
    """Without its last lines, cut where a line ends."""
    lines = file.read_bytes().splitlines(keepends=True)
    _rewrite(file, b"".join(lines[: len(lines) // 2]))


def _without_one(file: Path, chance: random.Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    _rewrite(file, b"".join(lines))


def _twice(file: Path, chance: random.Random) -> None:
    """Every line twice in a row, as two processes write them."""
    _rewrite(file, b"".join(2 * line for line in file.read_bytes().splitlines(keepends=True)))


def _repeated(file: Path, chance: random.Random) -> None:
    """The whole content a second time."""
    _rewrite(file, 2 * file.read_bytes())


def _rewrite(file: Path, content: bytes) -> None:
    # A new file: the old one may be a hard link to another file of the run.
    file.unlink()
    file.write_bytes(content)


MISSING = "missing"
FLIPS = {f"bit flip {number}": _flip for number in range(1, 4)}
ANY: dict[str, Way] = {
    MISSING: _missing, "empty": _empty, "a tenth of it": _cut(0.1), "half of it": _cut(0.5),
    "all but its end": _cut(1.0), **FLIPS, "zeros": _zeros, "a list in its place": _other_kind,
    "a folder in its place": _folder, "a link to itself": _loop,
}  # fmt: skip
TENSORS: dict[str, Way] = {**ANY, "exponent bit flip 1": _exponent, "exponent bit flip 2": _exponent}
TEXT: dict[str, Way] = {**ANY, "a byte of Latin-1": _latin, "UTF-16": _utf16}

LOG: dict[str, Way] = {
    **TEXT, "half of its lines": _without_end, "a line less": _without_one, "every line twice": _twice,
    "itself once more": _repeated,
}  # fmt: skip


def copy_of(source: Path, target: Path) -> Path:
    """A copy of a run folder with its hard links as files of their own."""
    return Path(shutil.copytree(source, target))


def ways(file: str) -> dict[str, Way]:
    """The ways to damage a file of that name."""
    if file.endswith(".safetensors"):
        return TENSORS
    if file.endswith(".jsonl"):
        return LOG
    return TEXT if file.endswith((".yaml", ".json", ".jsonl")) else ANY
