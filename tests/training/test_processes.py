"""Two processes on one machine: the weights of one process up to rounding, one record, one end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from tests.training.support import TWO_PROCESSES, ScriptProcess, finished_weights, tiny, wait_until

from trilemma.config.config import Config
from trilemma.config.recipe import dump_config
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.checkpoint import load_state
from trilemma.training.train import train


def two_processes(
    folder: Path,
    run: Path,
    *overrides: str,
    config: Config | None = None,
    before: str = "",
    end_at_first_line: bool = False,
) -> tuple[int, list[str], str]:
    """Exit code of a run in two processes (of one thread each) started by Fabric, the sum of the weights in each that
    finished, and what they complained of.

    Each of them executes ``before`` first.
    """
    if config is None:
        # nothing averages over the batch in the forward, so a half batch each is the same mathematics
        network = {"name": "small-resnet", "width": 8, "norm": "group"}
        # large batches: in small ones rounding grows faster
        config = tiny("standard", {"batch_size": 128}, data={"name": "digits"}, network=network)
    (folder / "two.yaml").write_text(dump_config(config))
    (folder / "script.py").write_text(before + TWO_PROCESSES)
    process = ScriptProcess(folder / "script.py", folder / "two.yaml", run, *overrides)
    try:
        if end_at_first_line:
            wait_until(RunDirectory(run).metrics_file.is_file, process)
            process.send_signal(signal.SIGTERM)
        code, _, complained = process.finish(120)
    except BaseException:
        process.send_signal(signal.SIGKILL)
        raise
    if "Operation not permitted" in complained or "Address family not supported" in complained:
        pytest.skip("processes of this machine may not talk to each other over the loopback device")
    return code, finished_weights(run), complained


@pytest.mark.parametrize("update", ["plain", "awp"])
def test_two_processes_reach_the_weights_of_one(tmp_path: Path, update: str) -> None:
    overrides = [f"update.name={update}"]
    code, weights, complained = two_processes(tmp_path, tmp_path / "two", *overrides)
    assert code == 0, complained[-3000:]
    two = RunDirectory.open(tmp_path / "two")
    one = RunDirectory.open(
        train(str(tmp_path / "two.yaml"), overrides, out=tmp_path / "one", progress=False).path
    )

    states = [load_state(run.state_file) for run in (one, two)]
    for name, weight in states[0]["weights"].items():
        torch.testing.assert_close(states[1]["weights"][name], weight, rtol=1e-3, atol=1e-4)
    assert len(weights) == 2 and len(set(weights)) == 1  # both processes hold the same finished classifier

    rows = [[row for row in run.metrics() if row["kind"] == "step"] for run in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for alone, shared in zip(*rows, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        assert shared["energy_clean"] == pytest.approx(alone["energy_clean"], rel=1e-3)
    assert two.status()["status"] == "finished" and all(e["name"] == "at-chance" for e in two.events())
    assert complained.count("100%") <= 1  # one process reports


def test_a_signal_to_the_first_process_ends_both_with_the_state_saved(tmp_path: Path) -> None:
    code, _, complained = two_processes(
        tmp_path, tmp_path / "run", "training.epochs=1000", end_at_first_line=True
    )
    assert code != 0 and "KeyboardInterrupt" in complained, complained[-3000:]
    run = RunDirectory.open(tmp_path / "run")
    assert run.status()["status"] == "interrupted"
    assert load_state(run.state_file)["position"]["step"] == run.status()["step"]


COLLAPSE = """
import trilemma.training.loop as loop
from trilemma.training.selection import HeldOut

running = []


def evaluating(self, evaluate=loop.Loop._evaluate):
    running[:] = [self]
    return evaluate(self)


def held_out(clf, images, count, single_step):
    (current,) = running
    healthy = current.state.epoch <= 2 or current.config.attack.steps == 2
    # each process measures a little else
    return HeldOut(0.9, (0.5 if healthy else 0.05) + 0.01 * current.fabric.global_rank, 0.6, 0.1, 5000, 10)


loop.Loop._evaluate, loop.held_out_accuracies = evaluating, held_out
"""


def test_two_processes_roll_back_to_the_same_healthy_state(tmp_path: Path) -> None:
    config = tiny(
        "fgsm", {"batch_size": 100, "epochs": 5, "ema": 0.9}, network={"name": "small-resnet", "width": 4},
        monitors={"remedies": {"accuracy-gap": [["rollback", "pgd-2"]]}},
    )  # fmt: skip
    code, weights, complained = two_processes(tmp_path, tmp_path / "run", config=config, before=COLLAPSE)
    assert code == 0, complained[-3000:]
    run = RunDirectory.open(tmp_path / "run")
    (rollback,) = [event for event in run.events() if event["name"] == "rollback"]
    assert rollback["message"] == "from step 9 to the checkpoint of step 6, the last healthy evaluation"
    assert len(weights) == 2 and len(set(weights)) == 1
    rows = [row for row in run.metrics() if row["kind"] == "epoch"]
    # the monitors read the mean of both, the selection of the first process its own
    assert [row["held_out_pgd10"] for row in rows] == [0.5] * 5
    assert [row["held_out_raw_pgd10"] for row in rows] == pytest.approx([0.505] * 5)
