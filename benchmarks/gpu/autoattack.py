"""The whole AutoAttack protocol on an accelerator: time, TFLOP/s and verdicts, by precision and compilation.

    python benchmarks/gpu/autoattack.py --run runs/pgd-at --root PATH --device cuda --write

Each setting judges the same images of a trained classifier. ``fp32`` is the protocol as it stands; ``compiled`` is the
same with a compiled network; ``bf16, then fp32`` searches under autocast and attacks what is left again in float32, so
that low precision can only break images, each success being verified in float32 by the classifier itself. Verdicts are
compared with those of ``fp32``, image by image. TFLOP/s counts 2 x MACs for a forward pass and as much for a backward
one (input gradients only). Without ``--run`` a network of the same kind with fresh weights shows that the script works.
"""

from __future__ import annotations

import argparse
import copy
import time
from contextlib import nullcontext
from typing import Any

import torch
from page import publish
from torch import Tensor

import trilemma
from trilemma.attacks.autoattack import AutoAttackResult
from trilemma.data.sources import load_images
from trilemma.networks.cost import count_macs
from trilemma.networks.create import create_network
from trilemma.networks.options import PreActResNetOptions, SmallResNetOptions

SETTINGS = ("fp32", "compiled", "bf16, then fp32")


def attacked(
    setting: str,
    clf: trilemma.Classifier,
    images: Tensor,
    labels: Tensor,
    threat: trilemma.Threat,
    attacks: list[str] | None,
) -> list[AutoAttackResult]:
    """The evaluations that the setting is made of; the last one has the final word on what it was given."""
    if setting == "compiled":
        clf = copy.deepcopy(clf)
        clf.network.compile()
    low = setting.startswith("bf16")
    with torch.autocast(images.device.type, torch.bfloat16) if low else nullcontext():
        found = [trilemma.attacks.autoattack(clf, images, labels, threat, attacks=attacks)]
    if low:
        left = found[0].robust
        here = left.to(images.device)
        found.append(trilemma.attacks.autoattack(clf, images[here], labels[here], threat, attacks=attacks))
    return found


def judge(
    setting: str,
    clf: trilemma.Classifier,
    images: Tensor,
    labels: Tensor,
    attacks: list[str] | None,
    macs: float,
) -> tuple[dict[str, Any], Tensor]:
    """One row of the table, and the verdicts, bool ``[N]``."""
    threat = clf.threat
    assert threat is not None
    begin = time.perf_counter()
    found = attacked(setting, clf, images, labels, threat, attacks)
    if images.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    robust = found[0].robust.clone()
    if len(found) == 2:
        robust[found[0].robust] = found[1].robust
    passes = sum(work.forwards + work.backwards for result in found for work in result.work.values())
    row = {"setting": setting, "seconds": seconds, "robust": float(robust.float().mean()), "passes": passes}
    return row | {"tflops": 2e-12 * macs * passes / seconds}, robust


def subject(
    run: str | None, network: str, root: str | None, device: str
) -> tuple[trilemma.Classifier, Tensor, Tensor]:
    """The classifier and the test images it is judged on."""
    data = load_images("cifar10", root=root) if root else load_images("digits")
    if run is None:
        torch.manual_seed(0)
        options = PreActResNetOptions() if network == "preact-resnet" else SmallResNetOptions(width=8)
        shape = data.image_shape
        clf = trilemma.Classifier(
            create_network(options, 10, shape), 10, image_shape=shape, threat=trilemma.Threat("linf", "8/255")
        )
    else:
        clf = trilemma.load(run)
    return clf.to(device).eval(), data.float_images(), data.labels


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run", help="a run folder or a classifier file; fresh weights without")
    parser.add_argument("--root", help="folder of CIFAR-10 images; digits without")
    parser.add_argument("--network", default="preact-resnet", help="of fresh weights")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--radius", help="another than the stored one, in its norm")
    parser.add_argument("--attacks", nargs="+", help="fewer attacks than the protocol, for a trial")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/gpu_autoattack.md")
    options = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    clf, images, labels = subject(options.run, options.network, options.root, options.device)
    if options.radius is not None:
        assert clf.threat is not None
        clf.threat = trilemma.Threat(clf.threat.norm, options.radius)
    images, labels = images[: options.images].to(options.device), labels[: options.images].to(options.device)
    channels, height, width = images.shape[1:]
    macs = count_macs(clf.network, (channels, height, width))
    rows: list[dict[str, Any]] = []
    first = None
    for setting in options.settings:
        row, robust = judge(setting, clf, images, labels, options.attacks, macs)
        first = robust if first is None else first
        rows.append(row | {"differ": int((robust != first).sum())})
    table = ["| setting | robust | seconds | TFLOP/s | verdicts that differ |", "|---|---|---|---|---|"]
    table += [
        f"| {r['setting']} | {r['robust']:.2%} | {r['seconds']:,.0f} | {r['tflops']:.2f} | {r['differ']} |"
        for r in rows
    ]
    about = f"{options.run or options.network}, {len(images):,} images, {clf.threat}"
    command = f"autoattack.py --images {options.images}"
    publish(
        "gpu_autoattack", "AutoAttack on an accelerator", command, options.device, about, table, options.write
    )
    return rows


if __name__ == "__main__":
    main()
