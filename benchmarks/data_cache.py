"""First decode, cached open, loader batch and class-Gaussian draw: seconds, as JSON on standard output.

    python benchmarks/data_cache.py FOLDER

FOLDER holds image archives (train.tar.gz and test.tar.gz). The cache goes to a temporary folder, so the first
decode is a real one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from trilemma.data import ClassGaussian, GaussianBank, Loader, default_augmentation, load_splits


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Mean wall time of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRILEMMA_CACHE"] = cache
        first = seconds(lambda: load_splits("folder", arguments.folder))
        again = seconds(lambda: load_splits("folder", arguments.folder), 3)
        splits = load_splits("folder", arguments.folder)
        train = splits.train

        def epoch_batches(augmented: bool) -> float:
            augmentation = default_augmentation(train.name, train.image_shape) if augmented else None
            loader = Loader(train, arguments.batch_size, augmentation=augmentation)
            list(loader.epoch(0))  # the first epoch reads the pages in
            batches = loader.epoch(1)
            return seconds(lambda: next(batches), min(200, loader.steps_per_epoch))

        bank = GaussianBank(ClassGaussian(train), seed=0)
        wanted = torch.arange(6000) % train.num_classes
        draws = iter(wanted.split(6))
        results = {
            "data": train.name,
            "images": len(train) + len(splits.held_out) + len(splits.test),
            "image_shape": train.image_shape,
            "first_decode_s": first,
            "cached_open_s": again,
            "batch_size": arguments.batch_size,
            "plain_batch_ms": 1000 * epoch_batches(augmented=False),
            "augmented_batch_ms": 1000 * epoch_batches(augmented=True),
            "gaussian_bank_6_starts_ms": 1000 * seconds(lambda: bank.draw(next(draws)), 1000),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
