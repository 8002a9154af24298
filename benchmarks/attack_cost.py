"""What AutoAttack costs: ours against the reference implementation, on networks that stay about half robust.

    OMP_NUM_THREADS=2 python benchmarks/attack_cost.py --reference PATH

Both run the whole standard protocol on the same network, images and batch in one process and take turns: ours,
theirs, ours. `--reference` is a folder that holds the package `autoattack`, which is not part of this project; without
it only ours is measured. `ratio` is theirs over the mean of ours, in seconds of the clock and of the processor: the
first says more on an idle machine, the second on a busy one. Passes are images through the network, each way, over all
images, misclassified ones included; theirs are counted by a wrapper around the network. Run it with
`OMP_WAIT_POLICY=passive`, too, which the command `trilemma` sets: waiting threads then sleep instead of spinning, which
costs other programs less and small operations more. Needs the reference networks (`../shared/reference-models`).
Writes `benchmarks/results/attack-cost.json` and `.md`, network by network.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result_page import write  # noqa: E402
from tests.reference_models import reference  # noqa: E402

from trilemma import Classifier, Threat  # noqa: E402
from trilemma.attacks.autoattack import autoattack  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "attack-cost.json"
COMMAND = "OMP_NUM_THREADS=2 [OMP_WAIT_POLICY=passive] python benchmarks/attack_cost.py --reference PATH"
NETWORKS = ("cifar10_cnn_a_mix", "cifar10_wk_small_l2_36px", "cifar10_resnet4b_at2")


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


def ours(clf: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> tuple[Tensor, dict[str, Any]]:
    result = autoattack(clf, images, labels, threat, batch_size=len(images), progress=False)
    parts = {
        name: {
            "attacked": work.attacked, "broken": work.broken, "seconds": round(work.seconds, 1),
            "forwards": work.forwards, "backwards": work.backwards,
        }
        for name, work in result.work.items()
    }  # fmt: skip
    total = {key: sum(part[key] for part in parts.values()) for key in ("forwards", "backwards")}
    return result.robust, {**total, "attacks": parts}


def theirs(clf: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> tuple[Tensor, dict[str, Any]]:
    # by name: benchmarks/gpu/autoattack.py is another module of that name to a type checker
    reference: Any = import_module("autoattack")
    counted = Counted(clf)
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    ensemble = reference.AutoAttack(
        counted, norm=norm, eps=threat.epsilon, version="standard", device="cpu", seed=0, verbose=False
    )
    found = ensemble.run_standard_evaluation(images, labels, bs=len(images))
    with torch.no_grad():
        robust = clf(found).argmax(1) == labels
    return robust, {"forwards": counted.forwards, "backwards": counted.backwards}


def measure(name: str, count: int, with_reference: bool) -> dict[str, Any]:
    clf, images, labels, threat = reference(name, count)
    case = clf, images, labels, threat
    turns = {"ours": [timed(lambda: ours(*case))]}
    if with_reference:
        turns["reference"] = [timed(lambda: theirs(*case))]
        turns["ours"].append(timed(lambda: ours(*case)))
    row: dict[str, Any] = {"images": count, "threat": str(threat), **turns}
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
        "| network, waiting threads, images, threat | turn | seconds (processor) | load before | robust "
        "| passes per image |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in content["rows"].items():
        for kind in ("ours", "reference"):
            for turn in row.get(kind, []):
                passes = " + ".join(f"{turn[key] / row['images']:,.0f}" for key in ("forwards", "backwards"))
                seconds = f"{turn['seconds']:.0f} ({turn['processor_seconds']:.0f})"
                lines.append(
                    f"| {name}, {row['images']}, {row['threat']} | {kind} | {seconds} | {turn['load_before']} "
                    f"| {turn['robust'].count('1')} | {passes} |"
                )
    lines += [
        "",
        "| network, waiting threads | faster, clock | faster, processor | verdicts that differ |",
        "|---|---|---|---|",
    ]
    for name, row in content["rows"].items():
        if "reference" in row:
            differ = ", ".join(map(str, row["verdicts_that_differ"])) or "none"
            lines.append(
                f"| {name} | {row['ratio_seconds']:.2f} x | {row['ratio_processor_seconds']:.2f} x | {differ} |"
            )
    lines += [
        "",
        "Ours by attack (first turn):",
        "",
        "| network, waiting threads | attack | attacked | broken | seconds | passes |",
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
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--images", type=int, default=100, help="of each network, at most 250")
    arguments = parser.parse_args()
    if arguments.reference is None:
        print("no --reference: only ours is measured", file=sys.stderr)
    else:
        if not (arguments.reference / "autoattack" / "__init__.py").is_file():
            parser.error(f"--reference {arguments.reference}: holds no package autoattack")
        sys.path.insert(0, str(arguments.reference))
    policy = "sleeping" if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive" else "spinning"
    for name in arguments.networks:
        row = measure(name, arguments.images, arguments.reference is not None)
        rows = {f"{name}, {policy}": row}
        write(RESULTS, COMMAND, rows, page, f"{torch.get_num_threads()} threads, one batch")
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
