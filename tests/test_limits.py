"""Limits: hostile input ends in one line before its memory is allocated, and large input of use is still read."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma import limits
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.foreign_weights import read_weights
from trilemma.classifier.source import ClassifierSource
from trilemma.config.yaml_text import parse_value, parse_yaml, read_text
from trilemma.data import pictures
from trilemma.data.containers import open_container, read_file
from trilemma.data.pictures import decode, read_header
from trilemma.data.readers import load_arrays, read_cifar10, read_idx_set
from trilemma.data.sources import load_images
from trilemma.errors import ConfigError, DataError, UserError

ZEROS = bytes(1 << 20)
# Zeros in a bomb, MB.
SIZE = 160
MOST_MB, MOST_SECONDS = 200, 2.0


def outcome(read: Callable[[], object]) -> tuple[str, float, float]:
    """The message of the user error that ``read`` raises, the growth of the peak of memory in MB, and CPU seconds.

    In a process of its own, since the peak of a process never falls.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            read()
            message = "no error"
        except UserError as error:
            message = str(error)
        except BaseException as error:
            message = f"not a user error: {error!r}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(sender, json.dumps([message, grown, time.process_time() - began]).encode())
        os._exit(0)
    os.close(sender)
    with open(receiver, "rb") as stream:
        message, grown, seconds = json.loads(stream.read())
    os.waitpid(child, 0)
    return message, grown, seconds


def check(read: Callable[[], object], words: str) -> None:
    message, grown, seconds = outcome(read)
    assert words in message
    assert "\n" not in message and grown < MOST_MB and seconds < MOST_SECONDS


def zipped(path: Path, *members: tuple[str, bytes, int]) -> Path:
    """A zip of members (name, first bytes, MB of zeros behind them)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, first, megabytes in members:
            with archive.open(name, "w", force_zip64=True) as stream:
                stream.write(first)
                for _ in range(megabytes):
                    stream.write(ZEROS)
    return path


def npy(*shape: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """The beginning of a PNG: its size is known, and it has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def folder(root: Path, name: str, content: bytes, size: int | None = None) -> Path:
    """An image folder of two classes with one small image each, and a file in one of them."""
    for kind in "ab":
        (root / kind).mkdir(parents=True)
        Image.new("L", (4, 4)).save(root / kind / "0.png")
    with (root / "a" / name).open("wb") as stream:
        stream.write(content)
        stream.truncate(size)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(limits.FACTOR, raising=False)


@pytest.mark.parametrize("label", [20, 10**6, 10**9, 2**62])
def test_a_label_beyond_the_images_makes_no_names(tmp_path, label):
    labels = np.array([*range(19), label])
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((20, 4, 4), np.uint8), labels=labels)
    check(lambda: load_images(tmp_path / "a.npz"), f"label {label} of image 19 would be the last of")


def test_labels_in_memory_make_no_million_names():
    images, labels = torch.zeros(2, 1, 4, 4), torch.tensor([0, 10**9])
    check(lambda: load_images((images, labels)), "1,000,000,001 classes, more than the 100,000")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("images.npy", npy(SIZE, 1024, 1024), SIZE), ("labels.npy", npy(SIZE), 0)], "expands to 168 MB"),
        (
            [("images.npy", npy(10**6, 1000, 1000), 1), ("labels.npy", npy(10**6), 1)],
            "claims 1,000,000,000,000 b",
        ),
        ([("images.npy", b"\x93NUMPY\2\0\xff\xff\xff\x3f(", 1), ("labels.npy", npy(1), 1)], "a header of"),
        ([("images.npy", npy(2**40, 2**40), 1), ("labels.npy", npy(1), 1)], "its header claims"),
        ([("images", b"", SIZE), ("labels", b"", 1)], "needs images and labels"),
    ],
)
def test_an_npz_that_is_no_data_is_refused_by_its_headers(tmp_path, members, words):
    path = zipped(tmp_path / "a.npz", *members)
    check(lambda: load_images(path), words)


