"""A training step on an accelerator never makes the host wait for it.

The stand-in for the accelerator is the device ``meta``, whose tensors have no values: reading one (``item``, ``bool``,
``tolist``, ``nonzero``, a copy to the CPU) raises an exception, as there is no value to wait for. A copy from the CPU
that waits, and a mask as an index of several values, are found by looking at every operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tests.training.support import tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trilemma.config.config import Config
from trilemma.config.registry import METHODS
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.build import build_data
from trilemma.training.interrupt import StopRequest
from trilemma.training.loop import Loop
from trilemma.training.progress import reporter
from trilemma.training.record import Record

META = torch.device("meta")


class WaitingError(Exception):
    """The host would wait for the accelerator."""


class NoWaiting(TorchDispatchMode):
    """Raises :class:`WaitingError` where the host would wait, although the device ``meta`` has an answer."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        if name == "aten::_to_copy" and args[0].device.type == "cpu":
            self._check_copy(kwargs.get("device"), kwargs.get("non_blocking"), name)
        elif name == "aten::copy_" and args[1].device.type == "cpu":
            self._check_copy(args[0].device, args[2] if len(args) > 2 else False, name)
        elif name in ("aten::index", "aten::index_put_", "aten::_index_put_impl_") and args[0].device == META:
            indices = [index for index in args[1] if index is not None]
            # A mask and one value are a masked_fill, which does not wait.
            filled = name != "aten::index" and args[2].numel() == 1
            if any(index.dtype == torch.bool for index in indices) and not filled:
                raise WaitingError(f"{name} with a mask")
            if any(index.device.type == "cpu" for index in indices):
                raise WaitingError(f"{name} with indices on the CPU")
        return function(*args, **kwargs)

    @staticmethod
    def _check_copy(device: Any, non_blocking: Any, name: str) -> None:
        if device is not None and torch.device(device) == META and not non_blocking:
            raise WaitingError(f"{name} from the CPU that waits")


def loop_of(config: Config, folder: Path) -> Loop:
    """A run on the stand-in, before its first step."""
    run = RunDirectory.create(folder / "run", config)
    fabric = cast(Any, SimpleNamespace(device=META, autocast=nullcontext))
    record = Record(run, config, reporter("run", False), "run", True)
    return Loop(config, record, build_data(config), fabric, StopRequest())


def take_steps(loop: Loop, count: int = 2) -> None:
    batches: Iterator[Any] = loop._batches()
    with NoWaiting():
        for _ in range(count):
            loop._one_step(next(batches))


def config_of(method: str, **sections: Any) -> Config:
    options = METHODS.options(method)
    if options.uses_sampler:
        sections["sampler"] = (
            {"steps": 2} if method == "dat" else {"steps": 2, "buffer_size": 20, "reinit": 0.5}
        )
    if options.uses_attack and options.inner_attack:
        sections["attack"] = {"steps": 1 if options.single_step else 2}
    return tiny(method, {"ema": 0.9, "input_noise": 0.01}, **sections)


@pytest.mark.parametrize("method", METHODS.names())
def test_no_step_of_a_method_waits(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if method == "dat":
        # The one exception: the AUC of a step decides, on the CPU, how long the next walk is.
        monkeypatch.setattr("trilemma.methods.dat.area_under_curve", lambda *scores: torch.tensor(0.9))
    take_steps(loop_of(config_of(method), tmp_path))


@pytest.mark.parametrize(
    "sections",
    [
        {"augmentation": {"crop": 1, "flip": True, "policy": "autoaugment", "cutout": 2}},
        {"update": {"name": "sam"}, "optimiser": {"name": "adam"}},
        {
            "update": {"name": "awp"},
            "regulariser": {"name": "der"},
            "threat": {"norm": "l2", "radius": "0.5"},
        },
    ],
)
def test_augmentation_updates_and_regulariser_do_not_wait(sections: dict[str, Any], tmp_path: Path) -> None:
    take_steps(loop_of(config_of("pgd-at", **sections), tmp_path))


def test_the_stand_in_notices_what_waits() -> None:
    values, mask = torch.zeros(4, device=META), torch.zeros(4, dtype=torch.bool, device=META)
    with NoWaiting():
        with pytest.raises(WaitingError, match="that waits"):
            torch.zeros(4).to(META)
        with pytest.raises(WaitingError, match="that waits"):
            values.copy_(torch.zeros(4))
        with pytest.raises(WaitingError, match="with a mask"):
            values[mask] = torch.zeros(4, device=META)
        with pytest.raises(WaitingError, match="on the CPU"):
            values[torch.tensor([0, 1])] = 1.0
        for reading in (values.sum().item, values.tolist, values.cpu, lambda: bool(mask.any()), mask.nonzero):
            with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|Meta"):
                reading()
        # These do not.
        values[mask] = 0.0
        values += torch.zeros(4).to(META, non_blocking=True)


def test_readings_wait_once_per_log_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_of(config_of("pgd-at"), tmp_path)
    take_steps(loop, 5)
    reads = []
    tolist = Tensor.tolist

    def reading(values: Tensor) -> Any:
        reads.append(values.device)
        return tolist(torch.zeros(values.shape))

    monkeypatch.setattr(Tensor, "tolist", reading)
    assert len(loop.readings.drain(loop.share.mean)) == 5
    assert reads == [META]
