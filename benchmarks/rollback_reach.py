"""Where the first rollback for `accuracy-gap` goes, on the curves of public training runs that have collapsed.

    OMP_NUM_THREADS=1 python benchmarks/rollback_reach.py PATH

PATH is a clone (or git directory) of https://github.com/fzjcdt/FastAT_Benchmark, whose logs have FGSM and PGD-10
accuracy after every epoch, of the weights and of their average. The training loop runs with its own monitors, stored
states and rollbacks; its steps do nothing, and its held-out accuracies are those of the log. An epoch has four steps
and a window one, so that four windows are about an epoch, as 400 steps are of CIFAR-10.

- before the onset: the restored epoch lies before the first gap of 0.25 between FGSM and PGD accuracy of the weights;
- share of the peak: PGD accuracy of the restored weights by the highest one until the alarm;
- lag: epochs from the onset to the alarm.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from trilemma.errors import CheckpointError
from trilemma.monitors import watch
from trilemma.training import loop
from trilemma.training.loop import Loop
from trilemma.training.record import Record
from trilemma.training.rollback import roll_back
from trilemma.training.selection import HeldOut
from trilemma.training.train import train

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.public_logs import Log, files, read_fast
from benchmarks.result_page import write

RESULTS = Path(__file__).parent / "results" / "rollback-reach.json"
SPACINGS = (1, 5, 10)
STEPS_PER_EPOCH = 4
# Accuracy of one class for all images, by the folder of a log.
CHANCE = {"cifar10": 0.1, "cifar100": 0.01, "tiny-imagenet": 0.005}


class RolledBack(BaseException):
    """The first rollback is done."""


class Replay:
    """One run whose accuracies are those of a log: ``weights`` are read by the monitors, ``average`` is selected."""

    def __init__(self, weights: Log, average: Log) -> None:
        self.weights, self.average = weights, average
        self.chance = CHANCE[weights.name.split("/")[1]]
        self.alarm = self.restored = -1.0
        self.calls = 0

    def run(self, every: int, averaged: bool) -> None:
        """Trains until the first rollback; without one, ``alarm`` and ``restored`` remain negative."""
        settings = {
            "network": {"name": "shallow-cnn", "filters": 1}, "data.train_images": 100, "training.batch_size": 25,
            "training.epochs": len(self.weights.rows), "training.evaluate_every": every,
            "training.ema": 0.99 if averaged else None, "training.log_every": 1000,
            "training.checkpoint_minutes": 1000, "monitors.remedies": {"accuracy-gap": [["rollback", "pgd-2"]]},
        }  # fmt: skip
        # A run without a rollback ends without the classifiers that are not written here.
        with tempfile.TemporaryDirectory() as folder, self._patches(), suppress(RolledBack, CheckpointError):
            train("digits/fgsm", settings, out=Path(folder) / "run", progress=False)

    @contextmanager
    def _patches(self) -> Iterator[None]:
        evaluate = Loop._evaluate

        def evaluating(current: Loop) -> bool:
            self.loop, self.calls = current, 0
            return evaluate(current)

        with (
            mock.patch.object(watch, "WINDOW", 1),
            mock.patch.object(Loop, "_one_step", _skip),
            mock.patch.object(Loop, "_evaluate", evaluating),
            mock.patch.object(Record, "classifier"),
            mock.patch.object(loop, "held_out_accuracies", self._accuracies),
            mock.patch.object(loop, "roll_back", self._roll_back),
        ):
            yield

    def _accuracies(self, *arguments: Any, **options: Any) -> HeldOut:
        # The finished classifier is evaluated first, and the weights beside it if it is an average.
        self.calls += 1
        averaged = self.loop.state.ema is not None and self.calls == 1
        row = (self.average if averaged else self.weights).rows[round(self.loop.state.epoch) - 1]
        return HeldOut(row["clean"], row["pgd"], row["fgsm"], self.chance, 10_000, 10)

    def _roll_back(self, state: Any, record: Record, alarm: Any) -> None:
        self.alarm = alarm.step / STEPS_PER_EPOCH
        roll_back(state, record, alarm)
        self.restored = state.step / STEPS_PER_EPOCH
        raise RolledBack

    @property
    def onset(self) -> int:
        """Number of epochs at the first gap of 0.25."""
        epochs = [row["epoch"] for row in self.weights.rows]
        return epochs.index(self.weights.onset) + 1

    @property
    def share(self) -> float | None:
        """PGD accuracy of the restored weights as a share of the peak; ``None`` for the start of a run."""
        peak = max(self.weights.pgd[: round(self.alarm)])
        return self.weights.pgd[round(self.restored) - 1] / peak if self.restored else None


def _skip(current: Loop, batch: Any) -> None:
    """A training step that changes nothing; the monitors of evaluations need a level of dE(x)."""
    current.state.step += 1
    current.state.watch.overfitting.fast["delta_marginal"] = 0.0


def measure(logs: list[tuple[Log, Log]], every: int, averaged: bool) -> dict[str, Any]:
    runs = [Replay(*log) for log in logs]
    for run in runs:
        run.run(every, averaged)
    back = [run for run in runs if run.alarm >= 0]
    shares = [share for run in back if (share := run.share) is not None]
    return {
        "runs": len(runs), "alarms": len(back), "before_onset": sum(run.restored < run.onset for run in back),
        "start": sum(run.restored == 0 for run in back), "under_half": sum(share < 0.5 for share in shares),
        "median_share": round(median(shares), 3), "least_share": round(min(shares), 3),
        "median_lag": median(run.alarm - run.onset for run in back),
    }  # fmt: skip


def page(content: dict[str, Any]) -> str:
    text = f"# Where rollbacks go on public curves\n\n`{content['command']}`\n\n{content['about']}\n\n"
    text += (
        "Runs of https://github.com/fzjcdt/FastAT_Benchmark that collapse, with `accuracy-gap: [[rollback, pgd-2]]`. "
        "Onset: the first gap of 0.25. Share: PGD accuracy of the restored weights by the peak until the alarm.\n\n"
        "| evaluated every | `training.ema` | alarms / runs | median lag, epochs | restored before the onset | "
        "restored weights under half of the peak | median and least share |\n|---|---|---|---|---|---|---|\n"
    )
    for name, row in content["rows"].items():
        every, average = name.split(", ")
        text += (
            f"| {every} | {average} | {row['alarms']}/{row['runs']} | {row['median_lag']:g} | "
            f"{row['before_onset']}/{row['alarms']} | {row['under_half']}/{row['alarms']} | "
            f"{row['median_share']}, {row['least_share']} |\n"
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("clone", type=Path, help="clone of fzjcdt/FastAT_Benchmark")
    given = parser.parse_args()
    texts = list(files(given.clone, "output.log"))
    pairs = [(read_fast(*each), read_fast(*each, weights="WA Model - ")) for each in texts]
    logs = [pair for pair in pairs if len(pair[0].rows) > 10 and pair[0].kind == "collapsed"]
    for every in SPACINGS:
        for averaged in (False, True):
            row = {
                f"{every}, {'an average' if averaged else 'null'}": measure(logs, every, averaged),
            }
            write(RESULTS, "python benchmarks/rollback_reach.py PATH", row, page)
            print(row, flush=True)


if __name__ == "__main__":
    main()
