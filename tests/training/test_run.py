"""The run that training returns: what it prints, its rows, and a second call with the same arguments."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.training.conftest import Interrupt
from tests.training.support import tiny

import trilemma
from trilemma.errors import ConfigError
from trilemma.training.run import Run
from trilemma.training.train import train


def test_a_second_call_resumes_or_returns_the_run(
    tmp_path: Path, linear_network: dict[str, str], interrupt_after: Interrupt
) -> None:
    config = tiny("standard", network=linear_network)
    out = tmp_path / "run"
    interrupt_after(3)
    with pytest.raises(KeyboardInterrupt):
        train(config, out=out, resume="auto", progress=False)
    interrupt_after(0)
    run = train(config, out=out, resume="auto", progress=False)
    assert run.metrics[-1]["epoch"] == 2
    state = (out / "checkpoints" / "last" / "state.safetensors").stat()
    again = train(config, out=out, resume="auto", progress=False)
    assert again.metrics == run.metrics
    assert (out / "checkpoints" / "last" / "state.safetensors").stat() == state

    other = tiny("standard", {"lr": 0.07}, network=linear_network)
    with pytest.raises(ConfigError, match="cannot resume with") as refused:
        train(other, out=out, resume="auto", progress=False)
    assert "0.07" in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="pass True, False, 'auto' or 'restart'"):
        train(config, out=out, resume="maybe", progress=False)  # type: ignore[arg-type]


def test_a_run_prints_one_screen(complete_run, tmp_path: Path) -> None:
    run = Run(
        Path(shutil.copytree(complete_run.path, tmp_path / "<run>")),
        trilemma.load(complete_run.path),
        [{}] * 1000,
    )
    text, html = repr(run), run._repr_html_()
    assert "finished, 4 epochs, 0.4 min" in text
    assert "held-out accuracy (epoch 4): clean 60.0 %, PGD-10 30.0 %" in text
    assert "alarms: divergence" in text
    assert set(run.rows) >= {"clean", "pgd-20"} and "pgd-20" in text
    assert len(text.splitlines()) < 20 and max(map(len, text.splitlines())) < 160
    assert "&lt;run&gt;" in html and "<run>" not in html and "<td>pgd-20</td>" in html
    shutil.rmtree(run.path)
    assert repr(run) == f"Run {run.path}: no such folder"
