"""A cache of its own, and signals at chosen steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from trilemma.config.registry import NETWORKS
from trilemma.training.loop import Loop

Interrupt = Callable[[int], None]


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data go into a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILEMMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are so small that threads, on a busy machine, spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def linear_network(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The section ``network`` of a linear classifier, which the registry knows during the test."""
    monkeypatch.setattr(NETWORKS, "_rows", dict(NETWORKS._rows))
    support = "tests.training.support"
    NETWORKS.add("linear", f"{support}:Linear", options=f"{support}:LinearOptions")
    return {"name": "linear"}


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """``interrupt_after(k)``: a signal arrives during step k (counted from 1) of the next run; 0 for never."""
    one_step = Loop._one_step

    def arm(step: int) -> None:
        def stepping(loop: Loop, batch: Any) -> None:
            one_step(loop, batch)
            if loop.state.step == step:
                loop.stop.name = "SIGTERM"

        monkeypatch.setattr(Loop, "_one_step", stepping if step else one_step)

    return arm
