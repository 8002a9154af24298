"""AutoAttack on random networks: the protocol `autoattack-rand` against the reference program's version `rand`.

    OMP_NUM_THREADS=1 python benchmarks/autoattack_rand.py --reference PATH

Small networks of the digits whose forward passes are random in eval mode: dropout left on, Gaussian noise on the input,
a random resize of the input. Each is trained here and then attacked, L-inf, on the first 200 test images, by
`autoattack-rand`, by the reference program's version `rand` and by `autoattack-standard`. All adversarial images are
judged alike: by expected accuracy, the mean over 100 new forward passes of each image. `--reference` is a folder that
holds the package `autoattack`, which is not part of this project; without it only ours are measured.
Writes `benchmarks/results/autoattack-rand.json` and `.md` and the table in `docs/protocols.md`, network by network.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from benchmarks.result_page import write  # noqa: E402
from studies.common import update_page  # type: ignore[import-not-found]  # noqa: E402

from trilemma import Classifier, Threat  # noqa: E402
from trilemma.attacks import autoattack, autoattack_rand  # noqa: E402
from trilemma.attacks.autoattack_rand import expected_correct  # noqa: E402
from trilemma.classifier.contexts import seeded  # noqa: E402
from trilemma.data import load_splits  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "autoattack-rand.json"
PAGE = ROOT / "docs" / "protocols.md"
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/autoattack_rand.py --reference PATH"
CPU = torch.device("cpu")


class RandomNetwork(nn.Module):
    """Two convolutions and a linear layer; ``disturb`` changes the images at random, ``drop`` the features."""

    def __init__(self, disturb: Callable[[Tensor], Tensor], drop: float = 0.0) -> None:
        super().__init__()
        self.disturb, self.drop = disturb, drop
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.last = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(self.disturb(images))
        # Dropout that is left on in eval mode.
        logits: Tensor = self.last(F.dropout(features, self.drop, training=True))
        return logits


def noisy(images: Tensor) -> Tensor:
    return images + 0.25 * torch.randn_like(images)


def resized(images: Tensor) -> Tensor:
    """Bilinear to a side of 5 to 8 pixels, then zeros around it at random, one draw for the whole batch."""
    side = int(torch.randint(5, 9, ()))
    left, top = (int(torch.randint(0, 9 - side, ())) for _ in range(2))
    small = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
    return F.pad(small, (left, 8 - side - left, top, 8 - side - top))


# name: how the network is random, and the radius, at which it stays about half right
NETWORKS: dict[str, tuple[Callable[[], RandomNetwork], str]] = {
    "dropout": (lambda: RandomNetwork(lambda images: images, drop=0.5), "0.08"),
    "noise": (lambda: RandomNetwork(noisy), "0.12"),
    "resize": (lambda: RandomNetwork(resized), "0.08"),
}


def trained(make: Callable[[], RandomNetwork]) -> Classifier:
    """The network after 40 epochs of cross-entropy on the digits, on clean images."""
    train = load_splits("digits").train
    images, labels = train.float_images(), train.labels
    with seeded(0, CPU):
        network = make()
        optimiser = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(40):
            for index in torch.randperm(len(labels)).split(100):
                optimiser.zero_grad()
                F.cross_entropy(network(images[index]), labels[index]).backward()
                optimiser.step()
    return Classifier(network, 10, image_shape=(1, 8, 8)).eval()


def judged(clf: Classifier, images: Tensor, labels: Tensor) -> float:
    """Expected accuracy of any images, by passes with random numbers that no attack has seen."""
    with seeded(10_000, CPU):
        return round(float(expected_correct(clf, images, labels).mean()), 4)


def theirs(clf: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    # by name: benchmarks/gpu/autoattack.py is another module of that name to a type checker
    reference: Any = import_module("autoattack")
    ensemble = reference.AutoAttack(
        clf, norm="Linf", eps=threat.epsilon, version="rand", device="cpu", seed=0, verbose=False
    )
    with seeded(0, CPU):
        found: Tensor = ensemble.run_standard_evaluation(images, labels, bs=len(images))
    return found


def measure(name: str, count: int, with_reference: bool) -> dict[str, Any]:
    make, radius = NETWORKS[name]
    clf, threat = trained(make), Threat("linf", radius)
    test = load_splits("digits").test.first(count)
    images, labels = test.float_images(), test.labels
    attacks: dict[str, Callable[[], Tensor]] = {
        "autoattack-rand": lambda: autoattack_rand(clf, images, labels, threat, count).adversarial,
        "autoattack-standard": lambda: (
            autoattack(clf, images, labels, threat, count, progress=False).adversarial
        ),
    }
    if with_reference:
        attacks["reference"] = lambda: theirs(clf, images, labels, threat)
    row: dict[str, Any] = {"images": count, "threat": str(threat), "clean": judged(clf, images, labels)}
    for attack, run in attacks.items():
        started = time.process_time()
        found = run()
        seconds = round(time.process_time() - started, 1)
        row[attack] = {"expected": judged(clf, found, labels), "processor_seconds": seconds}
    return row


def table(rows: dict[str, Any]) -> str:
    """The expected accuracies as Markdown."""
    lines = [
        "| network, images, threat | clean | `autoattack-standard` | reference, `rand` | `autoattack-rand` "
        "| ours - reference |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [
            f"{row[key]['expected']:.3f} ({row[key]['processor_seconds']:.0f} s)" if key in row else "-"
            for key in ("autoattack-standard", "reference", "autoattack-rand")
        ]
        difference = (
            f"{row['autoattack-rand']['expected'] - row['reference']['expected']:+.3f}"
            if "reference" in row
            else "-"
        )
        lines.append(
            f"| {name}, {row['images']}, {row['threat']} | {row['clean']:.3f} | {' | '.join(cells)} | {difference} |"
        )
    return "\n".join(lines)


def page(content: dict[str, Any]) -> str:
    """The page of everything measured so far."""
    # The largest error of two means over the same 200 images, each of 100 passes.
    error = math.sqrt(2 * 0.25 / 100 / 200)
    return f"""# AutoAttack on random networks: ours and the reference program

`{content["command"]}`

{content["about"]}

Expected accuracy over 100 forward passes of each image, judged alike for all; in brackets processor seconds.

{table(content["rows"])}

The passes of the judgement make differences uncertain by {error:.3f} at most (one sigma).
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, metavar="PATH", help="a folder that holds `autoattack/`")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.reference is None:
        print("no --reference: only ours are measured", file=sys.stderr)
    else:
        if not (arguments.reference / "autoattack" / "__init__.py").is_file():
            parser.error(f"--reference {arguments.reference}: holds no package autoattack")
        sys.path.insert(0, str(arguments.reference))
    for name in arguments.networks:
        rows = {name: measure(name, arguments.images, arguments.reference is not None)}
        everything = write(RESULTS, COMMAND, rows, page, f"{torch.get_num_threads()} thread, one batch")
        update_page(PAGE, "autoattack-rand", table(everything))
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
