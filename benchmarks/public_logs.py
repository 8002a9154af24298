"""The alarms of evaluations, replayed on public training logs that nobody here wrote.

    python benchmarks/public_logs.py --fast PATH --robust PATH

`--fast` is a clone (or git directory) of https://github.com/fzjcdt/FastAT_Benchmark: single- and multi-step training on
CIFAR-10, CIFAR-100 and Tiny-ImageNet with clean, FGSM and PGD-10 accuracy on held-out images after every epoch, of the
weights and of their average, and PGD and AutoAttack accuracy of the best checkpoint. `--robust` is one of
https://github.com/locuslab/robust_overfitting: multi-step training for 200 epochs with accuracies on the test images,
without FGSM. Both are read by :func:`trilemma.monitors.replay`, which uses the monitors of the training loop at their
defaults and is told neither the number of classes nor what happened.

What happened, from the whole log:

- collapsed: the largest gap between FGSM and PGD accuracy is 0.3 or more (between 0.19 and 0.34 there is no run);
- faded: no gap, and the last PGD accuracy is below a third of the best one, which was above 0.12;
- overfit: the mean PGD accuracy of the last ten evaluations is 0.03 or more below the best mean of ten.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from trilemma import monitors
from trilemma.monitors.verdict import LogAlarm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.clone import git
from benchmarks.result_page import write

RESULTS = Path(__file__).parent / "results" / "public-logs.json"
WINDOW, FALL, GAP, ONSET = 10, 0.03, 0.3, 0.25
IMAGES, DRAWS = (256, 512, 1000), 5
SPACINGS = (1, 2, 5, 10, 20)
MASKED = 0.10
KINDS, ALARMS = ("collapsed", "faded", "overfit", "healthy"), ("accuracy-gap", "robust-overfitting")

Row = dict[str, float]


@dataclass(frozen=True)
class Log:
    """One run: a row per epoch, and PGD-10 minus AutoAttack accuracy of its best checkpoint, where stated."""

    name: str
    rows: list[Row]
    gap_to_autoattack: float | None = None

    @property
    def pgd(self) -> list[float]:
        return [row["pgd"] for row in self.rows]

    @property
    def kind(self) -> str:
        """``collapsed``, ``faded``, ``overfit`` or ``healthy``."""
        gaps, pgd = [row["fgsm"] - row["pgd"] for row in self.rows if "fgsm" in row], self.pgd
        if gaps and max(gaps) >= GAP:
            return "collapsed"
        if max(pgd) > 0.12 and pgd[-1] < max(pgd) / 3:
            return "faded"
        means = [mean(pgd[end - WINDOW : end]) for end in range(WINDOW, len(pgd) + 1)]
        return "overfit" if means and max(means) - means[-1] >= FALL else "healthy"

    @property
    def onset(self) -> float:
        """Epoch of the first gap of 0.25 or more."""
        return next(row["epoch"] for row in self.rows if row["fgsm"] - row["pgd"] >= ONSET)

    def every(self, spacing: int) -> list[Row]:
        return self.rows[spacing - 1 :: spacing]

    def drawn(self, images: int, chance: np.random.Generator) -> list[Row]:
        """The log as ``images`` held-out images of each epoch might have given it.

        An image that PGD leaves right is right under FGSM too, where FGSM accuracy is the higher one.
        """
        drawn = []
        for row in self.rows:
            points = np.sort(chance.random(images))
            counts = {key: float(np.searchsorted(points, row[key])) / images for key in row if key != "epoch"}
            drawn.append({"epoch": row["epoch"], **counts})
        return drawn


def files(clone: Path, ending: str) -> Iterable[tuple[str, str]]:
    """Paths and texts of the files of a clone's last commit whose path ends so."""
    names = git(clone, "ls-tree", "-r", "--name-only", "HEAD").splitlines()
    for name in names:
        if name.endswith(ending):
            yield name, git(clone, "show", f"HEAD:{name}")


def read_fast(name: str, text: str, weights: str = "(?:Model - )?") -> Log:
    """Reads a log of the first benchmark; ``weights``: how lines of accuracies begin, a pattern."""
    rows = []
    for block in re.split(r"=+ Epoch ", text)[1:]:
        found = {
            key: re.search(rf"^{weights}{label} accuracy: ([\d.]+)", block, re.MULTILINE)
            for key, label in (("clean", "Validation"), ("fgsm", "FGSM"), ("pgd", "PGD"))
        }
        values = {key: float(match[1]) for key, match in found.items() if match}
        if len(values) == len(found):
            rows.append({"epoch": float(block.split()[0]), **values})
    final = [re.search(rf"{key}_acc: ([\d.]+)", text) for key in ("pgd_10", "autoattack")]
    masked = float(final[0][1]) - float(final[1][1]) if final[0] and final[1] else None
    return Log(name, rows, masked)


def read_robust(name: str, text: str) -> Log:
    """Reads a log of the second repository: the last column is PGD accuracy, the third last clean accuracy."""
    rows = []
    for line in text.splitlines():
        numbers = re.sub(r"^\[[^]]*\] - ", "", line).split()
        if len(numbers) >= 12 and all(re.fullmatch(r"-?[\d.]+", number) for number in numbers):
            rows.append({"epoch": float(numbers[0]), "clean": float(numbers[-3]), "pgd": float(numbers[-1])})
    # A log that was continued repeats epochs; the first run counts, up to the first break.
    whole = next(
        (place for place, (one, two) in enumerate(pairwise(rows), 1) if two["epoch"] <= one["epoch"]), None
    )
    return Log(name, rows[:whole])


