"""TensorBoard: through a stand-in, since the extra need not be installed, and with the package where it is."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from trilemma.training.tensorboard import tensorboard

STEP = {"kind": "step", "step": 7, "loss": 1.5, "energy_generated": None, "terms": {"natural": 0.5}}
ALARM = {"kind": "alarm", "name": "divergence", "message": "loss not finite", "step": 7, "epoch": 1.0}
IMAGES = {"kind": "images", "step": 7, "epoch": 1.0, "clean": torch.rand(3, 1, 4, 5)}


def test_the_numbers_of_a_line_become_scalars_at_its_step(monkeypatch, tmp_path) -> None:
    written: list[tuple[str, float, int]] = []
    writer = SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar), flush=lambda: None)
    stand_in = SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    log = tensorboard(tmp_path)
    assert log is not None
    log(STEP, 7)
    assert written == [("loss", 1.5, 7), ("terms/natural", 0.5, 7)]


def test_without_tensorboard_nothing_happens(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # makes importing it fail
    assert tensorboard(tmp_path / "events") is None
    with pytest.raises(StopIteration):
        next(tmp_path.iterdir())


@pytest.mark.filterwarnings("default")
def test_event_files_hold_scalars_images_and_alarms(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = tensorboard(tmp_path)
    assert log is not None
    for record in (STEP, ALARM, IMAGES):
        log(record, 7)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(7, 1.5)]
    (image,) = events.Images("images/clean")
    assert (image.step, image.height, image.width) == (7, 4, 15)
    (text,) = events.Tensors("alarm: divergence/text_summary")
    assert text.tensor_proto.string_val == [b"loss not finite"]
