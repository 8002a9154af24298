"""What a generated image costs: ours against a plain loop over the steps, with and without adaptive stopping.

    OMP_NUM_THREADS=1 python benchmarks/generation_speed.py --run RUN [RUN ...] --judge RUN

The plain loop is what releases do: float32, eager, the whole batch at every step, one gradient per step, noise from
`torch.randn`, clipping. Ours is `trilemma.generate`. They take turns in one process; a ratio is the median over the
rounds, of processor time. Two kinds of rows:

- networks with random weights at 32x32, all steps: the plain loop, ours without the fast copy of the network, ours,
  and ours with the network in bfloat16;
- finished runs (small images, any network): the plain loop, ours, also in bfloat16 and with adaptive stopping, from
  the principal components of the class. `--judge` is a run of an independent standard network on the same data; its
  Frechet distance (FD) and the share that it names as the class tell whether the images are equally good.

Writes `benchmarks/results/generation-speed.json` and `.md`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result_page import write  # noqa: E402

import trilemma  # noqa: E402
from trilemma.classifier.classifier import Classifier  # noqa: E402
from trilemma.evaluation.evaluate import run_splits  # noqa: E402
from trilemma.metrics.features import Features, extract, feature_metrics  # noqa: E402
from trilemma.metrics.frechet import Extractor, penultimate  # noqa: E402
from trilemma.metrics.generation import image_metrics  # noqa: E402
from trilemma.networks.preact_resnet import PreActResNet  # noqa: E402
from trilemma.networks.small_resnet import SmallResNet  # noqa: E402
from trilemma.samplers.generate import generate  # noqa: E402
from trilemma.samplers.guidance import with_statistics  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "generation-speed.json"
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/generation_speed.py --run RUN [RUN ...] --judge RUN"
STEP_SIZE, NOISE_STD, CLAMP = 0.25, 0.03, 2.0
STEPS, ROUNDS, REFERENCE = 100, 3, 10_000
# Of PreActResNet-18 with random weights: an image and step takes 25 ms, and fewer than 1,000 of them get no fast copy.
LARGE_IMAGES, LARGE_STEPS = 40, 30
Turn = Callable[[], Tensor]


def plain_loop(clf: Classifier, starts: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Langevin steps down E(x, y) of the whole batch."""
    images = starts
    for _ in range(steps):
        images = images.detach().requires_grad_()
        energy = -clf(images).gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(energy, images)
        moved = images - STEP_SIZE * gradient.clamp(-CLAMP, CLAMP) + NOISE_STD * torch.randn_like(images)
        images = moved.clamp(0, 1)
    return images.detach()


def ours(
    clf: Classifier,
    starts: Tensor,
    labels: Tensor,
    steps: int,
    *,
    stop: bool = False,
    precision: str = "fp32",
) -> Tensor:
    """The same chain by the library."""
    return generate(
        clf, labels, starts, "langevin", "joint", steps, generator=torch.Generator().manual_seed(0), stop=stop,
        precision=precision, step_size=STEP_SIZE, noise_std=NOISE_STD, clamp=CLAMP,
    )  # fmt: skip


