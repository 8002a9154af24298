"""Convolutions by Winograd's algorithm against direct ones: time and rounding, layer by layer and for whole networks.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/winograd.py --root PATH
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/winograd.py --root PATH

Layers: every kind of convolution that fits, on its own input in the network (CIFAR-10 images, weights of
initialisation) and with its own upstream gradient; forward pass, input gradient and weight gradient, each directly and
by tiles in turns, with the kernel's transform as in training, and the errors of both against float64. Networks: the
input gradient in eval mode, and the gradient of the weights in train mode, outside and inside ``WinogradConvolutions``,
in turns. Ratios are medians of processor time; above 1 tiles are faster. Writes ``benchmarks/results/winograd.json``
and ``.md``; rows of earlier calls stay, unless they are measured again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as convolution_gradients

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result_page import write  # noqa: E402

from trilemma.classifier.classifier import Classifier  # noqa: E402
from trilemma.classifier.contexts import inner_loop  # noqa: E402
from trilemma.classifier.memory_format import preferred_memory_format, set_memory_format  # noqa: E402
from trilemma.classifier.winograd import (  # noqa: E402
    FixedConvolution,
    WinogradConvolutions,
    convolution,
    pays,
    transformed_kernel,
    transposed_kernel,
    weight_gradient,
)
from trilemma.data.sources import load_splits  # noqa: E402
from trilemma.memory import freed_memory_kept  # noqa: E402
from trilemma.networks.preact_resnet import PreActResNet  # noqa: E402
from trilemma.networks.wide_resnet import WideResNet  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "winograd.json"
COMMAND = "OMP_NUM_THREADS=1|2 OMP_WAIT_POLICY=passive python benchmarks/winograd.py --root PATH"
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "PreActResNet-18": lambda: PreActResNet(10, 3),
    "WRN-28-2": lambda: WideResNet(10, 3, depth=28, width=2),
    "WRN-28-10": lambda: WideResNet(10, 3, depth=28, width=10),
}
BATCHES = (8, 64)
PRODUCTS = ("forward", "input gradient", "weight gradient")
Side = Callable[[], Any]


def ratio(direct: Side, tiled: Side, rounds: int) -> float:
    """Processor time of ``direct`` in that of ``tiled``: the median of rounds, in turns, after one that warms up."""
    ratios = []
    for _ in range(rounds + 1):
        spent = []
        for side in (direct, tiled):
            began = time.process_time()
            side()
            spent.append(time.process_time() - began)
        ratios.append(spent[0] / spent[1])
    return round(median(ratios[1:]), 2)


def error(values: Tensor, exact: Tensor) -> float:
    """Root mean square, relative to that of ``exact``."""
    return float((values.double() - exact).norm() / exact.norm())


def layers(clf: Classifier, images: Tensor, labels: Tensor) -> dict[str, tuple[nn.Conv2d, Tensor, Tensor]]:
    """The first convolution of every kind that fits, with its input and its upstream gradient."""
    found: dict[str, tuple[nn.Conv2d, Tensor, Tensor]] = {}
    inputs: dict[nn.Module, Tensor] = {}

    def keep(conv: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        inputs[conv] = given[0].detach()
        output.register_hook(lambda gradient: name(conv, gradient.detach()))

    def name(conv: nn.Conv2d, gradient: Tensor) -> None:
        _, channels, height, width = inputs[conv].shape
        found[f"{channels} to {conv.out_channels}, {height}x{width}"] = conv, inputs[conv], gradient

    handles = [
        module.register_forward_hook(keep)
        for module in clf.network.modules()
        if FixedConvolution.fits(module)
    ]
    F.cross_entropy(clf.train().logits(images), labels).backward()
    for handle in handles:
        handle.remove()
    return found


def measure_layer(conv: nn.Conv2d, images: Tensor, gradient: Tensor, rounds: int) -> dict[str, Any]:
    """Ratios and errors of the three products of a layer."""
    weight = conv.weight.detach()
    exact_weight, exact_images, exact_gradient = weight.double(), images.double(), gradient.double()

    def forward(images: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(images, weight, padding=1)

    def backward(gradient: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(gradient, weight, padding=1)

    def weights(images: Tensor, gradient: Tensor) -> Tensor:
        found: Tensor = convolution_gradients.conv2d_weight(images, weight.shape, gradient, padding=1)
        return found

    sides: dict[str, tuple[Side, Side, Side]] = {
        "forward": (
            lambda: forward(images, weight),
            lambda: convolution(images, transformed_kernel(weight)),
            lambda: forward(exact_images, exact_weight),
        ),
        "input gradient": (
            lambda: backward(gradient, weight),
            lambda: convolution(gradient, transposed_kernel(weight)),
            lambda: backward(exact_gradient, exact_weight),
        ),
        "weight gradient": (
            lambda: weights(images, gradient),
            lambda: weight_gradient(images, gradient),
            lambda: weights(exact_images, exact_gradient),
        ),
    }
    row: dict[str, Any] = {"pays": pays(images, weight, transformed=False)}
    for product, (direct, tiled, exact) in sides.items():
        truth = exact()
        row[product] = {
            "ratio": ratio(direct, tiled, rounds),
            "error": error(tiled(), truth),
            "error_direct": error(direct(), truth),
        }
    return row


def measure_network(clf: Classifier, images: Tensor, labels: Tensor, rounds: int) -> dict[str, float]:
    """Ratios of an attack's gradient and of a training loss, by the library's context."""
    context = WinogradConvolutions()

    def attack(inside: AbstractContextManager[object]) -> None:
        with inside, inner_loop(clf):
            moving = images.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(clf.logits(moving), labels), moving)

    def loss(inside: AbstractContextManager[object]) -> None:
        with inside:
            F.cross_entropy(clf.train().logits(images), labels).backward()
        clf.zero_grad(set_to_none=True)

    return {
        "attack": ratio(lambda: attack(nullcontext()), lambda: attack(context), rounds),
        "loss": ratio(lambda: loss(nullcontext()), lambda: loss(context), rounds),
    }


def page(content: dict[str, Any]) -> str:
    """Tables of networks and of layers."""
    rows = content["rows"]
    lines = [
        "# Convolutions by Winograd's algorithm\n",
        f"`{content['command']}`\n",
        f"{content['about']} Processor time, in turns; above 1, tiles are faster.\n",
        "| network, batch, threads | attack's gradient | training loss |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['attack']:.2f} | {row['loss']:.2f} |"
        for name, row in rows.items()
        if "attack" in row
    ]
    lines += [
        "\nLayers: ratio, and errors against float64, by tiles / direct.\n",
        "| layer, batch, threads | used in training | " + " | ".join(PRODUCTS) + " |",
        "|---" * (2 + len(PRODUCTS)) + "|",
    ]
    for name, row in rows.items():
        if "pays" in row:
            cells = (
                f"{row[product]['ratio']:.2f}; {row[product]['error']:.0e} / {row[product]['error_direct']:.0e}"
                for product in PRODUCTS
            )
            lines.append(f"| {name} | {'yes' if row['pays'] else 'no'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", help="folder of CIFAR-10 images; digits, at 8x8, without")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    train = load_splits("cifar10" if options.root else "digits", root=options.root).train
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    for network in options.networks:
        for batch in options.batches:
            torch.manual_seed(0)
            clf = Classifier(NETWORKS[network](), train.num_classes)
            set_memory_format(clf, preferred_memory_format(clf.network, clf.device))
            images = train.float_images(torch.arange(batch)).expand(-1, 3, -1, -1)
            labels = train.labels[:batch]
            with freed_memory_kept(clf.device):
                measured: dict[str, Any] = {
                    f"{network}, {batch}, {threads}": measure_network(clf, images, labels, options.rounds)
                }
                for name, layer in layers(clf, images, labels).items():
                    measured[f"{name}, {batch}, {threads}"] = measure_layer(*layer, options.rounds)
            print(measured, flush=True)
            write(options.results, COMMAND, measured, page)


if __name__ == "__main__":
    main()