def alarms(rows: list[Row], name: str, images: int | None = None) -> list[LogAlarm]:
    return [alarm for alarm in monitors.replay(rows, held_out_images=images) if alarm.name == name]


def measure(logs: list[Log]) -> dict[str, Any]:
    """Counts of logs of one source by what happened, of alarms in each, lags, and rates of logs drawn anew."""
    kinds = {kind: [log for log in logs if log.kind == kind] for kind in KINDS}
    result: dict[str, Any] = {}
    for kind, part in kinds.items():
        found = {name: sum(bool(alarms(log.rows, name)) for log in part) for name in ALARMS}
        result[kind] = {"runs": len(part), **found}
    result["lags"] = {str(spacing): lag for spacing in SPACINGS if (lag := _lag(kinds["collapsed"], spacing))}
    result["drawn"] = {
        str(images): {
            "accuracy-gap": _rate("accuracy-gap", kinds["healthy"] + kinds["overfit"], images),
            **{kind: _rate("robust-overfitting", kinds[kind], images) for kind in ("overfit", "healthy")},
        }
        for images in IMAGES
    }
    stated = [log.gap_to_autoattack for log in logs if log.gap_to_autoattack is not None]
    result["masked"] = {
        "runs": len(stated),
        "above": sum(value > MASKED for value in stated),
        "next": round(max((value for value in stated if value <= MASKED), default=0.0), 3),
    }
    return result


def _lag(collapsed: list[Log], spacing: int) -> dict[str, Any]:
    """Number of collapses heard with an evaluation every ``spacing`` epochs, and the lag; empty if none was heard."""
    heard = [(log, alarms(log.every(spacing), "accuracy-gap")) for log in collapsed]
    late = [found[0].epoch - log.onset for log, found in heard if found]
    return {"heard": len(late), "mean": round(mean(late), 2), "max": max(late)} if late else {}


def _rate(name: str, logs: list[Log], images: int) -> list[int]:
    """How many of the logs drawn anew have the alarm, and how many were drawn."""
    chance = np.random.default_rng(0)
    drawn = [log.drawn(images, chance) for log in logs for _ in range(DRAWS)]
    return [sum(bool(alarms(rows, name, images)) for rows in drawn), len(drawn)]


def page(content: dict[str, Any]) -> str:
    rows = content["rows"]
    text = f"# The alarms of evaluations on public logs\n\n`{content['command']}`\n\n{content['about']}\n\n"
    text += "Runs with the alarm / runs, by what happened.\n\n"
    text += "| logs | alarm | collapsed | faded | overfit | healthy |\n|---|---|---|---|---|---|\n"
    for source, found in rows.items():
        for name in ALARMS:
            cells = [f"{found[kind][name]}/{found[kind]['runs']}" for kind in KINDS]
            text += f"| {source} | `{name}` | {' | '.join(cells)} |\n"
    text += (
        "\nLag of `accuracy-gap` behind the first gap of 0.25, epochs, with an evaluation every n epochs.\n\n"
    )
    text += (
        "| logs | " + " | ".join(f"every {n}" for n in SPACINGS) + " |\n|---|" + "---|" * len(SPACINGS) + "\n"
    )
    for source, found in rows.items():
        if found["lags"]:
            cells = [
                f"{lag['mean']} (at most {lag['max']:g}; {lag['heard']} heard)" if lag else "-"
                for lag in (found["lags"].get(str(n)) for n in SPACINGS)
            ]
            text += f"| {source} | {' | '.join(cells)} |\n"
    text += (
        "\nThe logs of healthy and overfit runs as n held-out images of each epoch, other ones every time, might have "
        f"given them, {DRAWS} times each: number with the alarm.\n\n"
        "| logs | images | `accuracy-gap`, neither collapsed nor faded | `robust-overfitting`, overfit | the same, "
        "healthy |\n|---|---|---|---|---|\n"
    )
    for source, found in rows.items():
        for images, drawn in found["drawn"].items():
            cells = [f"{one}/{of}" for one, of in drawn.values()]
            text += f"| {source} | {images} | {' | '.join(cells)} |\n"
    text += f"\nPGD-10 minus AutoAttack accuracy of the best checkpoint above {MASKED}: "
    masked = {source: found["masked"] for source, found in rows.items() if found["masked"]["runs"]}
    text += "; ".join(
        f"{counts['above']} of {counts['runs']} ({source}; the next largest is {counts['next']})"
        for source, counts in masked.items()
    )
    return text + ".\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fast", type=Path, help="clone of fzjcdt/FastAT_Benchmark")
    parser.add_argument("--robust", type=Path, help="clone of locuslab/robust_overfitting")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    sources: dict[str, list[Log]] = {}
    if given.fast:
        texts = list(files(given.fast, "output.log"))
        sources["FastAT, weights"] = [read_fast(*each) for each in texts]
        averages = (read_fast(*each, weights="WA Model - ") for each in texts)
        # AutoAttack is stated once per run.
        sources["FastAT, their average"] = [replace(log, gap_to_autoattack=None) for log in averages]
    if given.robust:
        sources["robust overfitting"] = [read_robust(*each) for each in files(given.robust, ".log")]
    if not sources:
        parser.error("give --fast, --robust or both")
    rows = {name: measure([log for log in logs if len(log.rows) > WINDOW]) for name, logs in sources.items()}
    write(given.results, "python benchmarks/public_logs.py --fast PATH --robust PATH", rows, page)
    print(given.results.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
