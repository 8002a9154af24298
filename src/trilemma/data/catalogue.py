"""Tables of known data sets, by name, and of known image archives, by SHA-256. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trilemma.config.registry import DATASETS


@dataclass(frozen=True)
class Archive:
    """One file of an official release.

    Attributes:
        file: file name.
        url: http or https address.
        checksum: MD5 (32 hex digits) or SHA-256 (64).
    """

    file: str
    url: str
    checksum: str


@dataclass(frozen=True)
class Dataset:
    """A data set that is known by name; the target of a row of the registry ``DATASETS``.

    ``num_classes``, ``image_shape`` and ``train_images`` serve to estimate the cost of a recipe before its data are
    downloaded; where they are ``None`` the data have to be read first.

    Attributes:
        read: function, or ``"module:function"``, that reads the data and returns :class:`trilemma.data.arrays.Arrays`
            or a mapping from split name to ``(images, labels)``. With ``archives`` its argument is the list of their
            paths; without, ``data.root`` or ``None``. ``""``: the data are image files or shards at ``data.root``.
        archives: files of the official release, downloaded into the cache folder or found in ``data.root``.
        class_names: in label order; ``None``: read from the data, or numbers.
        num_classes: number of classes.
        image_shape: (C, H, W).
        train_images: number of training images without the default held-out part.
        flip: whether a horizontally flipped image keeps its class.
        streamed: the data are tar shards at ``data.root`` (:mod:`trilemma.data.shards`).
    """

    read: str | Callable[[Any], Any]
    archives: tuple[Archive, ...] = ()
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    train_images: int | None = None
    flip: bool = True
    streamed: bool = False


@dataclass(frozen=True)
class Pack:
    """An image archive that is known by its SHA-256.

    Attributes:
        name: name of its data set in result rows.
        numbered: whether file names are positions in the official order, by which the images are then sorted.
        split: the split of images that are in no split folder, under any name of the archive.
    """

    name: str
    numbered: bool
    split: str = "all"


# The most training images, and the most held-out images, of shards that are decoded by default.
RESIDENT = 20_000
_DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _idx_archives(base: str, checksums: tuple[str, str, str, str]) -> tuple[Archive, ...]:
    files = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        Archive(f"{file}-ubyte.gz", f"{base}/{file}-ubyte.gz", checksum)
        for file, checksum in zip(files, checksums, strict=True)
    )


DIGITS = Dataset("trilemma.data.readers:read_digits", (), None, 10, (1, 8, 8), 1_200, flip=False)
CIFAR10 = Dataset(
    "trilemma.data.readers:read_cifar10",
    (
        Archive(
            "cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
        ),
    ),
    _CIFAR10, 10, (3, 32, 32), 45_000,
)  # fmt: skip
CIFAR100 = Dataset(
    "trilemma.data.readers:read_cifar100",
    (
        Archive(
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
        ),
    ),
    None, 100, (3, 32, 32), 45_000,
)  # fmt: skip
MNIST = Dataset(
    "trilemma.data.readers:read_idx_set",
    _idx_archives(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    _DIGITS, 10, (1, 28, 28), 54_000, flip=False,
)  # fmt: skip
FASHION_MNIST = Dataset(
    "trilemma.data.readers:read_idx_set",
    _idx_archives(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    _FASHION, 10, (1, 28, 28), 54_000,
)  # fmt: skip
SVHN = Dataset(
    "trilemma.data.readers:read_svhn",
    (
        Archive(
            "train_32x32.mat",
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "e26dedcc434d2e4c54c9b2d4a06d8373",
        ),
        Archive(
            "test_32x32.mat",
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "eb5a983be6a315427106f1b164d9cef3",
        ),
    ),
    _DIGITS, 10, (3, 32, 32), 65_931, flip=False,
)  # fmt: skip
# Image files at data.root, in any layout that trilemma.data.layout knows.
FOLDER = Dataset("")
SHARDS = Dataset("", streamed=True)
# Less the held-out images.
IMAGENET = Dataset("", (), None, 1_000, (3, 224, 224), 1_281_167 - RESIDENT, streamed=True)


def find_dataset(name: str) -> Dataset:
    """The data set of a registry row; a row whose target is a function gives a :class:`Dataset` with that reader.

    Raises:
        UnknownNameError: no such data set.
    """
    target = DATASETS.get(name)
    return target if isinstance(target, Dataset) else Dataset(target)


PACKS: dict[str, Pack] = {
    # CIFAR-10 re-encoded as JPEG of quality 75: the pixels differ from the official release.
    "3c711becd9d4e1929e667e85dc46bd671b938c16e46410296e2b27240a7b3399": Pack("cifar10-jpeg", False, "train"),
    "33e6efe7655f1be7fb7373783dc369e9a809ff296896e9ff06f093b657170cc7": Pack("cifar10-jpeg", False, "test"),
    # CIFAR-10's first 4,000 training and 1,000 test images, original pixels.
    "cdbf78ec253e2657acaf5fe685a87d153ebc0bea105aaba1eaf821ba0acf3b9f": Pack(
        "cifar10-subset4000", True, "train"
    ),
    "532e93822f385ce774fea66723351bf6feeb77fc5bd89aeb56ddddbe97fada96": Pack(
        "cifar10-subset4000", True, "test"
    ),
    # MNIST as PNG, with the pixels of the official release.
    "06f5f08f05e20434eb8e93884b6f22c1ac6ecf354ce05bbf8a50ae1d9470a00d": Pack("mnist", True, "train"),
    "139f7f7ac63e2cc6ad5c6d4efd125f5f6d3c444043a5ba14597fa013ae25b42f": Pack("mnist", True, "test"),
    # Tiny-ImageNet, 64x64: all validation images, and 100 training images of each of its 200 classes.
    "b3ba1b6a1ba6eb975d40740f4e26336873de38653d0bdac9efe3386ca2672d5a": Pack("tiny-imagenet", False, "val"),
    "700cf2ab5b08fdbcb0a4e9b29e22b60f70f8309572304ece3f4a866f6a20503c": Pack("tiny-imagenet", False, "train"),
}
