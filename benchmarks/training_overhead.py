"""What the loop costs beside the passes: trilemma's training steps against a bare loop of the same passes.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/training_overhead.py --pairs 9

For `pgd-at` and `eb-jdat` on small-resnet (depth 8, width 16) at batch 128 of 32x32 colour images. One side is
`trilemma.train`'s own loop with everything it does in a step: loader and augmentation, fresh starts, replay buffer,
method, optimiser, average of the weights, readings, monitors, metric lines, progress. The other is plain torch:
the same network, the same number of attack, sampler and loss passes, the same optimiser step, on tensors made once.
The two take turns in one process, a segment of steps each, so that a busy machine slows both; the figure is the
median over pairs of segments (`cpu_ratio` is the same in processor seconds). Evaluation on held-out images and
checkpoints are no part of a step. Peak memory is that of the process, both loops and the data included.
Prints JSON; target of the ratio: at most 1.10.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from trilemma import __version__
from trilemma.config.recipe import build_config
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet, Splits
from trilemma.data.sources import load_splits
from trilemma.networks.create import create_network
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.interrupt import StopRequest
from trilemma.training.loop import Loop
from trilemma.training.progress import reporter
from trilemma.training.record import Record

ROOT = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "cifar10"
BATCH, EPSILON, STEP_SIZE = 128, 8 / 255, 2 / 255


def bare_pgd_at(network: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """Ten sign steps up the cross-entropy in eval mode, one backward pass of it in train mode."""
    starred = attack(network, images, 10, lambda logits: F.cross_entropy(logits, labels, reduction="sum"))
    descend(optimiser, F.cross_entropy(network(2 * starred - 1), labels))


def bare_eb_jdat(
    network: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    """Five sign steps up E(x, y), ten clamped ones down E(x), and four image sets in the loss."""

    def joint(logits: Tensor) -> Tensor:
        return -logits.gather(1, labels[:, None]).squeeze(1)

    starred = attack(network, images, 5, lambda logits: joint(logits).sum())
    chains = images
    freeze(network, True)
    for _ in range(10):
        here = chains.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-network(2 * here - 1).logsumexp(1).sum(), here)
        chains = (here.detach() - 0.25 * gradient.clamp(-2, 2)).clamp(0, 1)
    freeze(network, False)
    clean, robust, generated, data = (network(2 * x - 1) for x in (images, starred, chains, images))
    energy = [-logits.logsumexp(1).mean() for logits in (clean, robust, generated, data)]
    contrastive, alignment = energy[3] - energy[2], energy[1] - energy[0]
    loss = contrastive + alignment + F.cross_entropy(clean, labels) + F.cross_entropy(robust, labels)
    descend(optimiser, loss)


def attack(network: nn.Module, images: Tensor, steps: int, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Sign steps inside the ball, without weight gradients, in eval mode."""
    network.eval()
    freeze(network, True)
    starred = images
    for _ in range(steps):
        here = starred.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(network(2 * here - 1)), here)
        moved = here.detach() + STEP_SIZE * gradient.sign()
        starred = (images + (moved - images).clamp(-EPSILON, EPSILON)).clamp(0, 1)
    freeze(network, False)
    network.train()
    return starred


def freeze(network: nn.Module, frozen: bool) -> None:
    for parameter in network.parameters():
        parameter.requires_grad_(not frozen)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


BARE = {"pgd-at": bare_pgd_at, "eb-jdat": bare_eb_jdat}


class Done(Exception):  # noqa: N818
    """Every pair is timed."""


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> Seconds:
        return Seconds(time.perf_counter() - self.wall, time.process_time() - self.cpu)


class Seconds(NamedTuple):
    wall: float
    cpu: float


class TimedLoop(Loop):
    """The loop as it is; at every ``segment``-th step its clock stands still while the bare loop runs."""

    bare: Callable[[], None]
    segment: int
    pairs: int

    def train(self) -> str:
        self.times: list[tuple[Seconds, Seconds]] = []
        self.begun: Clock | None = None
        return super().train()

    def _one_step(self, batch: Batch) -> None:
        if self.state.step % self.segment == 0:
            own = None if self.begun is None else self.begun.read()
            clock = Clock()
            for _ in range(self.segment):
                self.bare()
            if own is not None:
                self.times.append((own, clock.read()))
            if len(self.times) == self.pairs + 1:  # the first pair warms up
                raise Done
            self.begun = Clock()
        super()._one_step(batch)


def splits() -> Splits:
    """CIFAR-10's JPEG copy if it is at hand, random images of its shape otherwise."""
    if ROOT.is_dir():
        return load_splits("cifar10", root=ROOT)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(20_000) % 10
    names = tuple(str(k) for k in range(10))
    parts = (ImageSet(images, labels, names, "random", split) for split in ("train", "held-out", "test"))
    return Splits(*parts)


def measure(method: str, pairs: int, segment: int) -> dict[str, Any]:
    """Ratios and seconds per step of one method."""
    with tempfile.TemporaryDirectory() as folder:
        return measure_in(Path(folder), method, pairs, segment)


def measure_in(folder: Path, method: str, pairs: int, segment: int) -> dict[str, Any]:
    data = splits()
    config = build_config(
        {
            "data": {"name": "cifar10"}, "network": {"name": "small-resnet", "depth": 8, "width": 16},
            "method": method, "threat": {"norm": "linf", "radius": "8/255"},
            "schedule": {"name": "constant"},
            "training": {"epochs": 10, "batch_size": BATCH, "lr": 0.01, "ema": 0.999},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    network = create_network(config.network, 10, (3, 32, 32)).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images = data.train.float_images(range(BATCH)).contiguous(memory_format=torch.channels_last)
    labels = data.train.labels[:BATCH]

    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    record = Record(
        RunDirectory.create(folder / method, config), config, reporter(method, True), method, True
    )
    loop = TimedLoop(config, record, data, fabric, StopRequest())
    loop.bare = lambda: BARE[method](network, optimiser, images, labels)
    loop.segment, loop.pairs = segment, pairs
    with suppress(Done):
        loop.train()
    times = loop.times[1:]
    ratios = [own.wall / bare.wall for own, bare in times]
    return {
        "data": data.train.name,
        "ratio_median": round(median(ratios), 4), "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4), "pairs": len(ratios), "steps_per_segment": segment,
        "cpu_ratio_median": round(median(own.cpu / bare.cpu for own, bare in times), 4),
        "seconds_per_step": round(median(own.wall for own, _ in times) / segment, 4),
        "bare_seconds_per_step": round(median(bare.wall for _, bare in times) / segment, 4),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument(
        "--segment", type=int, default=10, help="steps of each side in a pair; a multiple of 10"
    )
    parser.add_argument("--methods", nargs="+", choices=sorted(BARE), default=list(BARE))
    arguments = parser.parse_args()
    results = {}
    for method in arguments.methods:  # a process each: peak memory is of one
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            results[method] = pool.submit(measure, method, arguments.pairs, arguments.segment).result()
    versions = {"trilemma": __version__, "torch": torch.__version__, "python": platform.python_version()}
    about = {"batch_size": BATCH, "threads": torch.get_num_threads(), "versions": versions}
    json.dump({**about, "methods": results}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
