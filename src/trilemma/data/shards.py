"""Tar shards in the format of WebDataset: a sample is ``KEY.png`` (or another image) and ``KEY.cls``, its class number.

A folder of shards has an index, ``shards.json``, that :func:`index_shards` writes: the classes, the size of the images,
and of every shard its split, size, checksum and labels. With the index an order of all images is known without reading
one of them. Shards are read and written by the library webdataset (extra ``stream``), which decodes nothing here.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import accumulate, groupby
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from trilemma.data.class_names import distinct_names, numbers
from trilemma.data.image_files import most_common_size
from trilemma.data.layout import SPLIT_NAMES, SPLITS
from trilemma.data.pictures import decode, decoding_threads, endings, read_header
from trilemma.errors import DataError, MissingExtraError, describe
from trilemma.files import file_sha256, parse_json, replacing, write_text
from trilemma.headers import Count, Header, Text, problem
from trilemma.limits import CLASSES, IMAGE_FILE, SHARD_INDEX
from trilemma.progress import bar, can_draw
from trilemma.text_files import read_bytes

INDEX = "shards.json"
# The names of the classes in shards of other programs, one per line.
CLASS_NAMES = "classnames.txt"
# Beginning of the names of image sets that are read from shards.
BY_INDEX = "shards:"
# Images that are decoded by threads at once.
_CHUNK = 256
_HINT = "write it with: trilemma shards"


class Sample(NamedTuple):
    """An encoded image, its class, and the shard and key for messages."""

    data: bytes
    label: int
    where: str


class Shard(Header):
    """What the index says of one shard.

    Attributes:
        file: its name in the folder of the index.
        split: ``"all"`` if the file name says none.
        bytes: its size.
        sha256: of its content.
        labels: the class of each of its images.
    """

    file: Text
    split: Literal["train", "val", "test", "all"]
    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    labels: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Index(Header):
    """The content of ``shards.json``.

    Attributes:
        format: version of the format.
        class_names: in label order.
        channels: 1 if every image is grey, else 3.
        size: the most common (height, width) of the training images.
        shards: in the order of splits and file names.
    """

    format: Literal[1] = 1
    class_names: Annotated[list[Text], Field(min_length=2)]
    channels: Literal[1, 3]
    size: Annotated[list[Count], Field(min_length=2, max_length=2)]
    shards: Annotated[list[Shard], Field(min_length=1)]

    @property
    def identity(self) -> str:
        """SHA-256 of the content of all shards and of the class names, independent of file names."""
        digest = hashlib.sha256(repr(self.class_names).encode("utf-8"))
        for shard in self.shards:
            digest.update(f"{shard.split} {shard.sha256}\n".encode())
        return digest.hexdigest()

    @property
    def ends(self) -> list[int]:
        """For each shard the number of images in it and in those before it."""
        return [*accumulate(len(shard.labels) for shard in self.shards)]

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Split name to (start, end) of its images, end excluded; every split is contiguous."""
        spans: dict[str, tuple[int, int]] = {}
        for shard, end in zip(self.shards, self.ends, strict=True):
            start, _ = spans.get(shard.split, (end - len(shard.labels), end))
            spans[shard.split] = (start, end)
        return spans


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards whose index was read.

    Attributes:
        path: the folder.
        index: its index.
    """

    path: Path
    index: Index

    @cached_property
    def ends(self) -> list[int]:
        """For each shard the number of images in it and in those before it."""
        return self.index.ends

    @classmethod
    def open(cls, path: Path) -> ShardFolder:
        """Reads the index of a folder, and checks that its shards are there.

        Raises:
            DataError: no folder, no index or an invalid one, or a shard that is missing or of another size.
        """
        if not path.is_dir():
            what = "is a file, not a folder of shards" if path.exists() else "data.root does not exist"
            raise DataError(f"{path}: {what}; give a folder of .tar shards with {INDEX}")
        index = _read_index(path)
        for shard in index.shards:
            file = path / shard.file
            if not file.is_file():
                raise DataError(
                    f"{file}: this shard is missing, one of the {len(index.shards)} of {INDEX}; copy it again, or "
                    f"count anew what is there: trilemma shards {path}"
                )
            if file.stat().st_size != shard.bytes:
                raise DataError(
                    f"{file}: this shard has {file.stat().st_size:,} bytes, but {shard.bytes:,} in {INDEX}; copy it "
                    f"again, or count anew what is there: trilemma shards {path}"
                )
        return cls(path, index)

    @cached_property
    def _verified(self) -> dict[int, tuple[int, int, int]]:
        """Inode, size and modification time of the shards whose content had the checksum of the index."""
        return {}

    def _verify(self, number: int) -> None:
        """Compares the content of a shard with the index, once unless the file changes."""
        shard = self.index.shards[number]
        path = self.path / shard.file
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: this shard cannot be read ({error.strerror or error}); copy it again"
            ) from None
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._verified.get(number) == version:
            return
        if file_sha256(path) != shard.sha256:
            raise DataError(
                f"{path}: its content does not match the checksum in {INDEX}; copy it again, or count anew what is "
                f"there: trilemma shards {self.path}"
            )
        self._verified[number] = version

    def read(self, number: int) -> Iterator[Sample]:
        """Yields the samples of a shard.

        Args:
            number: position in the index.

        Raises:
            DataError: the shard is damaged, does not match the checksum of the index, or holds other samples than the
                index says.
            MissingExtraError: webdataset is not installed.
        """
        self._verify(number)
        shard = self.index.shards[number]
        path, count = self.path / shard.file, 0
        for count, sample in enumerate(read_shard(path), start=1):
            if count > len(shard.labels) or sample.label != shard.labels[count - 1]:
                break
            yield sample
        else:
            if count == len(shard.labels):
                return
        raise DataError(
            f"{path}: holds other samples than {INDEX} says; copy it again, or count anew what is there: "
            f"trilemma shards {self.path}"
        )


def is_shard_folder(path: Path) -> bool:
    """Whether a folder has an index of shards."""
    return (path / INDEX).is_file()


def _read_index(folder: Path) -> Index:
    path = folder / INDEX
    if not path.is_file():
        raise DataError(
            f"{folder}: the number of its images is unknown, since it has no {INDEX}; {_HINT} {folder} (counts the "
            f"shards that are there), or {_HINT} SOURCE --out {folder}"
        )
    try:
        index = Index.model_validate(parse_json(read_bytes(path, SHARD_INDEX).decode("utf-8")))
    except ValidationError as error:
        raise DataError(f"{path}: {problem(error)}; {_HINT} {folder}") from None
    except ValueError as error:
        raise DataError(f"{path}: {describe(error)}; {_HINT} {folder}") from None
    _check_index(index, path)
    return index


def _check_index(index: Index, path: Path) -> None:
    """Checks what one key alone does not show: names, labels, and splits that are contiguous."""
    CLASSES.check(len(index.class_names), str(path))
    distinct_names(index.class_names, str(path))
    for shard in index.shards:
        if PurePosixPath(shard.file).name != shard.file or "\\" in shard.file:
            raise DataError(
                f"{path}: shard {shard.file!r} is not in the folder itself; {_HINT} {path.parent}"
            )
        if max(shard.labels) >= len(index.class_names):
            raise DataError(
                f"{path}: label {max(shard.labels)} of {shard.file} is out of range for {len(index.class_names)} "
                f"classes; {_HINT} {path.parent}"
            )
    splits = [split for split, _ in groupby(shard.split for shard in index.shards)]
    if len(set(splits)) < len(splits):
        raise DataError(f"{path}: its shards are not sorted by split; {_HINT} {path.parent}")


def webdataset(module: str) -> ModuleType:
    """A module of the library webdataset.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(f"webdataset.{module}")
    except ImportError as error:
        raise MissingExtraError(
            f"tar shards need webdataset ({error}); pip install -e '.[stream]' in the clone"
        ) from error


