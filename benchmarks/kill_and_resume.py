"""`kill -9` at random moments and resume: is the end the one of the run that nobody touched?

    OMP_NUM_THREADS=1 python benchmarks/kill_and_resume.py --kills 5

Trains a short `digits/eb-jdat` (EMA, replay buffer, class-informed starts, a checkpoint about every second) once in
peace and once killed at random moments, each in processes of their own, and compares the final raw states (weights,
optimiser, average, buffer, generators) and best classifiers bit for bit. Prints JSON with the step last logged
before each kill and the step it was resumed from; leaves with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from trilemma import __version__
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.checkpoint import load_state
from trilemma.training.train import train

SETTINGS = {"training.checkpoint_minutes": 0.02, "training.evaluate_every": 10, "sampler.buffer_size": 2000}


def start(path: Path, epochs: int) -> subprocess.Popen[bytes]:
    """A process that trains in ``path``, going on with what it finds there."""
    return subprocess.Popen([sys.executable, __file__, "--in", str(path), "--epochs", str(epochs)])


def work(path: Path, epochs: int) -> None:
    settings = {**SETTINGS, "training.epochs": epochs}
    train(
        "digits/eb-jdat", settings, out=path, resume=RunDirectory(path).config_file.is_file(), progress=False
    )


def last_line(run: RunDirectory) -> int:
    """The step of the last metric line."""
    return max((row["step"] for row in run.metrics()), default=0)


def kill_once(run: RunDirectory, epochs: int, wait: float) -> dict[str, Any]:
    """Starts or resumes, waits for a new metric line and ``wait`` seconds more, and kills."""
    before = last_line(run)
    process = start(run.path, epochs)
    while last_line(run) <= before and process.poll() is None:
        time.sleep(0.02)
    time.sleep(wait)
    process.kill()
    ended = process.wait()
    saved = load_state(run.state_file)["position"]["step"]
    return {"killed": ended == -9, "logged_step": last_line(run), "resumed_from_step": saved}


def tensors(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def same(a: Path, b: Path) -> bool:
    """Whether two safetensors files hold the same tensors bit for bit."""
    ours, theirs = tensors(a), tensors(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def measure(kills: int, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
    peace, war = RunDirectory(folder / "peace"), RunDirectory(folder / "war")
    begin = time.perf_counter()
    start(peace.path, epochs).wait()
    seconds = time.perf_counter() - begin
    training_seconds = 60 * peace.status()["minutes"]
    moments = random.Random(seed)
    history = [kill_once(war, epochs, moments.uniform(0, training_seconds / kills)) for _ in range(kills)]
    start(war.path, epochs).wait()
    return {
        "uninterrupted_seconds": round(seconds, 1), "steps": peace.status()["step"], "kills": history,
        "same_final_state": same(peace.state_file, war.state_file),
        "same_best_classifier": same(peace.best_classifier, war.best_classifier),
        "same_metric_steps": [r["step"] for r in peace.metrics()] == [r["step"] for r in war.metrics()],
        "restarts_recorded": sum(event["kind"] == "restart" for event in war.events()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; from the clock by default")
    parser.add_argument("--in", dest="path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.path is not None:
        work(arguments.path, arguments.epochs)
        return
    seed = arguments.seed if arguments.seed is not None else time.time_ns() % 2**31
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.kills, arguments.epochs, seed, Path(folder))
    verdict = all(value for name, value in result.items() if name.startswith("same_"))
    versions = {"trilemma": __version__, "torch": torch.__version__, "python": platform.python_version()}
    about = {"threads": torch.get_num_threads(), "seed": seed, "versions": versions}
    json.dump({"verdict": "identical" if verdict else "different", **result, **about}, sys.stdout, indent=2)
    print()
    sys.exit(not verdict)


if __name__ == "__main__":
    main()
