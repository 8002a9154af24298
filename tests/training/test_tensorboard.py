"""TensorBoard through a stand-in: the extra is not needed to test what it is told."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from trilemma.training.tensorboard import TensorBoard


def test_the_numbers_of_a_line_become_scalars_at_its_step(monkeypatch, tmp_path) -> None:
    written: list[tuple[str, float, int]] = []
    writer = SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar), flush=lambda: None)
    stand_in = SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    row = {"kind": "step", "step": 7, "loss": 1.5, "energy_generated": None, "terms": {"natural": 0.5}}
    TensorBoard(tmp_path).add(row)
    assert written == [("loss", 1.5, 7), ("terms/natural", 0.5, 7)]


def test_without_tensorboard_nothing_happens(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # makes importing it fail
    TensorBoard(tmp_path / "events").add({"kind": "step", "step": 1, "loss": 0.0})
    with pytest.raises(StopIteration):
        next(tmp_path.iterdir())