def read_shard(path: Path) -> Iterator[Sample]:
    """Yields the samples of a ``.tar`` in their order, with their images as they are stored.

    Raises:
        DataError: the shard is damaged or compressed, or a sample has no image, several, or no class number.
        MissingExtraError: webdataset is not installed.
    """
    library = webdataset("tariterators")
    try:
        _check_members(path)
        with path.open("rb") as stream:
            files = library.tar_file_expander([{"url": str(path), "stream": stream}])
            for sample in library.group_by_keys(files):
                yield _sample(sample, path)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        reason = str(error.args[0]) if error.args else type(error).__name__
        raise DataError(
            f"{path}: truncated or damaged shard ({reason.partition(' @ ')[0]}); get it again"
        ) from error


def _check_members(path: Path) -> None:
    """Checks the headers of a shard: the library reads every member into memory, whatever its size.

    Raises:
        DataError: a member is too large or sparse.
        tarfile.TarError, OSError: no uncompressed tar.
    """
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            where = f"{path}:{member.name}"
            if member.issparse():
                raise DataError(f"{where}: is stored as a sparse file; write the shard again")
            IMAGE_FILE.check(member.size, where)


def _sample(sample: dict[str, Any], path: Path) -> Sample:
    """A sample of the library, which is ``{ENDING: bytes}`` with keys of its own between underscores."""
    where = f"{path}:{sample['__key__']}"
    images = [ending for ending in sample if f".{ending}" in endings()]
    if len(images) != 1:
        found = ", ".join(ending for ending in sample if not ending.startswith("__")) or "nothing"
        raise DataError(f"{where}: has {found}; a sample needs one image, such as KEY.jpg, and KEY.cls")
    text = sample.get("cls", b"").decode("ascii", "replace").strip()
    if not re.fullmatch("[0-9]{1,9}", text):
        given = f"{text[:20]!r} as its class" if "cls" in sample else "no KEY.cls"
        raise DataError(f"{where}: has {given}; a sample needs the number of its class, from 0, in KEY.cls")
    return Sample(sample[images[0]], int(text), f"{where}.{images[0]}")


