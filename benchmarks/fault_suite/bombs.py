"""Part ``memory``: small inputs that ask for much memory or time."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.fault_suite.case import Case, Judge, must_refuse, nothing_wrong
from benchmarks.fault_suite.damage import copy_of
from benchmarks.fault_suite.files import FINISHED, Sound, digit

_GIGABYTE = 1 << 30
_MEGABYTE = 1 << 20
_LEVELS = 9


def _anchors(key: str) -> str:
    """A text of a kilobyte that stands for 10^9 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, _LEVELS):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join([*lines, f"{key}: *a{_LEVELS - 1}"])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG of zeros, compressed row by row."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    row = bytes(1 + width * channels * bits // 8)
    packer = zlib.compressobj(1)
    data = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _claimed_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + _chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + _chunk(b"IEND", b"")
    )


def _text_bomb() -> bytes:
    """A PNG of one pixel with a text of 200 MB."""
    text = b"Comment\0\0" + zlib.compress(bytes(200 * _MEGABYTE), 1)
    return png(8, 8, 8, 0, _chunk(b"zTXt", text))


def _bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(head), 0, 0, 54) + head


def _gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + (
        b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    )  # fmt: skip


class _Zeros(io.RawIOBase):
    """A gigabyte of zeros."""

    def __init__(self) -> None:
        self.left = _GIGABYTE

    def read(self, size: int = -1) -> bytes:
        size = min(self.left, _MEGABYTE if size < 0 else size)
        self.left -= size
        return bytes(size)


