"""Runs small enough for tests: digits, a residual network of width 4, one to three epochs of a few steps."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from trilemma import workers
from trilemma.config.config import Config
from trilemma.config.recipe import build_config
from trilemma.config.section import Section
from trilemma.training.checkpoint import load_state

# 300 training images in batches of 32
STEPS_PER_EPOCH = 9
TREE: dict[str, Any] = {
    "data": {"name": "digits", "train_images": 300},
    "network": {"name": "small-resnet", "width": 4, "depth": 8},
    "threat": {"norm": "linf", "radius": "0.2"},
    "schedule": {"name": "one-cycle"},
    "training": {"epochs": 2, "batch_size": 32, "lr": 0.05, "log_every": 5, "held_out_images": 50},
}
SMALL_CHAIN = {"steps": 2, "buffer_size": 200}


class LinearOptions(Section):
    name: Literal["linear"] = "linear"


class Linear(nn.Sequential):
    """A linear classifier of the digits, for tests of the loop: it costs a tenth of the smallest residual network."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(in_channels * 8 * 8, num_classes))


def tiny(method: str, training: dict[str, Any] | None = None, **sections: Any) -> Config:
    """A short run of ``method`` on the digits; keywords replace sections, ``training`` single keys."""
    tree = {**TREE, "method": {"name": method}, **sections}
    return build_config({**tree, "training": {**TREE["training"], **(training or {})}})


def state_of(run: Path) -> dict[str, Any]:
    """The raw state without its clock."""
    state = load_state(run / "checkpoints" / "last" / "state.safetensors")
    del state["position"]["minutes"]
    return state


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two nested states are not the same bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [found for i in range(len(a)) for found in differences(a[i], b[i], f"{where}/{i}")]
    return [] if type(a) is type(b) and a == b else [f"{where}: {a} != {b}"]


def without_clock(row: dict[str, Any]) -> dict[str, Any]:
    """A metric line without what depends on the speed of the machine."""
    return {name: value for name, value in row.items() if name not in ("minutes", "images_per_second")}


# A server that has imported what a training run needs, and forks: a fresh interpreter would spend seconds on it.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(workers._PRELOADED)
_BEGINNING = """
import os, sys
os.dup2(alive.fileno(), 0)
alive.close()
for number, file in ((1, {out!r}), (2, {err!r})):
    os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
os.environ.update({environment!r})
sys.argv[:] = {argv!r}
import torch
torch.set_num_threads({threads})
"""


class ScriptProcess:
    """A real process that runs ``script`` with this process's number of threads; its output goes to files beside it."""

    def __init__(self, script: Path, *arguments: object) -> None:
        self._out, self._err = script.with_suffix(".out"), script.with_suffix(".err")
        threads = torch.get_num_threads()
        beginning = _BEGINNING.format(
            out=str(self._out),
            err=str(self._err),
            environment={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"},
            argv=[str(script), *map(str, arguments)],
            threads=threads,
        )
        program = beginning + script.read_text(encoding="utf-8")
        # The write end becomes standard input, which further processes inherit: the read end sees the last one's end.
        self._ended, alive = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=exec, args=(program, {"__name__": "__main__", "alive": alive}))
        self._process.start()
        alive.close()

    @property
    def returncode(self) -> int | None:
        """The exit code, ``-n`` where signal n ended the process, or ``None`` while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def finish(self, seconds: float = 60) -> tuple[int, str, str]:
        """Waits for it and the processes it started; exit code, standard output and error. Kills what does not end."""
        if not self._ended.poll(seconds):
            self._process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.error()[-2000:]}")
        self._process.join()
        assert self.returncode is not None
        return self.returncode, self._out.read_text(encoding="utf-8"), self.error()

    def error(self) -> str:
        return self._err.read_text(encoding="utf-8")


def wait_until(condition: Callable[[], bool], process: ScriptProcess, seconds: float = 60) -> None:
    """Waits for ``condition``; fails with the process's standard error if it ends before."""
    end = time.monotonic() + seconds
    while not condition():
        if process.returncode is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.error()[-2000:]}")
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.02)


# Recipe, run folder and overrides follow. Each process writes a file: on a common pipe their lines could mix.
TWO_PROCESSES = """
import os, sys
from pathlib import Path
from trilemma.training.train import train
run = train(sys.argv[1], ["devices=2", *sys.argv[3:]], out=sys.argv[2], device="cpu")
weights = sum(float(p.double().sum()) for p in run.classifier.parameters())
Path(f"{sys.argv[2]}-{os.getpid()}.weights").write_text(repr(weights))
"""


def skip_without_loopback(complained: str) -> None:
    """Skips the test if the processes of a run could not reach each other."""
    if "Operation not permitted" in complained or "Address family not supported" in complained:
        pytest.skip("processes of this machine may not talk to each other over the loopback device")


def finished_weights(run: Path) -> list[str]:
    """The sum of the weights in each process of ``TWO_PROCESSES`` that finished."""
    return [file.read_text() for file in run.parent.glob(f"{run.name}-*.weights")]
