"""Official archives, in miniature: the formats as released, their faults, and pickles that must not run."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilemma.config.registry import DATASETS
from trilemma.data import catalogue, load_images, load_splits
from trilemma.data.readers import load_arrays, parse_idx
from trilemma.errors import DataError

RANDOM = np.random.default_rng(0)


Pickler: Any = vars(pickle)["_Pickler"]  # the one written in Python, whose steps can be replaced


class Python2Pickler(Pickler):  # type: ignore[misc]
    """Writes bytes as Python 2 wrote its strings."""

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, bytes):
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        else:
            super().save(value, save_persistent_id)


def python2_pickle(value: Any) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, root: Path, files: dict[str, bytes]) -> Path:
    """Put files into root and their checksums into the table."""
    archives = []
    old = catalogue.find_dataset(name)
    for archive in old.archives:
        root.mkdir(exist_ok=True)
        (root / archive.file).write_bytes(files[archive.file])
        checksum = hashlib.md5(files[archive.file]).hexdigest()
        archives.append(catalogue.Archive(archive.file, archive.url, checksum))
    new = dataclasses.replace(old, archives=tuple(archives))
    monkeypatch.setattr(catalogue, DATASETS.row(name).target.partition(":")[2], new)
    return root


def cifar10_archive(build: Any, tmp_path: Path, **changes: bytes) -> tuple[bytes, np.ndarray, np.ndarray]:
    images = RANDOM.integers(0, 256, (120, 3072), dtype=np.uint8)
    labels = np.arange(120) % 10
    members = {}
    for k, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        part = slice(20 * k, 20 * k + 20)
        batch = {b"data": images[part], b"labels": labels[part].tolist(), b"batch_label": b"one of six"}
        members[f"cifar-10-batches-py/{name}"] = changes.get(name, python2_pickle(batch))
    path = build.tar(tmp_path / "made.tar.gz", members)
    return path.read_bytes(), images.reshape(-1, 3, 32, 32), labels


def test_cifar10_is_read_in_official_order(
    tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, images, labels = cifar10_archive(build, tmp_path)
    root = publish(monkeypatch, "cifar10", tmp_path / "root", {"cifar-10-python.tar.gz": data})
    everything = load_images("cifar10", split="all", root=root)
    assert np.array_equal(everything.images.numpy(), images)
    assert everything.labels.tolist() == labels.tolist()
    splits = load_splits("cifar10", root, held_out=0.2)
    assert (splits.test.name, splits.test.class_names[3]) == ("cifar10", "cat")
    assert [len(part) for part in (splits.train, splits.held_out, splits.test)] == [80, 20, 20]
    assert np.array_equal(splits.test.images.numpy(), images[100:])
    assert load_splits("cifar10", root / "cifar-10-python.tar.gz").test.name == "cifar10"
    small = load_images("cifar10", root=root, size=16)
    assert small.name == "cifar10@16"
    assert (
        np.abs(small.images.numpy() - images[100:].reshape(20, 3, 16, 2, 16, 2).mean((3, 5))).max() <= 1
    )  # Pillow rounds once per axis


def test_cifar100_takes_fine_labels_and_its_own_names(
    tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batch(count: int) -> bytes:
        images = np.zeros((count, 3072), np.uint8)
        return python2_pickle(
            {b"data": images, b"fine_labels": [k % 4 for k in range(count)], b"coarse_labels": []}
        )

    members = {
        "cifar-100-python/meta": python2_pickle({b"fine_label_names": [b"apple", b"bee", b"can", b"elk"]}),
        "cifar-100-python/test": batch(8),
        "cifar-100-python/train": batch(40),
    }
    data = build.tar(tmp_path / "made.tar.gz", members).read_bytes()
    root = publish(monkeypatch, "cifar100", tmp_path / "root", {"cifar-100-python.tar.gz": data})
    splits = load_splits("cifar100", root)
    assert splits.train.class_names == ("apple", "bee", "can", "elk")
    assert [len(part) for part in (splits.train, splits.held_out, splits.test)] == [36, 4, 8]


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def test_a_pickle_that_calls_something_is_refused_and_does_not_run(
    tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = pickle.dumps({"data": Malicious(tmp_path / "hit")}, protocol=2)
    data, _, _ = cifar10_archive(build, tmp_path, data_batch_3=attack)
    root = publish(monkeypatch, "cifar10", tmp_path / "root", {"cifar-10-python.tar.gz": data})
    with pytest.raises(
        DataError, match=r"data_batch_3: not a pickle of plain arrays \(it refers to \w+\.mkdir\)"
    ):
        load_splits("cifar10", root)
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("call", [eval, print, pickle.loads, getattr, np.load, np.fromfile])
def test_no_callable_gets_through(call: Any) -> None:
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return call, ("x",)

    for protocol in (2, 4, 5):
        with pytest.raises(DataError, match="it refers to"):
            load_arrays(pickle.dumps([Call()], protocol), "batch")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_values_or_a_data_error(data: bytes) -> None:
    try:
        load_arrays(data, "batch")
    except DataError as error:
        message = str(error)
    else:
        return
    assert message.startswith("batch: not a pickle of plain arrays")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 255), st.integers(-3, 3))
def test_idx_is_read_back_and_any_other_length_refused(shape: list[int], value: int, extra: int) -> None:
    array = np.full(shape, value, np.uint8)
    data = idx(array)
    assert np.array_equal(parse_idx(data, "f"), array)
    if extra:
        with pytest.raises(DataError, match=r"f: truncated or damaged IDX file|f: not an IDX file"):
            parse_idx(data + b"x" * extra if extra > 0 else data[:extra], "f")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_idx_of_any_bytes_is_an_array_or_a_data_error(data: bytes) -> None:
    try:
        array = parse_idx(data, "f")
    except DataError as error:
        message = str(error)
    else:
        assert array.size + 4 + 4 * data[3] == len(data)
        return
    assert message.startswith("f: ")


def mnist_files(train: int = 30, test: int = 20, test_labels: int = 20) -> dict[str, bytes]:
    files = {
        "train-images-idx3-ubyte.gz": RANDOM.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte.gz": (np.arange(train) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte.gz": RANDOM.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte.gz": (np.arange(test_labels) % 10).astype(np.uint8),
    }
    return {name: gzip.compress(idx(array)) for name, array in files.items()}


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    files = mnist_files()
    splits = load_splits(name, publish(monkeypatch, name, tmp_path / "root", files))
    assert (splits.test.name, splits.test.image_shape, len(splits.test)) == (name, (1, 28, 28), 20)
    expected = np.frombuffer(gzip.decompress(files["t10k-images-idx3-ubyte.gz"])[16:], np.uint8)
    assert np.array_equal(splits.test.images.numpy().ravel(), expected)


def test_faults_of_official_archives_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = publish(monkeypatch, "mnist", tmp_path / "a", mnist_files(test_labels=19))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: 19 labels for 20 images"):
        load_splits("mnist", root)
    cut = mnist_files()
    cut["train-images-idx3-ubyte.gz"] = cut["train-images-idx3-ubyte.gz"][:500]
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: truncated or damaged archive"):
        load_splits("mnist", publish(monkeypatch, "mnist", tmp_path / "b", cut))
    (root / "train-labels-idx1-ubyte.gz").write_bytes(b"other")
    with pytest.raises(DataError, match=r"wrong checksum \(md5"):
        load_splits("mnist", root)
    (root / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte\.gz is missing beside the other archives of mnist"
    ):
        load_splits("mnist", root)


def test_svhn_turns_ten_into_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat  # type: ignore[import-untyped]

    files, images = {}, RANDOM.integers(0, 256, (32, 32, 3, 40), dtype=np.uint8)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        stream = io.BytesIO()
        savemat(stream, {"X": images, "y": (np.arange(40) % 10 + 1).astype(np.uint8)[:, None]})
        files[name] = stream.getvalue()
    root = publish(monkeypatch, "svhn", tmp_path / "a", files)
    test = load_splits("svhn", root).test
    assert test.labels.tolist() == [(k % 10 + 1) % 10 for k in range(40)]
    assert np.array_equal(test.images.numpy(), images.transpose(3, 2, 0, 1))
    files["test_32x32.mat"] = files["test_32x32.mat"][:300]
    with pytest.raises(DataError, match=r"test_32x32\.mat: truncated or damaged MATLAB file"):
        load_splits("svhn", publish(monkeypatch, "svhn", tmp_path / "b", files))


def test_without_root_archives_are_downloaded_into_the_cache(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = mnist_files()
    publish(monkeypatch, "mnist", tmp_path / "a", files)
    asked = []

    def fetch(url: str, target: Path, checksum: str) -> None:
        asked.append(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[target.name])

    monkeypatch.setattr("trilemma.data.locate.fetch", fetch)
    assert len(load_splits("mnist").test) == 20
    assert asked == [archive.url for archive in catalogue.MNIST.archives]
    assert (own_cache / "downloads/mnist/train-images-idx3-ubyte.gz").exists()
