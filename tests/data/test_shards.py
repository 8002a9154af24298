"""Tar shards: what is written and counted, the order in which they are read, and what is refused."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.conftest import Build

from trilemma.data import Loader, load_images, load_splits, shards
from trilemma.data.sharding import shard_source
from trilemma.data.stream import ShardStream
from trilemma.errors import DataError, MissingExtraError
from trilemma.files import file_sha256

pytest.importorskip("webdataset", reason="needs the extra stream")


@pytest.fixture
def written(tmp_path: Path, build: Build) -> Path:
    """Shards of a folder of 2 classes: 40 training images in 6 shards of 7, and 8 test images."""
    files = {**build.classes("train", 20), **build.classes("test", 4, 60)}
    out = tmp_path / "shards"
    shard_source(str(build.folder(tmp_path / "images", files)), out, per_shard=7)
    return out


def stream_of(folder: Path, window: int | None = None) -> ShardStream:
    stream = load_splits("shards", folder, held_out=0.1, window=window).stream
    assert stream is not None
    return stream


def pixels(images: torch.Tensor) -> list[int]:
    """The grey value of each image, which identifies it."""
    return sorted(images.flatten(1)[:, 0].tolist())


def test_shards_hold_the_files_of_a_folder_mixed_by_class(written: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in written.iterdir())
    assert names == [
        "shards.json",
        *(f"{s}-00000{n}.tar" for s, k in (("test", 2), ("train", 6)) for n in range(k)),
    ]
    originals = {path.read_bytes() for path in (tmp_path / "images").rglob("*.png")}
    samples = [sample for path in written.glob("*.tar") for sample in shards.read_shard(path)]
    assert {sample.data for sample in samples} == originals and len(samples) == 48
    for path in written.glob("train-*.tar"):
        assert {sample.label for sample in shards.read_shard(path)} == {0, 1}
    index = json.loads((written / "shards.json").read_text())
    assert index["class_names"] == ["cat", "dog"] and index["size"] == [4, 4] and index["channels"] == 1


def test_the_same_images_give_the_same_shards(written: Path, tmp_path: Path) -> None:
    shard_source(str(tmp_path / "images"), tmp_path / "again", per_shard=7)
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_splits_of_shards_are_those_of_the_folder_that_was_written(written: Path, tmp_path: Path) -> None:
    here, there = load_splits("shards", written), load_splits("folder", tmp_path / "images")
    assert pixels(here.test.images) == pixels(there.test.images)
    assert here.stream is not None and len(here.stream) == len(there.train) == 36 and len(here.held_out) == 4
    everything = pixels(here.train.images) + pixels(here.held_out.images)
    assert sorted(everything) == sorted(pixels(there.train.images) + pixels(there.held_out.images))
    assert here.train.name == here.stream.name == here.test.name and here.test.name.startswith("shards:")
    assert pixels(load_images(written).images) == pixels(there.test.images)
    assert load_images(written, size=(2, 2)).name == f"{here.test.name}@2"


def test_at_most_so_many_images_are_decoded_and_the_stream_has_all(written: Path) -> None:
    splits = load_splits("shards", written, held_out=0.3, resident=6)
    assert (len(splits.train), len(splits.held_out), len(splits.training)) == (6, 6, 34)
    assert splits.train.selection == "6 of the 34 training images"
    assert splits.train.labels.bincount().tolist() == [3, 3]
    few = load_splits("shards", written, train_images=10, resident=6)
    assert (len(few.training), few.training.name) == (10, f"{splits.train.name}[:10]")
    assert few.train.name == few.training.name


def test_arrays_become_png_with_their_pixels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 30), ("val", 10), ("test", 12)):
        arrays[f"x_{split}"] = generator.integers(0, 256, (count, 5, 4, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 3
    np.savez(tmp_path / "a.npz", class_names=["a", "b", "c"], **arrays)
    index = shard_source(str(tmp_path / "a.npz"), tmp_path / "out", per_shard=20)
    assert index.spans == {"train": (0, 30), "val": (30, 40), "test": (40, 52)}
    here, there = load_splits("shards", tmp_path / "out"), load_splits("folder", tmp_path / "a.npz")
    for a, b in ((here.train, there.train), (here.held_out, there.held_out), (here.test, there.test)):
        rows = [torch.cat([part.labels[:, None], part.images.flatten(1)], 1).tolist() for part in (a, b)]
        assert sorted(rows[0]) == sorted(rows[1]) and a.class_names == b.class_names


def test_shards_of_another_program_are_counted(tmp_path: Path, build: Build) -> None:
    folder = tmp_path / "foreign"
    sample = {
        "a/0.PNG": build.colour(9),
        "a/0.cls": b"1\n",
        "a/0.json": b"{}",
        "a/1.png": build.grey(5),
        "a/1.cls": b"0",
    }
    build.tar(folder / "imagenet1k-train-0000.tar", sample)
    build.tar(folder / "imagenet1k-validation-00.tar", {"x.png": build.colour(7, 6, 8), "x.cls": b"2"})
    (folder / "classnames.txt").write_text("cat\ndog\nfox\n")
    index = shards.index_shards(folder)
    assert index.spans == {"train": (0, 2), "val": (2, 3)} and index.class_names == ["cat", "dog", "fox"]
    assert (index.channels, index.size) == (3, [4, 4])
    # Without a test split, val is the test part, as of a folder.
    image = load_images(folder, split="test")
    assert image.labels.tolist() == [2] and image.image_shape == (3, 4, 4) and pixels(image.images) == [7]


def test_the_order_of_an_epoch_is_a_permutation_that_moves_images_by_at_most_a_window(written: Path) -> None:
    stream = stream_of(written, window=5)
    orders = [stream.order(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert orders[0].sort().values.tolist() == list(range(36))
    # the shard of each image in turn: no image of a shard is more than a shard and a window from its place
    shard = torch.searchsorted(torch.tensor(stream.folder.ends), stream.positions[orders[0]], right=True)
    for one in shard.unique():
        places = (shard == one).nonzero().flatten()
        assert places.max() - places.min() < 7 + 2 * 5
    wide = stream_of(written, window=10_000).order(torch.Generator().manual_seed(0))
    assert (
        len(
            set(
                torch.searchsorted(
                    torch.tensor(stream.folder.ends), stream.positions[wide[:12]], right=True
                ).tolist()
            )
        )
        > 3
    )


def test_batches_are_those_images_whatever_the_first_step_and_the_number_of_ranks(written: Path) -> None:
    stream = stream_of(written, window=6)
    everything = stream_of(written)
    known = torch.cat([*everything.batches([torch.arange(36)])])

    def epoch(
        first: int = 0, rank: int = 0, ranks: int = 1
    ) -> list[tuple[list[int], list[int], list[float]]]:
        batches = Loader(stream, 12, seed=3, rank=rank, world_size=ranks).epoch(1, first)
        return [
            (b.indices.tolist(), b.labels.tolist(), b.images[:, 0, 0, 0].tolist())
            for b in batches
            if b.indices is not None
        ]

    whole = epoch()
    for indices, labels, values in whole:
        assert values == pytest.approx((known[indices][:, 0, 0, 0] / 255).tolist())
        assert labels == stream.labels[indices].tolist()
    assert sorted(index for indices, _, _ in whole for index in indices) == list(range(36))
    assert [epoch(first) for first in (1, 2)] == [whole[1:], whole[2:]]
    # more processes than any shard has to itself
    parts = [epoch(rank=rank, ranks=12) for rank in range(12)]
    for step, (indices, _, _) in enumerate(whole):
        assert [part[step][0][0] for part in parts] == indices


def test_a_shard_is_read_once_and_one_that_is_not_needed_never(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(written, window=1)
    read: list[str] = []
    original = shards.read_shard

    def reading(path: Path) -> Iterator[shards.Sample]:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(shards, "read_shard", reading)
    whole = [batch.indices for batch in Loader(stream, 6, seed=1).epoch(0)]
    assert sorted(read) == [f"train-00000{n}.tar" for n in range(6)]
    first = read.copy()
    read.clear()
    rest = [batch.indices for batch in Loader(stream, 6, seed=1).epoch(0, 4)]
    assert torch.equal(torch.cat(rest), torch.cat(whole[4:]))  # type: ignore[arg-type]
    assert len(read) <= 3 and set(read) <= set(first[3:])


def remove_a_shard(folder: Path) -> None:
    (folder / "train-000002.tar").unlink()


def shorten_a_shard(folder: Path) -> None:
    path = folder / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:-512])


def remove_the_index(folder: Path) -> None:
    (folder / "shards.json").unlink()


def change_the_index(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "shards.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_a_shard, r"train-000002.tar: this shard is missing, one of the 8 of shards.json; .*trilemma shards"),
        (shorten_a_shard, r"train-000002.tar: this shard has [\d,]+ bytes, but [\d,]+ in shards.json; copy it again"),
        (remove_the_index, r"number of its images is unknown, since it has no shards.json; .*trilemma shards"),
        (change_the_index('"labels": [', '"labels": [9, '), r"label 9 of train-000000.tar is out of range"),
        (change_the_index('"labels": [', '"labels": [-1, '), r"shards.json: shards.0.labels.0 = -1: must be greater"),
        (change_the_index("train-000000", "../000000"), r"shard '../000000.tar' is not in the folder itself"),
        (change_the_index('"format": 1', '"format": 2'), r"shards.json: format = 2: must be 1"),
        (change_the_index('{"format"', "{"), r"shards.json: .*trilemma shards"),
        (change_the_index('"dog"', '"cat"'), r"cat"),
    ],
)  # fmt: skip
def test_wrong_shards_are_one_line(written: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(written)
    with pytest.raises(DataError, match=message) as error:
        load_splits("shards", written)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.png": b"no image", "a.cls": b"0"},
            r"a.tar:a.png: cannot be decoded as an image .*replace or remove it",
        ),
        ({"a.png": Build.grey(3)}, r"a.tar:a: has no KEY.cls; a sample needs the number of its class"),
        ({"a.png": Build.grey(3), "a.cls": b"cat"}, r"a.tar:a: has 'cat' as its class"),
        ({"a.cls": b"0"}, r"a.tar:a: has cls; a sample needs one image, such as KEY.jpg"),
        ({"a.png": Build.grey(3), "a.jpg": Build.grey(3), "a.cls": b"0"}, r"a.tar:a: has png, jpg, cls; "),
        ({}, r"a.tar: holds no sample; remove it"),
    ],
)
def test_wrong_samples_are_one_line(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    Build.tar(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=message):
        shards.index_shards(tmp_path)


def test_damaged_and_compressed_shards_are_one_line(tmp_path: Path, build: Build) -> None:
    whole = build.tar(
        tmp_path / "whole.tar", {"a.png": build.png(np.zeros((60, 60, 3), np.uint8)), "a.cls": b"0"}
    )
    content = whole.read_bytes()
    whole.unlink()
    path = tmp_path / "a.tar"
    for damaged in (content[:600], content[:100], b"nothing"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a.tar: truncated or damaged shard \(.*\); get it again"):
            shards.index_shards(tmp_path)
    build.tar(tmp_path / "b.tar.gz", {"a.png": build.grey(3), "a.cls": b"0"}).rename(path)
    with pytest.raises(DataError, match=r"a.tar: truncated or damaged shard"):
        shards.index_shards(tmp_path)


def test_members_of_a_size_that_no_image_has_are_refused_unread(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("a.png")
    entry.size = 10**13
    (tmp_path / "a.tar").write_bytes(entry.tobuf() + bytes(10_240))
    with pytest.raises(DataError, match=r"a.tar:a.png: 10,000,000 MB, more than"):
        shards.index_shards(tmp_path)


@pytest.mark.parametrize("same_labels", [True, False])
def test_a_shard_that_changed_since_it_was_counted_is_found_before_it_is_used(
    written: Path, build: Build, same_labels: bool
) -> None:
    path = written / "train-000000.tar"
    size = path.stat().st_size
    labels = [sample.label if same_labels else 1 for sample in shards.read_shard(path)]
    names = {f"{k}.png": build.grey(k) for k in range(len(labels))}
    names |= {f"{k}.cls": str(label).encode() for k, label in enumerate(labels)}
    build.tar(path, dict(sorted(names.items())))
    with path.open("ab") as stream:
        stream.truncate(size)
    with pytest.raises(
        DataError, match=r"train-000000.tar: its content does not match the checksum in shards.json"
    ):
        load_splits("shards", written)


def test_an_index_with_other_labels_than_the_shard_is_found(written: Path) -> None:
    index = json.loads((written / "shards.json").read_text())
    index["shards"][0]["labels"].reverse()
    index["shards"][0]["labels"][0] ^= 1
    (written / "shards.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"train-000000.tar: holds other samples than shards.json says"):
        list(shards.ShardFolder.open(written).read(0))


def test_the_checksum_of_a_shard_is_computed_again_only_if_the_file_changes(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests: list[Path] = []

    def digest(path: Path) -> str:
        digests.append(path)
        return file_sha256(path)

    monkeypatch.setattr(shards, "file_sha256", digest)
    folder = shards.ShardFolder.open(written)
    first, second = list(folder.read(0)), list(folder.read(0))
    path = written / "train-000000.tar"
    assert first == second and digests == [path]
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="does not match the checksum"):
        list(folder.read(0))
    path.unlink()
    with pytest.raises(
        DataError, match=r"train-000000.tar: this shard cannot be read \(No such file or directory\)"
    ):
        list(folder.read(0))


def test_without_the_extra_its_name_is_said(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(MissingExtraError, match=r"tar shards need webdataset .*pip install -e '.\[stream\]'"):
        load_splits("shards", written)


def test_keys_of_shards_are_refused_for_other_data(written: Path) -> None:
    with pytest.raises(DataError, match=r"data.window is for tar shards, not for 'digits'"):
        load_splits("digits", window=5)
    with pytest.raises(DataError, match=r"data.resident is for tar shards, not for 'digits'"):
        load_splits("digits", resident=5)
    with pytest.raises(
        DataError, match=r"data.resident is 1; .* has 2 classes, give at least one image of each"
    ):
        load_splits("shards", written, resident=1)
    with pytest.raises(DataError, match=r"data set 'shards' needs root: a folder of tar shards"):
        load_splits("shards")
    with pytest.raises(DataError, match=r"train_images is 99; .* has 36 training images"):
        load_splits("shards", written, train_images=99)


def test_shards_are_never_written_over_anything(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not empty; refusing to overwrite"):
        shard_source("digits", written)
    with pytest.raises(DataError, match="is a folder of shards already"):
        shard_source(str(written), tmp_path / "twice")


def test_a_corrupt_image_of_a_source_is_found_while_writing(tmp_path: Path, build: Build) -> None:
    files = {**build.classes("", 4), "cat/9.png": build.grey(1)[:40]}
    source = build.folder(tmp_path / "images", files)
    with pytest.raises(DataError, match=r"images:cat/9.png: cannot be decoded as an image"):
        shard_source(str(source), tmp_path / "out")
    assert not (tmp_path / "out" / "shards.json").exists()


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    # A header of GNU's old format: type S, 4 bytes stored, 10^12 bytes in all.
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157] = b"00000000004\0", b"S"
    header[386:410], header[483:495] = b"00000000000\0" + b"00000000004\0", b"14432451000\0"[:12]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    stream = io.BytesIO(bytes(header) + b"abcd" + bytes(508 + 1024))
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    with pytest.raises(DataError, match=r"a.tar:a.png: is stored as a sparse file"):
        shards.index_shards(tmp_path)
