"""CIFAR-10 from tar shards against CIFAR-10 in memory: accuracy over seeds, and processor time of the training.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/streaming.py --root PATH --work DIR

PATH is a folder with CIFAR-10; `trilemma shards` writes its shards into DIR, where the runs lie too. A run that has its
row is not trained again. The two sides differ in `data` alone: same network, method, seeds and number of images. They
take turns. Writes `benchmarks/results/streaming.json` and `.md`; what a person wrote under `## Reading` stays.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result_page import write  # noqa: E402

import trilemma  # noqa: E402
from trilemma.config.recipe import build_config  # noqa: E402
from trilemma.data.sharding import shard_source  # noqa: E402
from trilemma.training.train import train  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "streaming.json"
COMMAND = "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/streaming.py --root PATH --work DIR"
SIDES = ("resident", "shards")


def one_run(data: Mapping[str, Any], seed: int, epochs: int, path: Path) -> dict[str, Any]:
    """Trains and evaluates; accuracies in [0, 1], and the processor seconds of the training."""
    tree: dict[str, Any] = {
        "data": dict(data),
        "network": {"name": "small-cnn", "activation": "leaky_relu"},
        "method": {"name": "standard"},
        "optimiser": {"name": "adam", "weight_decay": 0},
        "schedule": {"name": "one-cycle"},
        "training": {"epochs": epochs, "seed": seed, "lr": 0.001, "evaluate_every": epochs},
    }
    began = time.process_time()
    run = train(build_config(tree), out=path, progress=False)
    seconds = time.process_time() - began
    clean = trilemma.evaluate(run.path, protocols=["clean"], lint=False)["clean"]
    return {
        "seed": seed, "epochs": epochs, "seconds": round(seconds, 1), "clean": clean["value"],
        "data": clean["data"],
    }  # fmt: skip


def page(content: Mapping[str, Any]) -> str:
    """A table of the runs, and one of the means."""
    rows = content["rows"]
    lines = [
        "# CIFAR-10 from shards and in memory\n",
        f"`{content['command']}`\n",
        f"{content['about']}\n",
        "`small-cnn`, `standard`, all 10,000 test images; processor seconds of the training, one thread.\n",
        "| data | seed | epochs | clean | processor seconds |",
        "|---|---|---|---|---|",
    ]
    for row in rows.values():
        lines.append(
            f"| {row['side']} | {row['seed']} | {row['epochs']} | {row['clean']:.2%} | {row['seconds']:.0f} |"
        )
    lines += ["", "| mean over seeds | clean | processor seconds |", "|---|---|---|"]
    for side in SIDES:
        own = [row for row in rows.values() if row["side"] == side]
        if own:
            values = [mean(row[name] for row in own) for name in ("clean", "seconds")]
            lines.append(f"| {side} | {values[0]:.2%} | {values[1]:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with CIFAR-10")
    parser.add_argument("--name", default="cifar10", help="data set of --root")
    parser.add_argument("--work", type=Path, required=True, help="folder for shards and runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    shards = options.work / "shards"
    if not (shards / "shards.json").exists():
        shard_source(options.root, shards)
    sources = {
        "resident": {"name": options.name, "root": options.root},
        "shards": {"name": "shards", "root": str(shards)},
    }
    done = json.loads(options.results.read_text())["rows"] if options.results.exists() else {}
    for seed in range(options.seeds):
        for side in SIDES:
            name, path = f"{side}, seed {seed}", options.work / f"{side}-{seed}"
            if name in done:
                continue
            # Interrupted: its processor time would be that of a part.
            shutil.rmtree(path, ignore_errors=True)
            row = {"side": side, **one_run(sources[side], seed, options.epochs, path)}
            print(row, flush=True)
            write(options.results, COMMAND, {name: row}, page)


if __name__ == "__main__":
    main()
