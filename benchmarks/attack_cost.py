"""What AutoAttack costs: ours against the reference implementation, on kinds of network that stay about half robust.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/attack_cost.py --reference PATH
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/attack_cost.py --reference PATH

Both run the whole standard protocol on the same network and images in one process and take turns: ours, theirs, ours.
The reference gets all images as one batch, ours its default batch size, which counts the walks to all targets.
`--reference` is a folder that holds the package `autoattack`, which is not part of this project; without it only ours
is measured. `ratio` is theirs over the mean of ours, in seconds of the clock and of the processor: the first says more
on an idle machine, the second on a busy one. Passes are images through the network, each way, over all images,
misclassified ones included; theirs are counted by a wrapper around the network. `OMP_WAIT_POLICY=passive` is what the
command `trilemma` sets: waiting threads then sleep instead of spinning.

Four networks are third-party ones (`../shared/reference-models`), four are trained here, with PGD of the library on
images of `../shared/data`, and kept in `--work`; another PreActResNet-18 for CIFAR-10 may be given by `--run`. It is
so slow that both sides do a tenth of the steps and queries. Writes `benchmarks/results/attack-cost.json` and `.md`,
network by network.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result_page import write  # noqa: E402
from tests.reference_models import SHARED, official_images, reference  # noqa: E402

from trilemma import Classifier, Threat, attacks  # noqa: E402
from trilemma.attacks.autoattack import STANDARD, AutoAttackResult, ensemble_attack  # noqa: E402
from trilemma.attacks.ensemble.pool import Pool  # noqa: E402
from trilemma.classifier.batch_size import auto_batch_size  # noqa: E402
from trilemma.classifier.load import load  # noqa: E402
from trilemma.config.presets import AUTOATTACK  # noqa: E402
from trilemma.data.sources import load_images, load_splits  # noqa: E402
from trilemma.networks.preact_resnet import PreActResNet  # noqa: E402
from trilemma.networks.small_cnn import SmallCNN  # noqa: E402
from trilemma.networks.small_resnet import SmallResNet  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "attack-cost.json"
COMMAND = (
    "OMP_NUM_THREADS=1|2 OMP_WAIT_POLICY=passive python benchmarks/attack_cost.py --reference PATH --run PATH"
)

ABOUT_TURNS = "alternating; the reference with all images as one batch, ours with its default batch size"

Examples = tuple[Tensor, Tensor]
Case = tuple[Classifier, Tensor, Tensor, Threat]


def digits() -> tuple[Examples, Examples]:
    splits = load_splits("digits")
    sets = splits.train, load_images("digits")
    (train, test) = (
        (images.float_images(torch.arange(len(images.labels))), images.labels) for images in sets
    )
    return train, test


def mnist(count: int = 4000) -> tuple[Examples, Examples]:
    return members(
        SHARED / "data" / "mnist" / "train.tar.gz", lambda name: name.split("/")[1], count
    ), official_images("mnist", 250)


def cifar10(count: int = 4000) -> tuple[Examples, Examples]:
    train = load_splits("folder", root=SHARED / "data" / "cifar10-lossless-subset").train
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))[:count]
    return (train.float_images(order), train.labels[order]), official_images("cifar10", 250)


def tiny(classes: int = 10) -> tuple[Examples, Examples]:
    """Images of the first ten classes."""
    folder = SHARED / "data" / "tiny-imagenet"
    names = [line.split()[0] for line in (folder / "classes.txt").read_text().splitlines()[:classes]]

    def label(name: str) -> str | None:
        found = name.split("/")[1]
        return str(names.index(found)) if found in names else None

    train = members(folder / "train_100perclass.tar.gz", label, 100 * classes)
    return train, members(folder / "val.tar.gz", label, 50 * classes)


def members(archive: Path, label: Callable[[str], str | None], count: int) -> Examples:
    """The first ``count`` images of a tar archive that have a label, in a fixed random order."""
    pixels, labels = [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            found = label(member.name) if member.isfile() and member.name.count("/") == 2 else None
            if found is not None and (file := tar.extractfile(member)) is not None:
                image = Image.open(BytesIO(file.read()))
                array = np.array(image if archive.parent.name == "mnist" else image.convert("RGB"))
                pixels.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
                labels.append(int(found))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
    return torch.from_numpy(np.stack(pixels))[order].float() / 255, torch.tensor(labels)[order]


def pooling_network() -> nn.Module:
    """Convolutions and max pooling, GELU, for 28x28 grey images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A network that is trained here.

    Attributes:
        about: as the page describes it.
        network, data: functions that make them.
        threat: threat of the evaluation, and of training.
        epochs: epochs of training.
        images: number of images that are evaluated.
        share: share of the protocol's steps and queries.
        attack_steps: steps of PGD in training.
    """

    about: str
    network: Callable[[], nn.Module]
    data: Callable[[], tuple[Examples, Examples]]
    threat: Threat
    epochs: int
    images: int = 100
    share: float = 1.0
    attack_steps: int = 5


TRAINED = {
    "digits": Trained(
        "8x8 grey, residual, GroupNorm, SiLU",
        lambda: SmallResNet(10, 1, norm="group", activation="silu"), digits, Threat("linf", "0.15"), 8,
    ),
    "mnist-pool": Trained(
        "28x28 grey, max pooling, GELU", pooling_network, mnist, Threat("linf", "0.2"), 3, 60
    ),
    "tiny-imagenet-10": Trained(
        "64x64 colour, two convolutions, LeakyReLU",
        lambda: SmallCNN(10, (3, 64, 64), activation="leaky_relu"), tiny, Threat("linf", "1/255"), 4, 60,
    ),
    "cifar10-preact-resnet-18": Trained(
        "32x32 colour, residual, BatchNorm, ReLU", lambda: PreActResNet(10, 3), cifar10, Threat("linf", "1/255"),
        4, 10, 0.1, attack_steps=1,
    ),
}  # fmt: skip
THIRD_PARTY = {
    "mnist_wk_small_linf03": "28x28 grey, two 4x4 convolutions, ReLU",
    "cifar10_cnn_a_mix": "32x32 colour, two 4x4 convolutions, normalised input, ReLU",
    "cifar10_wk_small_l2_36px": "32x32 colour, two 4x4 convolutions, normalised input, ReLU",
    "cifar10_resnet4b_at2": "32x32 colour, residual without norm, normalised input, ReLU",
}
ABOUT = {name: kind.about for name, kind in TRAINED.items()} | THIRD_PARTY


def train(kind: Trained, images: Tensor, labels: Tensor) -> Classifier:
    """A network after a short adversarial training with PGD, Adam and a falling rate."""
    torch.manual_seed(0)
    clf = Classifier(kind.network(), 10, threat=kind.threat)
    batch = 64
    steps = kind.epochs * (len(labels) // batch)
    optimiser = torch.optim.Adam(clf.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, max(2, steps))
    for step in range(steps):
        index = torch.randint(len(labels), (batch,))
        # The radius grows over the first quarter: a large one from the start keeps a small network from learning.
        radius = kind.threat.epsilon * min(1.0, (step + 1) / (steps / 4))
        attacked = attacks.pgd(clf, images[index], labels[index], radius, steps=kind.attack_steps)
        clf.train()
        optimiser.zero_grad()
        F.cross_entropy(clf(attacked), labels[index]).backward()
        optimiser.step()
        schedule.step()
    return clf.eval().requires_grad_(False)


def case(name: str, count: int | None, work: Path, run: Path | None) -> Case:
    """Classifier, images, labels and threat; trains the network if neither ``work`` nor ``run`` has it."""
    if name in THIRD_PARTY:
        return reference(name, count or 100)
    kind, path = TRAINED[name], work / f"{name}.pt"
    train_images, (images, labels) = kind.data()
    if name == "cifar10-preact-resnet-18" and run is not None:
        clf = load(run)
    elif path.is_file():
        clf = Classifier(kind.network(), 10, threat=kind.threat)
        clf.load_state_dict(torch.load(path, weights_only=True))
    else:
        clf = train(kind, *train_images)
        torch.save(clf.state_dict(), path)
    count = count or kind.images
    return clf.eval().requires_grad_(False), images[:count].contiguous(), labels[:count], kind.threat


class Counted(nn.Module):
    """A network that counts the images that go through it, forwards and backwards."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        logits: Tensor = self.network(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


