"""Does an energy-trained classifier generate digits from (almost) nothing? Figures of start beside sample, by seed.

    OMP_WAIT_POLICY=passive python benchmarks/studies/digits_generation.py --seeds 0 1 2

Per seed it trains `digits/standard` (two: one is only the independent namer), `digits/pgd-at` and `digits/eb-jdat`,
measures clean and PGD-20 accuracy on the test images, and draws 20 samples per class from three starts by one chain
(the quickstart's). A sample is judged by the share that the namer names as its class and by its distance to the
nearest training image, beside its own start and beside real test images. The goal: from low-information starts
(uniform, class mean plus noise) at least 80 % named and at most 1.5 times the distance of real test digits; from
class-informed starts (class PCA) no worse than the start.

Writes digits_generation.json and .md into benchmarks/results/; runs are kept in --work and taken up again.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import trilemma
from trilemma.cli.quickstart import CHAIN, STARTS
from trilemma.data.sources import load_splits
from trilemma.evaluation.samples import generate
from trilemma.runs.run_directory import RunDirectory

RESULTS = Path(__file__).resolve().parents[1] / "results"
METHODS = ("standard", "pgd-at", "eb-jdat")


def trained(work: Path, method: str, seed: int) -> trilemma.Classifier:
    """The classifier of one run, trained now or earlier."""
    out = work / f"{method}-{seed}"
    resume = RunDirectory(out).config_file.is_file()
    return trilemma.train(f"digits/{method}", {"training.seed": seed}, out=out, resume=resume).classifier


def one_seed(work: Path, seed: int) -> list[dict[str, Any]]:
    """One row per method: accuracies, and per start the figures of start and sample."""
    data = load_splits("digits")
    namer = trained(work, "standard", seed + 1000)
    rows = []
    for method in METHODS:
        clf = trained(work, method, seed)
        accuracy = trilemma.evaluate(clf, "digits", ["clean", "pgd-20"], trilemma.Threat("linf", "0.2"))
        row = {"seed": seed, "method": method, **{name: r["value"] for name, r in accuracy.items()}}
        for start, steps in STARTS.items():
            record = generate(clf, 20, start, steps=steps, seed=seed, namer=namer, data=data, **CHAIN).record
            row[start] = record["figures"]
        rows.append(row)
        print(json.dumps(row))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds with their range, as Markdown."""

    def cell(values: list[float], digits: int) -> str:
        spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{spread}"

    lines = ["| method | clean | PGD-20 | start | named: start | sample | distance: start | sample | real |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        for start in STARTS:
            figures = [row[start] for row in own]
            cells = [cell([row["clean"] for row in own], 3), cell([row["pgd-20"] for row in own], 3), start]
            cells += [cell([f[kind]["named"] for f in figures], 2) for kind in ("start", "sample")]
            cells += [cell([f[kind]["distance"] for f in figures], 2) for kind in ("start", "sample", "real")]
            lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/digits-generation"))
    options = parser.parse_args()
    rows = [row for seed in options.seeds for row in one_seed(options.work, seed)]
    threads = f"{platform.machine()}, {torch.get_num_threads()} CPU threads"
    about = f"trilemma {trilemma.__version__}, torch {torch.__version__}, {threads}"
    command = f"python benchmarks/studies/digits_generation.py --seeds {' '.join(map(str, options.seeds))}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "digits_generation.json").write_text(
        json.dumps({"about": about, "command": command, "rows": rows}, indent=1)
    )
    text = f"# Digits from (almost) nothing\n\n`{command}`\n\n{about}. Mean over seeds (range).\n\n{table(rows)}\n"
    (RESULTS / "digits_generation.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
