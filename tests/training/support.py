"""Runs small enough for tests: digits, a residual net of width 8, one to three epochs of a few steps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.config.config import Config
from trilemma.config.recipe import build_config
from trilemma.training.checkpoint import load_state

STEPS_PER_EPOCH = 9  # 1,200 training images in batches of 128
TREE: dict[str, Any] = {
    "data": {"name": "digits"},
    "network": {"name": "small-resnet", "width": 8, "depth": 8},
    "threat": {"norm": "linf", "radius": "0.2"},
    "schedule": {"name": "one-cycle"},
    "training": {"epochs": 2, "lr": 0.05, "log_every": 5, "held_out_images": 50},
}
SMALL_CHAIN = {"steps": 2, "buffer_size": 200}


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


def python(script: Path, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A real process that runs ``script`` with this process's number of threads."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, **threads, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Waits for ``condition``; fails with the process's own words if it ends before."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()[1][-2000:]}")
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.02)