def test_an_array_that_is_not_used_is_not_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[0, 1])
    with zipfile.ZipFile(tmp_path / "a.npz", "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("other.npy", npy(SIZE << 20) + ZEROS * SIZE)
    check(lambda: load_images(tmp_path / "a.npz"), "no error")


def test_archives_of_zeros_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", ("a/0.png", b"", SIZE))
    check(
        lambda: load_images(path),
        "a.zip:a/0.png: 168 MB, more than the 150 MB that are read of an image file",
    )
    path = zipped(tmp_path / "b.zip", ("a/0.png", b"", 100))
    check(lambda: load_images(path), "b.zip:a/0.png: expands to 105 MB")
    tar = tarfile.TarInfo("a/0.png")
    tar.size = SIZE << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as stream:
        stream.write(tar.tobuf())
        for _ in range(80):
            stream.write(ZEROS)
    check(lambda: load_images(tmp_path / "a.tar.gz"), "more than the 150 times that are read of an archive")
    check(
        lambda: read_cifar10([tmp_path / "a.tar.gz"]), "more than the 150 times that are read of an archive"
    )


def test_a_file_name_in_a_tar_is_not_as_long_as_the_tar(tmp_path):
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, SIZE << 20
    with (tmp_path / "a.tar").open("wb") as stream:
        stream.write(long.tobuf())
        stream.truncate(SIZE << 20)
    check(lambda: open_container(tmp_path / "a.tar"), "a file name of 167,772,160 bytes")


def test_names_of_255_characters_in_a_tar_are_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(f"a/{'x' * 250}.png"))
    assert open_container(tmp_path / "a.tar").files == (f"a/{'x' * 250}.png",)


def test_files_of_mnist_that_claim_more_than_they_hold(tmp_path):
    images, labels = b"\0\0\x08\x03" + struct.pack(">III", 10**9, 1000, 1000), b"\0\0\x08\x01\0\0\0\1"
    for number, content in enumerate((images, labels, images, labels)):
        (tmp_path / f"{number}.gz").write_bytes(gzip.compress(content))
    files = [tmp_path / f"{number}.gz" for number in range(4)]
    check(lambda: read_idx_set(files), "16 bytes, expected 1000000000000016")
    with gzip.open(files[0], "wb", 1) as stream:
        for _ in range(80):
            stream.write(ZEROS)
    check(lambda: read_idx_set(files), "more than the 150 times that are read of an archive")


def test_a_pickle_that_numbers_its_objects_by_the_billion():
    for code in (b"r" + struct.pack("<I", 2**30), b"p1073741824\n"):
        check(partial(load_arrays, b"\x80\x02]" + code + b".", "x"), "object number 1,073,741,824")
    check(lambda: load_arrays(b"\x80\x02" + b"(" * 10_000_000 + b".", "x"), "more values than an archive has")
    content = {b"labels": list(range(1000)), b"names": [f"{k}" for k in range(1000)], b"data": np.arange(9)}
    assert load_arrays(pickle.dumps(content, protocol=3), "x")[b"labels"] == content[b"labels"]


@pytest.mark.parametrize(
    ("content", "size", "words"),
    [
        (png(9400, 9400, 16), None, "9,400 x 9,400 pixels, more than the 50 million pixels"),
        (png(20_000, 20_000, 1), None, "more than the 50 million pixels that are read of an image"),
        (png(8, 8), 4 << 30, "4,295 MB, more than the 150 MB that are read of an image file"),
    ],
)
@pytest.mark.parametrize("name", ["big.png", "big"])
def test_a_file_in_a_folder_that_is_too_large_is_named(tmp_path, name, content, size, words):
    root = folder(tmp_path / "images", name, content, size)
    check(lambda: load_images(root), words)
    assert name in outcome(lambda: load_images(root))[0]


def test_a_program_that_pillow_would_call_is_never_called(tmp_path):
    root = folder(
        tmp_path / "images", "x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    )
    with pytest.raises(DataError, match=r"x\.png: cannot be decoded as an image \(Pillow does not know"):
        load_images(root)


def test_images_that_decode_to_more_than_pixels_of_images_fill_no_disk(tmp_path):
    encoded = io.BytesIO()
    Image.new("1", (7000, 7000)).save(encoded, "PNG")
    root = folder(tmp_path / "images", "1.png", encoded.getvalue())
    (root / "b" / "1.png").write_bytes(encoded.getvalue() + b"1")
    for kind in "ab":
        (root / kind / "0.png").unlink()
    check(lambda: load_images(root), "images, decoded: expands to 98 MB")


def test_large_images_are_converted_in_strips_as_at_once(monkeypatch):
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (37, 23, 4), np.uint8), "RGBA")
    palette = Image.fromarray(generator.integers(0, 256, (37, 23, 3), np.uint8)).quantize(9)
    palette.info["transparency"] = 3
    deep = Image.fromarray(generator.integers(0, 65536, (37, 23), np.uint16))
    for picture in (colour, palette, deep, colour.convert("LA"), colour.convert("CMYK"), deep.convert("I")):
        whole = np.asarray(pictures._plain(picture))
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "_STRIP_PIXELS", 100)
            assert np.array_equal(np.asarray(pictures._plain(picture)), whole)