Robust = Callable[[], tuple[Tensor, dict[str, Any]]]


def timed(run: Robust) -> dict[str, Any]:
    """Seconds, processor seconds, verdicts and passes of one whole evaluation."""
    load, clock, processor = os.getloadavg()[0], time.perf_counter(), time.process_time()
    robust, facts = run()
    return {
        "seconds": round(time.perf_counter() - clock, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "load_before": round(load, 1),
        "robust": "".join(str(int(stands)) for stands in robust.tolist()),
        **facts,
    }


def ours(case: Case, share: float) -> tuple[Tensor, dict[str, Any]]:
    clf, images, labels, threat = case
    table = {name: replace(row, settings=shortened(row.settings, share)) for name, row in AUTOATTACK.items()}
    pool = Pool(clf, images, labels, threat, 0, auto_batch_size(clf, images[:1]))
    pool.check_clean()
    for name in STANDARD:
        pool.run(ensemble_attack(table, name))
    result = AutoAttackResult(pool.robust, pool.adversarial(), pool.broken_by_names(), pool.work)
    parts = {
        name: {
            "attacked": work.attacked, "broken": work.broken, "seconds": round(work.seconds, 1),
            "forwards": work.forwards, "backwards": work.backwards,
        }
        for name, work in result.work.items()
    }  # fmt: skip
    total = {key: sum(part[key] for part in parts.values()) for key in ("forwards", "backwards")}
    return result.robust, {**total, "attacks": parts}


def shortened(settings: dict[str, Any], share: float) -> dict[str, Any]:
    """The settings of an attack with a share of its steps and queries."""
    return settings | {key: round(settings[key] * share) for key in ("steps", "queries") if key in settings}


def theirs(case: Case, share: float) -> tuple[Tensor, dict[str, Any]]:
    clf, images, labels, threat = case
    # by name: benchmarks/gpu/autoattack.py is another module of that name to a type checker
    reference: Any = import_module("autoattack")
    counted = Counted(clf)
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    ensemble = reference.AutoAttack(
        counted, norm=norm, eps=threat.epsilon, version="standard", device="cpu", seed=0, verbose=False
    )
    for attack in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab):
        attack.n_iter = round(attack.n_iter * share)
    ensemble.square.n_queries = round(ensemble.square.n_queries * share)
    found = ensemble.run_standard_evaluation(images, labels, bs=len(images))
    with torch.no_grad():
        robust = clf(found).argmax(1) == labels
    return robust, {"forwards": counted.forwards, "backwards": counted.backwards}