class _Survey:
    """Sizes and colours of images that were decoded once."""

    def __init__(self) -> None:
        self.sizes: dict[str, Counter[tuple[int, int]]] = {}
        self.colour = False
        self._pool = ThreadPoolExecutor(decoding_threads())

    def add(self, samples: Sequence[Sample], split: str) -> None:
        """Decodes images; raises :class:`DataError` for the first one that cannot be decoded."""
        for height, width, colour in self._pool.map(_decoded, samples):
            self.sizes.setdefault(split, Counter())[height, width] += 1
            self.colour = self.colour or colour

    def size(self) -> tuple[int, int]:
        """The most common size of the training images, of all images without a train split."""
        counts = self.sizes.get("train") or sum(self.sizes.values(), Counter())
        return most_common_size(list(counts.elements()))


def _decoded(sample: Sample) -> tuple[int, int, bool]:
    height, width, colour = read_header(sample.data, sample.where)
    decode(sample.data, (3 if colour else 1, height, width), sample.where)
    return height, width, colour


def index_shards(folder: Path) -> Index:
    """Reads every image of the shards in ``folder`` once and writes their index.

    The split of a shard is a word of its file name (``train-000000.tar``, ``imagenet1k-validation-07.tar``). The names
    of the classes are the lines of ``classnames.txt`` if it exists, else the class numbers.

    Raises:
        DataError: no shard, or one that is damaged or has a sample without image or class.
        NotStoredError: the index cannot be written.
    """
    files = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: holds no .tar; {_HINT} SOURCE --out {folder}")
    survey, shards = _Survey(), []
    with bar(f"reading {folder}", len(files), can_draw()) as advance:
        for path in sorted(files, key=lambda path: _place(split_of_shard(path.name))):
            split, labels, chunk = split_of_shard(path.name), [], []
            for sample in read_shard(path):
                labels.append(sample.label)
                chunk.append(sample)
                if len(chunk) == _CHUNK:
                    survey.add(chunk, split)
                    chunk = []
            survey.add(chunk, split)
            if not labels:
                raise DataError(f"{path}: holds no sample; remove it")
            shards.append(_row(path, split, labels))
            advance(1)
    names = _class_names(folder, 1 + max(max(shard.labels) for shard in shards))
    return _write_index(folder, names, survey, shards)