def test_the_limits_of_data_are_raised_by_a_factor(monkeypatch):
    photograph = png(10_000, 6_000)
    with pytest.raises(DataError, match="set TRILEMMA_LIMITS=10 if you trust it"):
        read_header(photograph, "x")
    monkeypatch.setenv(limits.FACTOR, "2")
    assert read_header(photograph, "x") == (6_000, 10_000, False)
    assert limits.IMAGE_PIXELS.value == 100_000_000 and limits.RECIPE.value == limits.RECIPE.most
    for factor in ("0.5", "many", "nan", "inf", ""):
        monkeypatch.setenv(limits.FACTOR, factor)
        with pytest.raises(ConfigError, match="give a factor from 1"):
            limits.IMAGE_FILE.check(1, "x")


def test_a_photograph_of_50_million_pixels_is_read():
    encoded = io.BytesIO()
    Image.new("L", (10_000, 5_000), 7).save(encoded, "PNG")
    assert (decode(encoded.getvalue(), (1, 2, 4), "x") == 7).all()


def test_recipes_of_50_mb_and_anchors_that_multiply(tmp_path):
    with (tmp_path / "big.yaml").open("wb") as stream:
        stream.truncate(50_000_000)
    check(
        lambda: read_text(tmp_path / "big.yaml"), "50,000 kB, more than the 128 kB that are read of a recipe"
    )
    check(
        lambda: parse_yaml("a: [" + "1," * 11_000 + "]", "x"),
        "x: line 1: has, with its anchors filled in, 11,003",
    )
    lines = ["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 40))]
    check(lambda: parse_yaml("\n".join(lines), "x"), "more than the 10,000 values that are read of a recipe")
    merged = ["a0: &a0 {x: 1}", *(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}" for k in range(1, 40))]
    check(lambda: parse_yaml("\n".join(merged), "x"), "more than the 10,000 values that are read of a recipe")
    check(
        lambda: parse_value(f"[{', '.join(line[4:] for line in lines)}]", "x=y"),
        "more than the 10,000 values",
    )
    check(lambda: parse_yaml("a: &a [*a]", "x"), "an anchor holds itself")
    check(lambda: parse_yaml("a: 0" + "1" * 100_000, "x"), "has two readings")
    assert parse_yaml("a: &a {x: [1, 2]}\nb: *a\nc:\n  <<: *a\n  y: 2", "x")["c"] == {"x": [1, 2], "y": 2}


def test_files_of_weights_with_headers_and_pickles_of_megabytes(tmp_path):
    with (tmp_path / "a.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", 90_000_000) + b"{")
        stream.truncate(100_000_000)
    for read in (Classifier.load, read_weights):
        check(
            partial(read, tmp_path / "a.safetensors"),
            "90 MB, more than the 4.0 MB that are read of a h",
        )
    torch.save({"w": torch.zeros(4)}, tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as small:
        members = [
            (info.filename, small.read(info), 100 if info.filename.endswith("pkl") else 0)
            for info in small.infolist()
        ]
    path = zipped(tmp_path / "a.pt", *members)
    check(lambda: read_weights(path), "a.pt: expands to 105 MB")
    assert read_weights(tmp_path / "small.pt").tensors.keys() == {"w"}


@pytest.mark.parametrize("name", ["a.npz", "a.zip", "a.tgz", "a.tar.gz", "a.tar", "a.bin"])
def test_a_large_file_of_another_kind_is_refused_before_all_of_it_is_read(tmp_path, name):
    path = tmp_path / name
    path.touch()
    os.truncate(path, 20_000_000_000)
    check(
        lambda: load_images(path),
        "unknown kind of file" if name == "a.bin" else "truncated or damaged archive",
    )


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        check(
            partial(read_file, tmp_path / name, name),
            f"{name}: is not a regular file; check the file",
        )
    check(lambda: load_images(tmp_path / "a.png"), "is neither a file nor a folder")
    source = ClassifierSource(str(tmp_path / "a.png"))
    check(source.check, "is not a regular file; give a run folder or a classifier file")