def measure(name: str, case: Case, with_reference: bool) -> dict[str, Any]:
    share = TRAINED[name].share if name in TRAINED else 1.0
    turns = {"ours": [timed(lambda: ours(case, share))]}
    if with_reference:
        turns["reference"] = [timed(lambda: theirs(case, share))]
        turns["ours"].append(timed(lambda: ours(case, share)))
    row: dict[str, Any] = {"images": len(case[1]), "threat": str(case[3]), "share": share, **turns}
    if with_reference:
        (other,) = turns["reference"]
        for key in ("seconds", "processor_seconds"):
            mean = sum(turn[key] for turn in turns["ours"]) / len(turns["ours"])
            row[f"ratio_{key}"] = round(other[key] / mean, 2)
        pairs = zip(turns["ours"][0]["robust"], other["robust"], strict=True)
        row["verdicts_that_differ"] = [i for i, (one, two) in enumerate(pairs) if one != two]
    return row


def page(content: dict[str, Any]) -> str:
    """Tables of everything measured so far."""
    lines = [
        "# AutoAttack: cost of ours and of the reference implementation\n",
        f"`{content['command']}`\n",
        f"{content['about']}\n",
        "| network | kind | threat | images, robust | threads | faster, processor | faster, clock | seconds of the "
        "processor: ours, reference | passes per image: ours, reference | verdicts that differ |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in content["rows"].items():
        name, threads = key.split(", ")
        turns = [*row["ours"], *row.get("reference", [])]
        seconds = ", ".join(f"{turn['processor_seconds']:.1f}" for turn in turns)
        passes = ", ".join(
            f"{turn['forwards'] / row['images']:,.0f} + {turn['backwards'] / row['images']:,.0f}"
            for turn in turns[1:]
        )
        differ = ", ".join(map(str, row.get("verdicts_that_differ", []))) or "none"
        part = "" if row["share"] == 1 else f", {row['share']:.0%} of the steps"
        ratios = (
            f"{row.get(f'ratio_{kind}', float('nan')):.2f} x" for kind in ("processor_seconds", "seconds")
        )
        lines.append(
            f"| `{name}` | {ABOUT[name]}{part} | {row['threat']} | {row['images']}, {turns[0]['robust'].count('1')} "
            f"| {threads.split()[0]} | {' | '.join(ratios)} | {seconds} | {passes} | {differ} |"
        )
    for threads in ("1 thread", "2 threads"):
        ratios_here = [
            row["ratio_processor_seconds"]
            for key, row in content["rows"].items()
            if key.endswith(f", {threads}")
        ]
        if ratios_here:
            low, high = min(ratios_here), max(ratios_here)
            lines += [
                "",
                f"{threads}, processor time: {low:.2f} to {high:.2f} times as fast, "
                f"median {median(ratios_here):.2f}.",
            ]
    lines += [
        "",
        "Ours by attack (first turn):",
        "",
        "| network, threads | attack | attacked | broken | seconds | passes |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for name, row in content["rows"].items():
        for attack, part in row["ours"][0]["attacks"].items():
            passes = f"{part['forwards']:,} + {part['backwards']:,}"
            lines.append(
                f"| {name} | {attack} | {part['attacked']} | {part['broken']} | {part['seconds']:.0f} | {passes} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, metavar="PATH", help="a folder that holds `autoattack/`")
    parser.add_argument(
        "--run", type=Path, metavar="PATH", help="a trained PreActResNet-18 for CIFAR-10, a run or a file"
    )
    parser.add_argument(
        "--work", type=Path, metavar="PATH", default=Path("attack-cost"), help="trained networks"
    )
    parser.add_argument("--networks", nargs="+", choices=list(ABOUT), default=list(ABOUT))
    parser.add_argument("--images", type=int, help="of each network, at most 250")
    arguments = parser.parse_args()
    if arguments.reference is None:
        print("no --reference: only ours is measured", file=sys.stderr)
    else:
        if not (arguments.reference / "autoattack" / "__init__.py").is_file():
            parser.error(f"--reference {arguments.reference}: holds no package autoattack")
        sys.path.insert(0, str(arguments.reference))
    arguments.work.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    for name in arguments.networks:
        found = case(name, arguments.images, arguments.work, arguments.run)
        row = measure(name, found, arguments.reference is not None)
        rows = {f"{name}, {threads} thread{'s' if threads > 1 else ''}": row}
        write(RESULTS, COMMAND, rows, page, ABOUT_TURNS)
        print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
