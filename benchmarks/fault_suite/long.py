"""Part ``long``: thousands of training steps; memory, open files and threads must stay as they are."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fault_suite.case import Case, Ended
from benchmarks.fault_suite.files import nothing

STEPS, SHORT_STEPS = 10_000, 60
# Growth of memory between a tenth of the steps and the end, beside what an allocator keeps.
_MEGABYTES = 20.0
_STEPS_PER_EPOCH = 9
_SEEN = "seen.jsonl"


def _census(step: int) -> dict[str, Any]:
    """Memory in MB, open files and threads of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "step": step,
        "megabytes": int(status["VmRSS"].split()[0]) / 2**10,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "seconds": resource.getrusage(resource.RUSAGE_SELF).ru_utime,
    }


def _train(steps: int) -> None:
    from trilemma.training.train import train

    every = max(1, steps // 100)

    def log(record: dict[str, Any], step: int) -> None:
        if record.get("kind") == "step" and step % every == 0:
            with open(_SEEN, "a") as file:
                file.write(json.dumps(_census(step)) + "\n")

    # A small network with short chains, so that the steps of a day take minutes.
    settings = (
        "network.width=4", f"training.epochs={-(-steps // _STEPS_PER_EPOCH)}", f"training.log_every={every}",
        "training.held_out_images=20", "training.evaluate_every=100", "training.checkpoint_minutes=0.05",
        "sampler.steps=2", "sampler.buffer_size=200", "attack.steps=1", "training.batch_size=128",
    )  # fmt: skip
    train("digits/eb-jdat", settings, out="run", progress=False, log=log)


def _flat(ended: Ended) -> str:
    seen = [json.loads(line) for line in (ended.folder / _SEEN).read_text().splitlines()]
    print(f"long: {seen[len(seen) // 10]} to {seen[-1]}", file=sys.stderr)
    return flat(seen)


def flat(seen: list[dict[str, Any]]) -> str:
    """What has grown from a tenth of the way to its end; empty if nothing has."""
    first, last = seen[len(seen) // 10], seen[-1]
    grown = last["megabytes"] - first["megabytes"]
    if grown > _MEGABYTES:
        return f"memory has grown by {grown:.0f} MB from step {first['step']} to {last['step']}"
    for name in ("files", "threads"):
        if last[name] > first[name]:
            return f"{last[name]} {name} at step {last['step']}, {first[name]} at step {first['step']}"
    return ""


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """One case, of :data:`STEPS` steps; of the short form :data:`SHORT_STEPS`."""
    steps = SHORT_STEPS if short else STEPS
    yield Case(f"{steps} steps of eb-jdat", nothing, lambda: _train(steps), _flat, refusals=(), timeout=1e5)