def split_of_shard(name: str) -> str:
    """The split that a word of a file name states, ``"all"`` if none does."""
    words = [word for word in re.split("[^a-z]+", name.lower()) if word in SPLIT_NAMES]
    return SPLIT_NAMES[words[0]] if words else "all"


def _place(split: str) -> int:
    return (*SPLITS, "all").index(split)


def _row(path: Path, split: str, labels: list[int]) -> Shard:
    return Shard.model_validate(
        {
            "file": path.name, "split": split, "bytes": path.stat().st_size, "sha256": file_sha256(path),
            "labels": labels,
        }
    )  # fmt: skip


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    """The lines of ``classnames.txt``, else the numbers of ``count`` classes."""
    path = folder / CLASS_NAMES
    if not path.is_file():
        CLASSES.check(count, str(folder))
        return numbers(max(count, 2))
    try:
        lines = read_bytes(path).decode("utf-8").splitlines()
    except ValueError as error:
        raise DataError(f"{path}: {describe(error)}; give one class name per line, in UTF-8") from None
    names = distinct_names([line.strip() for line in lines if line.strip()], str(path))
    if len(names) < count:
        raise DataError(
            f"{path}: {len(names)} names, but the shards have labels up to {count - 1}; add names"
        )
    return names


def _write_index(folder: Path, names: Iterable[str], survey: _Survey, shards: list[Shard]) -> Index:
    splits = {shard.split for shard in shards}
    if "all" in splits and len(splits) > 1:
        file = next(shard.file for shard in shards if shard.split == "all")
        raise DataError(
            f"{folder}: {file} names no split, but other shards do; rename it to begin with train, val or test"
        )
    index = Index.model_validate(
        {"class_names": list(names), "channels": 3 if survey.colour else 1, "size": list(survey.size()),
         "shards": shards}
    )  # fmt: skip
    _check_index(index, folder / INDEX)
    # One line per shard, so that the file can be looked at.
    content = index.model_dump()
    rows = ",\n".join(f"  {json.dumps(row)}" for row in content.pop("shards"))
    head = json.dumps(content, ensure_ascii=False)[:-1]
    write_text(folder / INDEX, f'{head}, "shards": [\n{rows}\n]}}\n')
    return index


def write_shards(
    folder: Path, parts: Mapping[str, Sequence[Sample]], class_names: Iterable[str], per_shard: int
) -> Index:
    """Writes images into shards ``SPLIT-000000.tar``, and their index.

    The images of a part are written in the order given; every image is decoded once, so that a corrupt one is found
    now and not during a training.

    Args:
        folder: created if it does not exist; must hold no shards.
        parts: split name to the samples, which are read one after another.
        class_names: in label order.
        per_shard: number of images per shard.

    Raises:
        DataError: an image cannot be read or decoded, or ``folder`` is not empty.
        NotStoredError: a file cannot be written.
        MissingExtraError: webdataset is not installed.
    """
    writer = webdataset("writer").TarWriter
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is not empty; refusing to overwrite, choose another --out or remove it")
    survey, rows = _Survey(), []
    total = sum(map(len, parts.values()))
    with bar(f"writing {folder}", total, can_draw()) as advance:
        for split in sorted(parts, key=_place):
            for number, start in enumerate(range(0, len(parts[split]), per_shard)):
                path, labels = folder / f"{split}-{number:06d}.tar", []
                indices = range(start, min(start + per_shard, len(parts[split])))
                with (
                    replacing(path) as temporary,
                    temporary.open("wb") as stream,
                    # Names and times of the machine are left out, so that the same images give the same shards.
                    writer(stream, user="", group="", mtime=0, encoder=False) as shard,
                ):
                    for first in range(0, len(indices), _CHUNK):
                        chunk = [(index, parts[split][index]) for index in indices[first : first + _CHUNK]]
                        survey.add([sample for _, sample in chunk], split)
                        for index, sample in chunk:
                            ending = PurePosixPath(sample.where).suffix[1:].lower() or "png"
                            content = {ending: sample.data, "cls": b"%d" % sample.label}
                            shard.write({"__key__": f"{split}-{index:08d}", **content})
                            labels.append(sample.label)
                        advance(len(chunk))
                rows.append(_row(path, split, labels))
    return _write_index(folder, class_names, survey, rows)
