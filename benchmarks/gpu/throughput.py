"""Training speed of every method on an accelerator: PreActResNet-18, 32x32 images, by precision and compilation.

    python benchmarks/gpu/throughput.py --device cuda --write

Each row is `trilemma.train`'s own step (points, terms, update) on real images that lie on the device, after a warm-up,
timed between synchronisations. `ratio` is the speed against fp32, channels-last, not compiled, of the same method in
the same run. TFLOP/s counts 2 x MACs x forward passes of the method (a walk step 2, a loss term 3).
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from typing import Any

import torch
from page import publish

from trilemma.config.recipe import build_config
from trilemma.config.registry import METHODS
from trilemma.data.batch import Batch
from trilemma.data.sources import load_splits
from trilemma.methods.creation import create_from_config
from trilemma.networks.cost import count_macs
from trilemma.training import build
from trilemma.training.estimate import forward_passes

SETTINGS = {"fp32": ("fp32", False), "bf16": ("bf16", False), "bf16 compiled": ("bf16", True)}


def speed(
    name: str, setting: str, network: str, root: str | None, device: str, batch: int, steps: int
) -> tuple[float, float]:
    """Images per second of a method's training step, and TFLOP/s."""
    precision, compiled = SETTINGS[setting]
    kind = METHODS.options(name)
    raw: dict[str, Any] = {
        "data": {"name": "cifar10", "root": root} if root else {"name": "digits"},
        "network": {"name": network},
        "method": {"name": name},
        "training": {"batch_size": batch, "precision": precision},
    }
    if kind.uses_attack:
        raw["threat"] = {"norm": "linf", "radius": "8/255"}
    config = build_config(raw)
    data = load_splits(config.data.name, root=config.data.root)
    clf = build.build_classifier(config, data.train).to(device).train()
    clf.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    macs = count_macs(clf.network, data.train.image_shape)
    if compiled:
        clf.network.compile()
    method = create_from_config(config)
    state = method.init_state(clf, data.train, seed=0)
    optimiser = build.build_optimiser(config, clf)
    loader = build.build_loader(config, data.train, torch.device(device))
    batches = iter(loader.epoch(0))
    half = torch.autocast(torch.device(device).type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def step(part: Batch) -> None:
        with half:
            points = method.points(clf, part, state)
            seen = method.terms(clf, points, state)
        optimiser.zero_grad(set_to_none=True)
        seen.loss.backward()
        optimiser.step()
        method.after_backward(points, state, seen)

    def finish() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    part = next(batches)
    for _ in range(2):
        step(part)
    begin = finish()
    for _ in range(steps):
        step(part)
    images = steps * batch / (finish() - begin)
    return images, 2e-12 * macs * forward_passes(config) * images


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", nargs="+", default=["pgd-at", "trades", "jem++", "dat", "eb-jdat"])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--network", default="preact-resnet")
    parser.add_argument("--root", help="folder of CIFAR-10 images; digits without")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/gpu_throughput.md")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.methods:
        base = 0.0
        for setting in options.settings:
            images, flops = speed(
                name, setting, options.network, options.root, options.device, options.batch, options.steps
            )
            base = base or images
            rows.append(
                {
                    "method": name,
                    "setting": setting,
                    "images": images,
                    "ratio": images / base,
                    "tflops": flops,
                }
            )
            print(rows[-1], flush=True)
    lines = ["| method | setting | images/s | ratio | TFLOP/s |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['method']} | {r['setting']} | {r['images']:,.0f} | {r['ratio']:.2f} | {r['tflops']:.2f} |"
        for r in rows
    ]
    title, about = "Training speed on an accelerator", f"{options.network}, batch {options.batch}"
    publish("gpu_throughput", title, "throughput.py", options.device, about, lines, options.write)
    return rows


if __name__ == "__main__":
    main()