def _zip(name: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        zeros = _Zeros()
        with (
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(name, "w", force_zip64=True) as member,
        ):
            while part := zeros.read(_MEGABYTE):
                member.write(part)

    return write


def _tar(file: Path) -> None:
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        entry = tarfile.TarInfo("a/1.png")
        entry.size = _GIGABYTE
        archive.addfile(entry, _Zeros())


def _gz(file: Path) -> None:
    with gzip.open(file, "wb", 1) as stream:
        for _ in range(_GIGABYTE // _MEGABYTE):
            stream.write(bytes(_MEGABYTE))


def _sparse(size: int, head: bytes = b"") -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.write_bytes(head)
        os.truncate(file, size)

    return write


def _text(content: str) -> Callable[[Path], Any]:
    return lambda file: file.write_text(content)


def _bytes(content: Callable[[], bytes]) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(content())


def _fifo(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def _device(name: str) -> Callable[[Path], None]:
    def link(file: Path) -> None:
        file.unlink(missing_ok=True)
        os.symlink(name, file)

    return link


# What is written to which file, and the commands that read it.
_PREDICT = "predict run FILE --json"
_DATA = "evaluate run --data FILE --protocol clean -q"
_RECIPE = ("validate FILE", "train FILE --out new -q")
_CLASSIFIER = ("predict FILE digit.png", "evaluate FILE --data digits --protocol clean -q")
_WEIGHTS = ("predict FILE digit.png --network small-resnet,width=4 --classes 10 --size 8",)
_LOG = ("monitor FILE",)
_DEEP = "[" * 200_000 + "]" * 200_000
_DIGITS = "1" * 100_000
_SPECIAL = {
    "a pipe": _fifo,
    "/dev/zero": _device("/dev/zero"),
    "a sparse file of 20 GB": _sparse(20 * _GIGABYTE),
}

FILES: tuple[tuple[str, str, Callable[[Path], Any], tuple[str, ...]], ...] = (
    ("an anchor bomb", "bomb.yaml", _text(_anchors("training")), _RECIPE),
    ("an anchor bomb as a value", "bomb.yaml", _text(_anchors("data").replace("data:", "network:")), _RECIPE),
    ("50 MB of comments", "bomb.yaml", _text(("# " + "x" * 98 + "\n") * 500_000), _RECIPE),
    ("50 MB of keys", "bomb.yaml", _text("".join(f"key{n}: 1\n" for n in range(4_000_000))), _RECIPE),
    ("50 MB of one text", "bomb.yaml", _text("data: {name: " + "x" * 50_000_000 + "}"), _RECIPE),
    ("a list 200,000 deep", "bomb.yaml", _text(_DEEP), _RECIPE),
    ("100,000 digits", "bomb.yaml", _text(f"threat: {{radius: {_DIGITS}}}"), _RECIPE),
    ("100,000 digits and a letter", "bomb.yaml", _text(f"threat: {{radius: {_DIGITS}x}}"), _RECIPE),
    ("a zip of 1 GB of zeros", "bomb.zip", _zip("a/1.png"), (_DATA, _PREDICT)),
    ("an npz of 1 GB of zeros", "bomb.npz", _zip("images.npy"), (_DATA,)),
    ("an npz of 1 GB of labels", "bomb.npz", _zip("labels.npy"), (_DATA,)),
    ("a tar.gz of 1 GB of zeros", "bomb.tar.gz", _tar, (_DATA, _PREDICT)),
    ("1 GB of zeros as idx", "train-images-idx3-ubyte.gz", _gz, ("evaluate run --data FILE --protocol clean -q",)),
    ("a PNG of 9400 x 9400, 16 bits", "bomb.png", _bytes(lambda: png(9400, 9400, 16, 6)), (_PREDICT,)),
    ("a PNG of 9400 x 9400, 16 bits grey", "bomb.png", _bytes(lambda: png(9400, 9400, 16, 0)), (_PREDICT,)),
    ("a PNG of 30000 x 30000", "bomb.png", _bytes(lambda: png(30000, 30000, 8, 0)), (_PREDICT,)),
    ("a PNG of 60000 x 1000", "bomb.png", _bytes(lambda: png(60000, 1000, 8, 2)), (_PREDICT,)),
    ("a PNG that claims 10^9 x 10^9", "bomb.png", _bytes(lambda: _claimed_png(10**9, 10**9)), (_PREDICT,)),
    ("a PNG with 200 MB of text", "bomb.png", _bytes(_text_bomb), (_PREDICT,)),
    ("a BMP that claims 50000 x 50000", "bomb.bmp", _bytes(lambda: _bmp(50000, 50000)), (_PREDICT,)),
    ("a GIF that claims 65535 x 65535", "bomb.gif", _bytes(lambda: _gif(65535, 65535)), (_PREDICT,)),
    ("class names of 50 MB", "names.txt", _text("x\n" * 25_000_000),
     ("predict weights.safetensors digit.png --network small-resnet,width=4 --classes FILE --size 8",)),
    ("a log of one line of 50 MB", "log.csv", _text("epoch,pgd\n" + "1," * 25_000_000), _LOG),
    ("a log of 50 MB", "log.csv", _text("epoch,pgd\n" + "1,0.5\n" * 8_000_000), _LOG),
    ("a log with 100,000 digits", "log.csv", _text(f"epoch,pgd\n1,{_DIGITS}\n"), _LOG),
    ("a log with 10^6 columns", "log.csv", _text("a," * 10**6 + "epoch,pgd\n"), _LOG),
    ("a log of JSON 200,000 deep", "log.json", _text(_DEEP), _LOG),
    ("a log of JSON lines 200,000 deep", "log.jsonl", _text(_DEEP), _LOG),
    *[(name, "bomb.yaml", write, _RECIPE) for name, write in _SPECIAL.items()],
    *[(name, "bomb.npz", write, (_DATA,)) for name, write in _SPECIAL.items()],
    *[(name, "bomb.png", write, (_PREDICT,)) for name, write in _SPECIAL.items()],
    *[(name, "bomb.safetensors", write, (*_CLASSIFIER, *_WEIGHTS)) for name, write in _SPECIAL.items()],
    *[(name, "bomb.pt", write, _WEIGHTS) for name, write in _SPECIAL.items()],
    *[(name, "log.csv", write, _LOG) for name, write in _SPECIAL.items()],
    ("a header of 1 GB", "bomb.safetensors", _sparse(2 * _GIGABYTE, struct.pack("<Q", _GIGABYTE)),
     (*_CLASSIFIER, *_WEIGHTS)),
    ("a pickle of 1 GB of zeros", "bomb.pt", _zip("archive/data.pkl"), _WEIGHTS),
)  # fmt: skip

# Written over files of a run folder. `--resume` reads the unfinished run's.
_READ_RUN = ("report run", "compare run --format csv")
_LINE = json.dumps({"kind": "step", "step": 1, "epoch": 1.0, "minutes": 0.1})
RUN_FILES: tuple[tuple[str, str, Callable[[Path], Any], tuple[str, ...]], ...] = (
    ("100 MB", "metrics.jsonl", _text(_LINE[:-1] + ', "x": "' + "x" * 100 * _MEGABYTE + '"}\n'), _READ_RUN),
    ("100 MB", "status.json", _text('{"status": "' + "x" * 100 * _MEGABYTE + '"}'), _READ_RUN),
    ("100 MB", "evaluation/clean.json", _text('{"protocol": "' + "x" * 100 * _MEGABYTE + '"}'), _READ_RUN),
    ("100 MB", "config.yaml", _text("data: {name: " + "x" * 100 * _MEGABYTE + "}"), _READ_RUN),
    ("200,000 lists", "metrics.jsonl", _text(_DEEP + "\n"), (*_READ_RUN, "monitor run")),
    ("200,000 lists", "events.jsonl", _text(_DEEP + "\n"), _READ_RUN),
    ("200,000 lists", "status.json", _text(_DEEP), _READ_RUN),
    ("200,000 lists", "environment.json", _text(_DEEP), _READ_RUN),
    ("200,000 lists", "evaluation/clean.json", _text(_DEEP), (*_READ_RUN, "evaluate run --images 5 -q")),
    ("an anchor bomb", "config.yaml", _text(_anchors("training")), (*_READ_RUN, "predict run digit.png")),
    *[
        (name, file, write, _READ_RUN)
        for name, write in list(_SPECIAL.items())[:2]
        for file in ("status.json", "metrics.jsonl", "events.jsonl", "evaluation/clean.json", "config.yaml")
    ],
)  # fmt: skip

# Long arguments: a pattern that backtracks needs minutes for them.
_PATTERNS = {
    "100,000 digits": _DIGITS, "100,000 digits and a letter": _DIGITS + "x", "100,000 spaces": " " * 100_000 + "x",
    "100,000 underscores": "1" + "_" * 100_000, "100,000 brackets": "[" * 100_000,
    "100,000 slashes": "1" + "/" * 100_000, "100,000 colons": "1:" * 50_000, "100,000 dots": "." * 100_000,
    "100,000 exponents": "1e" * 50_000, "an anchor bomb": "[&a [x,x,x,x,x,x,x,x,x], " + ", ".join(
        f"&{chr(98 + n)} [" + ",".join([f"*{chr(97 + n)}"] * 9) + "]" for n in range(9)) + "]",
}  # fmt: skip
_ARGUMENTS = (
    ("train", "digits/pgd-at", "threat.radius=X"), ("train", "digits/pgd-at", "training.epochs=X"),
    ("train", "digits/pgd-at", "X=1"), ("train", "X"), ("evaluate", "run", "--radius", "X"),
    ("evaluate", "run", "--protocol", "X"), ("evaluate", "run", "--data", "X"), ("predict", "run", "X"),
    ("generate", "run", "--start", "X"), ("predict", "run", "digit.png", "--mean", "X", "--std", "1"),
    ("predict", "run", "digit.png", "--classes", "X"), ("predict", "run", "digit.png", "--network", "X"),
)  # fmt: skip


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """The cases; of the short form every 40th, and none that writes a gigabyte."""
    every = list(_all_cases(Sound(folder), short))
    yield from every[::40] if short else every


def _all_cases(sound: Sound, short: bool) -> Iterator[Case]:
    def prepare(target: Path) -> None:
        copy_of(sound.folder / FINISHED, target / "run")
        digit(target / "digit.png")

    for title, argument in _PATTERNS.items():
        for words in _ARGUMENTS:
            action = tuple(word.replace("X", argument) for word in words)
            yield _case(f"{title}: {' '.join(words)}", prepare, action, must_refuse)
    for title, file, write, commands in FILES:
        if short and ("GB" in title or "MB" in title):
            continue
        for command in commands:
            judge = nothing_wrong if "comments" in title or title.startswith("a PNG of") else must_refuse
            yield _case(f"{title} as {file}: {command}", _both(prepare, sound, title, file, write),
                        tuple(command.replace("FILE", file).split()), judge)  # fmt: skip
    for title, file, write, commands in RUN_FILES:
        if short and "MB" in title:
            continue
        for command in commands:
            yield _case(f"{title} in {file}: {command}", _both(prepare, sound, title, f"run/{file}", write),
                        tuple(command.split()), nothing_wrong)  # fmt: skip


def _case(title: str, prepare: Callable[[Path], Any], action: tuple[str, ...], judge: Judge) -> Case:
    return Case(title, prepare, action, judge)


def _both(
    prepare: Callable[[Path], None], sound: Sound, title: str, name: str, write: Callable[[Path], Any]
) -> Callable[[Path], None]:
    """Prepares, and writes the bomb; one that takes long to make is kept."""

    def both(target: Path) -> None:
        prepare(target)
        file = target / name
        if "GB of" not in title and "PNG" not in title:
            file.unlink(missing_ok=True)
            write(file)
            return
        kept = sound.folder / "bombs" / f"{zlib.crc32(title.encode()):08x}-{file.name}"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            write(kept)
        os.link(kept, file)

    return both
