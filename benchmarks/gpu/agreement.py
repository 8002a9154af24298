"""Does an accelerator compute what the CPU computes? One step of every method on both, from the same state.

    python benchmarks/gpu/agreement.py --device cuda

For every registered method: the same small network, batch, seed and chains on both devices; then adversarial images,
samples, loss and weight gradients are compared. Noise comes from integers, so it is the same on both up to rounding;
what differs is the rounding of convolutions, which sign steps magnify: an input gradient near zero may flip its sign.
Therefore the images are compared by the share of pixels that differ by more than a thousandth, the loss and the
gradients relatively. Prints Markdown and writes benchmarks/results/gpu_agreement.md (with --write).
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from page import publish
from torch import Tensor

import trilemma
from trilemma.config.registry import METHODS
from trilemma.data.sources import load_splits
from trilemma.methods import Points, Step
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallResNetOptions


def one_step(name: str, device: str, count: int) -> tuple[Points, Step, list[Tensor]]:
    """Points, terms and weight gradients of a method's second step (the first fills buffers) on ``device``."""
    kind = METHODS.options(name)
    method = trilemma.methods.create(
        name,
        trilemma.Threat("linf", "0.1") if kind.uses_attack else None,
        sampler={"buffer_size": 100, "steps": 3} if kind.uses_sampler else None,
    )
    data = load_splits("digits").train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create_network(SmallResNetOptions(width=8, norm="group", activation="silu"), 10, (1, 8, 8))
    clf = trilemma.Classifier(network, 10, [0.5], [0.5], image_shape=(1, 8, 8)).to(device).train()
    state = method.init_state(clf, data, seed=0)
    places = torch.arange(count)
    images = data.float_images(places, device=torch.device(device))
    batch = trilemma.Batch(images, data.labels[places].to(device), dict.fromkeys(method.views, images))
    method.loss(clf, batch, state)
    points = method.points(clf, batch, state)
    step = method.terms(clf, points, state)
    step.loss.backward()
    return points, step, [p.grad.cpu() for p in clf.parameters() if p.grad is not None]


def apart(one: Tensor | None, other: Tensor | None) -> str:
    """Share of pixels that differ by more than a thousandth."""
    if one is None or other is None:
        return "-"
    return f"{float(((one.detach().cpu() - other.detach().cpu()).abs() > 1e-3).float().mean()):.4%}"


def compare(name: str, device: str, count: int) -> dict[str, Any]:
    """How far the step on ``device`` is from that on the CPU."""
    here, there = one_step(name, "cpu", count), one_step(name, device, count)
    loss, other = float(here[1].loss.detach()), float(there[1].loss.detach())
    ours = torch.cat([g.flatten() for g in here[2]])
    theirs = torch.cat([g.flatten() for g in there[2]])
    return {
        "method": name,
        "adversarial": apart(here[0].adversarial, there[0].adversarial),
        "generated": apart(here[0].generated, there[0].generated),
        "loss": abs(loss - other) / max(abs(loss), 1e-6),
        "gradient": float((ours - theirs).norm() / ours.norm().clamp_min(1e-12)),
    }


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/gpu_agreement.md")
    options = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = [compare(name, options.device, options.images) for name in METHODS.names()]
    lines = [
        "| method | x* apart | x^ apart | loss, relative | weight gradient, relative |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['method']} | {r['adversarial']} | {r['generated']} | {r['loss']:.1e} | {r['gradient']:.1e} |"
        for r in rows
    ]
    title, command = "One step on an accelerator and on the CPU", f"agreement.py --images {options.images}"
    publish("gpu_agreement", title, command, options.device, "TF32 off", lines, options.write)
    return rows


if __name__ == "__main__":
    main()
