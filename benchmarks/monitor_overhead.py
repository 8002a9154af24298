"""What watching costs: the training loop with its monitors on against the same loop without.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/monitor_overhead.py

On: everything that only the monitors and curves need, which is the step's scalars (accuracies, energies, delta
energies, the cosine of the input gradients), every tenth step's clean logits where the method forwards no clean
images, and all monitors' reading of them. Off: the loss alone, or with `--clean` the loss and those clean logits, which
alone cost a tenth of a forward pass per step. One run takes turns, a segment of steps with and a
segment without, so that a busy machine slows both; the figure is the median over pairs of the ratio of their times,
and of their processor seconds. Small-resnet (depth 8, width 16), batch 128 of random 32x32 colour images.
`pieces_ms` are the processor milliseconds of each piece alone, which say more than a ratio on a crowded machine.
Prints JSON; target of the ratio: at most 1.02.

    python benchmarks/monitor_overhead.py --recipe digits/fgsm training.epochs=10

Measures instead what reading the training weights costs a run that evaluates their average after every epoch: its
processor seconds, with these readings to without.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from trilemma.classifier.contexts import running_statistics_kept
from trilemma.config.recipe import build_config, load_config
from trilemma.data.batch import Batch
from trilemma.data.image_set import ImageSet, Splits
from trilemma.methods.base import ForwardResult, Points, Step
from trilemma.monitors.readings import NAMES, Reading, read_gradients, read_step
from trilemma.monitors.watch import Watch
from trilemma.networks.create import create_network
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.build import build_data
from trilemma.training.interrupt import StopRequest
from trilemma.training.loop import CLEAN_EVERY, Loop
from trilemma.training.progress import reporter
from trilemma.training.record import Record
from trilemma.training.selection import HeldOut

BATCH = 128


class Done(Exception):  # noqa: N818
    """Every pair is timed."""


class AlternatingLoop(Loop):
    """The loop as it is, whose monitors sleep in every second segment."""

    segment: int
    pairs: int
    clean: bool

    def train(self) -> str:
        self.times: list[tuple[float, float]] = []  # wall and processor seconds of each segment
        self.begun = (time.perf_counter(), time.process_time())
        self.awake = self.state.watch.settings
        self.asleep = self.awake.model_copy(update={"overfitting": False, "divergence": False})
        return super().train()

    def _one_step(self, batch: Batch) -> None:
        if self.state.step % self.segment == 0:
            now = (time.perf_counter(), time.process_time())
            if self.state.step:
                self.times.append((now[0] - self.begun[0], now[1] - self.begun[1]))
            if len(self.times) == 2 * self.pairs + 2:  # the first pair warms up
                raise Done
            self.state.watch.settings = self.awake if len(self.times) % 2 == 0 else self.asleep
            self.begun = now
        super()._one_step(batch)

    def _read(self, step: Step, points: Points) -> dict[str, Tensor]:
        if self.state.watch.settings is self.awake:
            return super()._read(step, points)
        if self.clean and step.clean is None and self.state.step % CLEAN_EVERY == 0:
            with torch.no_grad(), running_statistics_kept(self.clf), self.fabric.autocast():
                self.clf.logits(points.clean)
        return {"loss": step.loss.detach()}


def splits() -> Splits:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    names = tuple(str(k) for k in range(10))
    train, held_out, test = (
        ImageSet(images, torch.arange(20_000) % 10, names, "random", split)
        for split in ("train", "held-out", "test")
    )
    return Splits(train, held_out, test)


def measure(method: str, pairs: int, segment: int, clean: bool) -> dict[str, Any]:
    """Ratios of one method, monitors on to off."""
    config = build_config(
        {
            "data": {"name": "cifar10"}, "network": {"name": "small-resnet", "depth": 8, "width": 16},
            "method": method, "threat": {"norm": "linf", "radius": "8/255"}, "schedule": {"name": "constant"},
            "training": {"epochs": 100, "batch_size": BATCH, "lr": 0.01, "evaluate_every": 100,
                         "checkpoint_minutes": 1000},
        }
    )  # fmt: skip
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder) / "run", config)
        record = Record(run, config, reporter(method, True), method, True)
        loop = AlternatingLoop(config, record, splits(), fabric, StopRequest())
        loop.segment, loop.pairs, loop.clean = segment, pairs, clean
        with suppress(Done):
            loop.train()
    on, off = loop.times[2::2], loop.times[3::2]
    wall = [a[0] / b[0] for a, b in zip(on, off, strict=True)]
    return {
        "ratio_median": round(median(wall), 4), "ratio_min": round(min(wall), 4), "ratio_max": round(max(wall), 4),
        "cpu_ratio_median": round(median(a[1] / b[1] for a, b in zip(on, off, strict=True)), 4),
        "seconds_per_step_off": round(median(seconds for seconds, _ in off) / segment, 4),
        "pairs": len(wall), "steps_per_segment": segment,
    }  # fmt: skip


class TimedLoop(Loop):
    """The loop as it is, which measures the evaluations of the training weights."""

    def train(self) -> str:
        self.raw_seconds, begun = 0.0, time.process_time()
        status = super().train()
        self.seconds = time.process_time() - begun
        return status

    def _monitored_accuracies(self, finished: HeldOut) -> tuple[float | None, float | None]:
        begun = time.process_time()
        accuracies = super()._monitored_accuracies(finished)
        self.raw_seconds += time.process_time() - begun
        return accuracies


def evaluations(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Cost of evaluating the training weights in a run of one recipe, after every epoch."""
    own = ["training.evaluate_every=1", "training.checkpoint_minutes=1000"]
    config = load_config(recipe, [*own, *overrides])
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder) / "run", config)
        record = Record(run, config, reporter(recipe, False), recipe, True)
        loop = TimedLoop(config, record, build_data(config), fabric, StopRequest())
        loop.train()
    without = loop.seconds - loop.raw_seconds
    return {
        "epochs": config.training.epochs, "ratio": round(loop.seconds / without, 4),
        "seconds_per_evaluation": round(loop.raw_seconds / config.training.epochs, 3),
    }  # fmt: skip


