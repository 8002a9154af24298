"""``trilemma shards``: writes a data set as tar shards, which are read while training, or counts shards."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from trilemma.cli.common import argument, completed_by, option
from trilemma.cli.exits import only_copies
from trilemma.config.registry import DATASETS
from trilemma.errors import ConfigError, DataError
from trilemma.printing import print_lines
from trilemma.storing import writable_folder

if TYPE_CHECKING:
    from trilemma.data.shards import Index


@only_copies()
def shards(
    source: Annotated[
        str,
        argument(
            "SOURCE",
            "data set name, image folder, archive or .npz; without --out a folder of shards",
            autocompletion=completed_by(DATASETS.names),
        ),
    ],
    out: Annotated[
        Path | None, option("--out DIR", "folder to write; without it the shards in SOURCE are counted")
    ] = None,
    root: Annotated[
        Path | None, option("--root PATH", "path of a named data set's archives or images")
    ] = None,
    per_shard: Annotated[int, option("--per-shard N", "images per shard", min=1, max=1_000_000)] = 1_000,
) -> None:
    """Writes a data set as tar shards to stream from.

    Data larger than memory are trained on from shards. A shard is a .tar of images and their class numbers in the
    format of WebDataset. Image files are copied as they are, in a fixed order that mixes the classes; arrays become
    PNG. Without --out the shards in SOURCE, of any program, are counted: every image is read once, and shards.json is
    written. Requires the extra 'stream'.

    \b
    Examples:
      trilemma shards photos/ --out photos-shards
      trilemma shards imagenet-shards/
      trilemma train imagenet/pgd-at data.root=imagenet-shards
    """
    if out is None:
        if root is not None:
            raise ConfigError("--root: goes with a data set's name and --out; the folder of shards is SOURCE")
        folder = Path(source)
        if not folder.is_dir():
            raise DataError(
                f"{source}: no such folder of shards; to write shards of this source, add --out DIR"
            )
        writable_folder(folder, "copy the shards to a folder that can be written")
        from trilemma.data.shards import index_shards

        _print(folder, index_shards(folder))
        return
    writable_folder(out)
    from trilemma.data.sharding import shard_source

    _print(out, shard_source(source, out, root, per_shard))


def _print(folder: Path, index: Index) -> None:
    """Prints what a folder of shards holds, and how to train on it."""
    parts = ", ".join(
        f"{end - start:,}{'' if split == 'all' else f' {split}'}"
        for split, (start, end) in index.spans.items()
    )
    height, width = index.size
    print_lines(
        f"{folder}: {parts} images in {len(index.class_names):,} classes and {len(index.shards):,} shards, most often "
        f"{width}x{height} pixels"
    )
    print_lines(f"next: trilemma train RECIPE data.name=shards data.root={shlex.quote(str(folder))}")
