"""Image folders and archives: every packing of the same images is the same data set."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data import ImageSet, load_images, load_splits
from trilemma.errors import ConfigError, DataError


def values(images: ImageSet) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


@pytest.fixture
def files(build: Any) -> dict[str, bytes]:
    return {**build.classes("train", 10), **build.classes("test", 3, first=50)}


@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.gz", ".tgz", ".zip"])
def test_every_packing_gives_the_same_set_and_name(
    tmp_path: Path, build: Any, files: dict[str, bytes], suffix: str
) -> None:
    pack = {"": build.folder, ".zip": build.zip}.get(suffix, build.tar)
    root = pack(tmp_path / f"pets{suffix}", files)
    splits = load_splits("folder", root)
    assert splits.train.class_names == ("cat", "dog")
    assert values(splits.test) == [50, 51, 52, 150, 151, 152]
    assert sorted(values(splits.train) + values(splits.held_out)) == [*range(10), *range(100, 110)]
    assert torch.bincount(splits.held_out.labels).tolist() == [1, 1]
    reference = load_splits("folder", build.folder(tmp_path / "reference", files))
    assert splits.test.name == reference.test.name
    assert splits.test.name.startswith("imagefolder:")
    assert len(splits.test.name) == len("imagefolder:") + 12


def test_an_archive_per_split(tmp_path: Path, build: Any) -> None:
    build.tar(tmp_path / "train_first20.tar.gz", build.classes("train", 10))
    build.tar(tmp_path / "test.tar.gz", build.classes("", 3, first=50))
    (tmp_path / "README.md").write_text("words")
    splits = load_splits("folder", tmp_path)
    assert (len(splits.train), len(splits.held_out), values(splits.test)) == (
        18,
        2,
        [50, 51, 52, 150, 151, 152],
    )


def test_val_is_test_only_where_there_is_no_test(tmp_path: Path, build: Any) -> None:
    two = build.folder(tmp_path / "two", {**build.classes("train", 10), **build.classes("val", 2, first=50)})
    assert values(load_splits("folder", two).test) == [50, 51, 150, 151]
    three = build.folder(
        tmp_path / "three",
        {
            **build.classes("train", 10),
            **build.classes("val", 2, first=50),
            **build.classes("test", 1, first=60),
        },
    )
    splits = load_splits("folder", three)
    assert (len(splits.train), values(splits.held_out), values(splits.test)) == (
        20,
        [50, 51, 150, 151],
        [60, 160],
    )


def test_without_splits_a_fixed_fifth_is_the_test_part(tmp_path: Path, build: Any) -> None:
    root = build.tar(tmp_path / "pets.tar", build.classes("", 20))
    splits = load_splits("folder", root, seed=3)
    assert (len(splits.train), len(splits.held_out), len(splits.test)) == (29, 3, 8)
    everything = values(splits.train) + values(splits.held_out) + values(splits.test)
    assert sorted(everything) == [*range(20), *range(100, 120)]
    assert values(load_images(root, "test")) == values(splits.test)
    assert len(load_images(root, split="all")) == 40


def test_all_images_of_a_source_without_splits_are_evaluated(tmp_path: Path, build: Any) -> None:
    root = build.folder(tmp_path / "pets", build.classes("", 20))
    images = load_images(root)
    assert (len(images), images.split, images.selection) == (40, "all", "source without splits")


def test_of_what_was_trained_on_the_part_that_training_left_out_is_evaluated(
    tmp_path: Path, build: Any
) -> None:
    """Recognised by content: the same images in a folder, in an archive, and resized."""
    root = build.folder(tmp_path / "pets", build.classes("", 20))
    splits = load_splits("folder", root, train_images=20)
    archive = build.zip(tmp_path / "copy.zip", build.classes("", 20))
    for path, size in ((root, None), (archive, None), (archive, 2)):
        images = load_images(path, size=size, trained_on=splits.train.name)
        assert values(images) == values(splits.test)
        assert (images.split, "stratified fifth" in images.selection) == ("test", True)
    assert len(load_images(root, trained_on="imagefolder:000000000000")) == 40


def test_a_folder_that_changed_since_the_training_is_refused(tmp_path: Path, build: Any) -> None:
    root = build.folder(tmp_path / "pets", build.classes("", 20))
    trained_on = load_splits("folder", root).train.name
    assert len(load_images("folder", root=root, trained_on=trained_on)) == 8
    build.folder(root, {"cat/new.png": build.grey(99)})
    with pytest.raises(DataError, match="its images changed since the training"):
        load_images("folder", root=root, trained_on=trained_on)
    # With a test split nothing is mixed up.
    build.folder(tmp_path / "two", {**build.classes("train", 9), **build.classes("test", 2, first=50)})
    assert len(load_images("folder", root=tmp_path / "two", trained_on=trained_on)) == 4


def test_training_images_alone_are_used_and_named(tmp_path: Path, build: Any) -> None:
    root = build.folder(tmp_path / "pets", build.classes("train", 10))
    for path in (root, root / "train"):
        images = load_images(path)
        assert (len(images), images.split, images.selection) == (20, "train", "source without a test split")
    splits = load_splits("folder", root)
    assert values(load_images(root, trained_on=splits.train.name)) == values(splits.test)


def test_a_folder_named_for_a_split_is_that_split(tmp_path: Path, build: Any) -> None:
    assert len(load_images(build.folder(tmp_path / "val", build.classes("", 5)))) == 10
    with pytest.raises(DataError, match="has no 'train' part"):
        load_images(tmp_path / "val", split="train")
    with pytest.raises(DataError, match="has no train part; add a folder"):
        load_splits("folder", tmp_path / "val")


def test_odd_sizes_follow_the_most_common_of_train(tmp_path: Path, build: Any) -> None:
    files = {f"train/a/{k}.png": build.grey(k, 4, 6) for k in range(10)} | {
        "train/a/x.png": build.grey(99, 20, 20)
    }
    files |= {"test/a/1.png": build.grey(7, 9, 9), "test/a/2.png": build.grey(8, 9, 9)}
    root = build.folder(tmp_path, files)
    assert load_images(root).image_shape == (1, 4, 6)
    assert values(load_images(root)) == [7, 8]
    resized = load_images(root, size=5)
    assert resized.image_shape == (1, 5, 5)
    assert resized.name.endswith("@5")


def test_one_colour_image_makes_all_three_channels(tmp_path: Path, build: Any) -> None:
    files = build.classes("train", 10) | build.classes("test", 1) | {"test/cat/c.png": build.colour(9)}
    assert load_splits("folder", build.folder(tmp_path, files)).train.image_shape == (3, 4, 4)


def test_large_images_decoded_by_threads_are_the_same(tmp_path: Path, build: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 80, 80, 3), dtype=np.uint8)
    root = build.zip(tmp_path / "test.zip", {f"a/{k}.png": build.png(noise[k]) for k in range(6)})
    assert np.array_equal(load_images(root).images.numpy(), noise.transpose(0, 3, 1, 2))


def test_class_names_renumber_the_labels(tmp_path: Path, build: Any) -> None:
    root = build.folder(tmp_path / "test", build.classes("", 2))
    images = load_images(root, class_names=("dog", "bird", "cat"))
    assert images.labels.tolist() == [2, 2, 0, 0]
    assert images.class_names == ("dog", "bird", "cat")
    with pytest.raises(DataError, match="class 'dog' is none of the classifier's 2 classes"):
        load_images(root, class_names=("dogs", "cat"))


def test_images_are_read_once(tmp_path: Path, build: Any, files: dict[str, bytes], monkeypatch: Any) -> None:
    root = build.folder(tmp_path / "pets", files)
    load_splits("folder", root)
    monkeypatch.setattr("trilemma.data.image_files.decode", None)
    load_splits("folder", root, seed=5)  # another split of the same pixels
    os.utime(root / "train/cat/1.png", (1, 1))
    with pytest.raises(TypeError):
        load_splits("folder", root)  # a touched file is read again


def test_nothing_is_written_to_the_root(tmp_path: Path, build: Any, files: dict[str, bytes]) -> None:
    root = build.folder(tmp_path / "pets", files)
    before = sorted(str(path) for path in root.rglob("*"))
    load_splits("folder", root)
    assert sorted(str(path) for path in root.rglob("*")) == before


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_archives_written_from_within_a_folder_are_read(tmp_path: Path, build: Any, suffix: str) -> None:
    """``tar cf pets.tar .`` puts ``./`` before every name."""
    pack, files = (build.zip if suffix == ".zip" else build.tar), build.classes("", 4)
    plain = load_images(pack(tmp_path / f"plain{suffix}", files), split="all")
    dotted = load_images(
        pack(tmp_path / f"dotted{suffix}", {f"./{name}": data for name, data in files.items()}), split="all"
    )
    assert torch.equal(dotted.images, plain.images) and dotted.name == plain.name


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_archives_are_refused(
    tmp_path: Path, build: Any, files: dict[str, bytes], suffix: str, share: float
) -> None:
    path = (build.zip if suffix == ".zip" else build.tar)(tmp_path / f"pets{suffix}", files)
    # The padding at the end of a tar holds nothing; cut inside what does.
    size = path.stat().st_size if suffix != ".tar" else 26 * 1024
    with pytest.raises(DataError, match=r"pets\S+: truncated or damaged archive"):
        load_splits("folder", cut(path, int(size * share)))


def test_a_tar_cut_between_two_members_is_refused(
    tmp_path: Path, build: Any, files: dict[str, bytes]
) -> None:
    path = cut(build.tar(tmp_path / "pets.tar", files), 10 * 1024)
    with pytest.raises(DataError, match=r"truncated or damaged archive \(unexpected end of data\)"):
        load_splits("folder", path)


def test_undecodable_member_is_named(tmp_path: Path, build: Any, files: dict[str, bytes]) -> None:
    path = build.tar(tmp_path / "pets.tar.gz", files | {"train/dog/bad.png": b"not an image"})
    with pytest.raises(DataError, match=r"pets\.tar\.gz:train/dog/bad\.png: cannot be decoded"):
        load_splits("folder", path)


def empty_class(root: Path, build: Any) -> Path:
    (root / "test/bird").mkdir(parents=True)
    return root


def two_trains(root: Path, build: Any) -> Path:
    build.tar(root / "train_a.tar", build.classes())
    build.tar(root / "train_b.tar", build.classes())
    return root


def two_tests(root: Path, build: Any) -> Path:
    build.tar(root / "train.tar", build.classes("test"))
    build.tar(root / "test.tar", build.classes("test"))
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root, build: root / "nowhere", r"nowhere: data\.root does not exist"),
        (lambda root, build: root, "holds no image folder and no archive"),
        (lambda root, build: build.folder(root, {"a.txt": b""}) / "a.txt", r"a\.txt: unknown kind of file"),
        (empty_class, "holds no image file"),
        (two_trains, r"train_a\.tar and train_b\.tar are both the train part"),
        (two_tests, "split test is in .*test.tar too"),
        (
            lambda root, build: build.folder(
                root, build.classes("train") | {"test/cat/1.png": build.grey(1)}
            ),
            "class 'dog' is in train alone",
        ),
        (
            lambda root, build: build.tar(root / "x.tar", build.classes(), folders=("cat", "dog", "bird")),
            "class folder bird has no image",
        ),
    ],
)
def test_faults_have_one_clear_line(
    tmp_path: Path, build: Any, make: Callable[..., Path], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_splits("folder", make(tmp_path, build))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: load_splits("cifar-10"),
            "'cifar-10' is neither a data set nor a path. Did you mean 'cifar10'",
        ),
        # An annotation keeps nobody from passing a path.
        (lambda: load_splits(cast(str, Path("no/such/path"))), "'no/such/path' is neither a data set"),
        (lambda: load_images("no/such/path"), "'no/such/path' is neither a data set nor a path"),
        (lambda: load_splits("folder"), "data set 'folder' needs root"),
        (lambda: load_splits("digits", root="."), "digits are in this package and need no root"),
        (lambda: load_splits("digits", held_out=1.5), "held_out is 1.5"),
        (lambda: load_splits("digits", size=0), "size=0; must be at least 1"),
        (
            lambda: load_images("digits", split="tset"),
            "has no 'tset' part; it has all, train, held-out, test",
        ),
        (lambda: load_images(Path("."), root="x"), "a path needs no root"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        call()


def test_an_image_folder_never_takes_an_official_name(tmp_path: Path, build: Any) -> None:
    ten = {
        f"{split}/{k}/{n}.png": build.grey(k)
        for split in ("train", "test")
        for k in range(10)
        for n in range(3)
    }
    assert load_splits("mnist", build.folder(tmp_path / "ten", ten)).test.name.startswith("imagefolder:")
    with pytest.raises(DataError, match="2 classes, but mnist has 10"):
        load_splits("mnist", build.folder(tmp_path / "two", build.classes("train") | build.classes("test")))


def test_digits_may_be_resized() -> None:
    images = load_images("digits", size=16)
    assert images.image_shape == (1, 16, 16)
    assert images.name == "digits@16"
    assert load_images("digits", size=8).name == "digits"


def test_a_zip_whose_directory_is_damaged_is_one_line(tmp_path: Path) -> None:
    source = tmp_path / "data.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("a/0.png", b"x")
        # A name without characters, which zipfile cannot ask whether it is that of a folder.
        archive.writestr(zipfile.ZipInfo(""), b"x")
    with pytest.raises(DataError, match=r"data\.zip: truncated or damaged archive .*; get it again"):
        load_images(source)


def test_images_that_change_places_are_decoded_anew(tmp_path: Path) -> None:
    """Their names, sizes and modification times stay, as in an archive unpacked within a second."""
    files = []
    for name, colour in (("a", (250, 0, 0)), ("b", (0, 0, 250))):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "0.bmp")
        Image.new("RGB", (4, 4), colour).save(files[-1])
        os.utime(files[-1], (1, 1))
    before = load_images(str(tmp_path))
    third = tmp_path.parent / "third.bmp"
    files[0].rename(third), files[1].rename(files[0]), third.rename(files[1])
    after = load_images(str(tmp_path))
    assert torch.equal(after.images, before.images.flip(0)) and not torch.equal(after.images, before.images)