def without_copy(clf: Classifier, starts: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Ours on the network as it is."""
    with patch("trilemma.classifier.fast_copy.WORTH_A_COPY", float("inf")):
        return ours(clf, starts, labels, steps)


def in_turns(turns: dict[str, Turn], rounds: int) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Processor seconds of every round, and the images of the last one."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    images: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, turn in turns.items():
            began = time.process_time()
            images[name] = turn()
            seconds[name].append(round(time.process_time() - began, 3))
    return seconds, images


def row(what: str, count: int, steps: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Seconds, and how many times faster than the plain loop every other turn is."""
    loop = seconds["plain loop"]
    ratios = {
        name: round(median(a / b for a, b in zip(loop, other, strict=True)), 2)
        for name, other in seconds.items()
    }
    return {"network": what, "images": count, "steps": steps, "seconds": seconds, "ratio": ratios}


def untrained(what: str, network: torch.nn.Module, count: int, steps: int, rounds: int) -> dict[str, Any]:
    """A network with random weights at 32x32, all steps."""
    clf = Classifier(network.eval(), 10, image_shape=(3, 32, 32))
    starts, labels = torch.rand(count, 3, 32, 32), torch.arange(count) % 10
    turns: dict[str, Turn] = {
        "plain loop": lambda: plain_loop(clf, starts, labels, steps),
        "ours without copy": lambda: without_copy(clf, starts, labels, steps),
        "ours": lambda: ours(clf, starts, labels, steps),
        "ours, bf16": lambda: ours(clf, starts, labels, steps, precision="bf16"),
    }
    return row(what, count, steps, in_turns(turns, rounds)[0])


def trained(
    run: Path,
    judge: Classifier,
    extractor: Extractor,
    reference: Features,
    count: int,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """A finished run: cost, and quality of the images of the last round."""
    train = run_splits(run).train
    clf = with_statistics(trilemma.load(run), "joint", True, train)
    labels = torch.arange(count) * clf.num_classes // count
    starts = generate(
        clf, labels, "class-pca", steps=0, data=train, generator=torch.Generator().manual_seed(1)
    )
    turns: dict[str, Turn] = {
        "plain loop": lambda: plain_loop(clf, starts, labels, steps),
        "ours": lambda: ours(clf, starts, labels, steps),
        "ours, bf16": lambda: ours(clf, starts, labels, steps, precision="bf16"),
        "ours with stopping": lambda: ours(clf, starts, labels, steps, stop=True),
        "ours, bf16, with stopping": lambda: ours(clf, starts, labels, steps, stop=True, precision="bf16"),
    }
    seconds, images = in_turns(turns, rounds)
    quality = {}
    for name, generated in {"start": starts, **images}.items():
        figures = feature_metrics(extract(extractor, generated), reference, seed=0)
        named = image_metrics(generated, labels, None, judge)["named"]
        quality[name] = {"frechet": round(figures["frechet"], 2), "named": named, "recall": figures["recall"]}
    what = f"{type(clf.network).__name__}, {clf.about.get('method', run.name)}"
    return {**row(what, count, steps, seconds), "quality": quality}


def page(content: dict[str, Any]) -> str:
    """Tables of cost and quality."""
    names = ["ours without copy", "ours", "ours, bf16", "ours with stopping", "ours, bf16, with stopping"]
    lines = [
        "# Cost of a generated image\n",
        f"`{content['command']}`\n",
        f"{content['about']}\n",
        "Images per second of the plain loop, and how many times faster the others are (median of the rounds).\n",
        "| network | images | steps | plain loop, images/s | " + " | ".join(names) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for one in content["rows"].values():
        rate = one["images"] / median(one["seconds"]["plain loop"])
        ratios = " | ".join(f"{one['ratio'][name]:.2f}" if name in one["ratio"] else "-" for name in names)
        lines.append(f"| {one['network']} | {one['images']} | {one['steps']} | {rate:.1f} | {ratios} |")
    lines += ["", "| network | images of | FD-standard | named | recall |", "|---|---|---|---|---|"]
    for one in content["rows"].values():
        for name, figures in one.get("quality", {}).items():
            recall = "-" if figures["recall"] is None else f"{figures['recall']:.2f}"
            lines.append(
                f"| {one['network']} | {name} | {figures['frechet']:.1f} | {figures['named']:.2f} | {recall} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="finished runs that generate")
    parser.add_argument(
        "--judge", type=Path, nargs="*", default=[], help="independent standard runs, one per run"
    )
    parser.add_argument("--only-runs", action="store_true", help="no networks with random weights")
    parser.add_argument("--images", type=int, default=250, help="of each small network and finished run")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--toy", action="store_true", help="tiny: shows that the script works")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if len(options.judge) not in (1, len(options.run)) and options.run:
        parser.error("--judge: give one for all runs, or one per run")
    rounds, steps, count = (1, 2, 20) if options.toy else (options.rounds, STEPS, options.images)
    large = (2, 1) if options.toy else (LARGE_IMAGES, LARGE_STEPS)
    rows = [] if options.only_runs else [
        untrained("small-resnet (width 16), 32x32", SmallResNet(10, 3, width=16, depth=8), count, steps // 2, rounds),
        untrained("PreActResNet-18, 32x32", PreActResNet(10, 3), *large, rounds),
    ]  # fmt: skip
    for number, run in enumerate(options.run):
        folder = options.judge[number if len(options.judge) > 1 else 0]
        judge, data = trilemma.load(folder), run_splits(folder).train
        extractor = penultimate(judge, "standard")
        reference = extract(extractor, data.first(min(REFERENCE, len(data))).images)
        rows.append(trained(run, judge, extractor, reference, count, steps, rounds))
    write(options.results, COMMAND, {one["network"]: one for one in rows}, page)
    print(options.results.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