def pieces() -> dict[str, float]:
    """Processor milliseconds per step of what watching is made of, beside a forward pass."""
    config = build_config(
        {
            "data": {"name": "cifar10"}, "network": {"name": "small-resnet", "depth": 8, "width": 16},
            "method": "n-fgsm", "threat": {"norm": "linf", "radius": "8/255"},
        }
    )  # fmt: skip
    network = create_network(config.network, 10, (3, 32, 32))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels, logits = torch.arange(BATCH) % 10, torch.randn(BATCH, 10)
    starred = images.clone().requires_grad_()
    starred.grad = torch.randn_like(images)
    points = Points(images, labels, starred, gradient=torch.randn_like(images))
    step = Step(torch.tensor(1.0), ForwardResult(images, logits), ForwardResult(images, logits + 0.1))
    watch, steps = Watch(config, 300), count(1)
    reading: Reading = dict.fromkeys(NAMES, 0.5)

    def forward() -> None:
        with torch.no_grad():
            network(images)

    work: dict[str, Callable[[], object]] = {
        "scalars": lambda: read_step(step, labels), "gradient_cosine": lambda: read_gradients(points),
        "monitors": lambda: watch.read(reading, next(steps)), "forward_pass": forward,
    }  # fmt: skip
    return {name: round(milliseconds(call), 3) for name, call in work.items()}


def milliseconds(call: Callable[[], object], times: int = 50) -> float:
    call()
    begun = time.process_time()
    for _ in range(times):
        call()
    return 1000 * (time.process_time() - begun) / times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument(
        "--segment", type=int, default=10, help="steps with and without in a pair; a multiple of 10"
    )
    parser.add_argument("--methods", nargs="*", default=["n-fgsm", "pgd-at"])
    parser.add_argument("--clean", action="store_true", help="clean logits on both sides")
    parser.add_argument("--recipe", help="measure the evaluations of this recipe and nothing else")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of --recipe")
    arguments = parser.parse_args()
    about = {"batch_size": BATCH, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if arguments.recipe:
        command = {"recipe": arguments.recipe, "overrides": arguments.overrides}
        json.dump(
            {**about, **command, **evaluations(arguments.recipe, arguments.overrides)}, sys.stdout, indent=2
        )
        print()
        return
    results = {
        name: measure(name, arguments.pairs, arguments.segment, arguments.clean) for name in arguments.methods
    }
    json.dump({**about, "pieces_ms": pieces(), "methods": results}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
