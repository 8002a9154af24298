"""Two processes on one machine: the weights of one process up to rounding, one record, one end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from tests.training.support import (
    TWO_PROCESSES,
    ScriptProcess,
    differences,
    finished_weights,
    skip_without_loopback,
    state_of,
    tiny,
    wait_until,
)

from trilemma.config.config import Config
from trilemma.config.recipe import dump_config
from trilemma.errors import ConfigError
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.checkpoint import load_state
from trilemma.training.train import train

# new interpreters import for seconds, on a busy machine for minutes
pytestmark = pytest.mark.timeout(900)


def two_processes(folder: Path, run: Path, config: Config, before: str) -> tuple[int, list[str], str]:
    """Exit code of a run in two processes (of one thread each), the sum of the weights in each that finished, and what
    they complained of. Each of them executes ``before`` first.
    """
    (folder / "two.yaml").write_text(dump_config(config))
    (folder / "script.py").write_text(before + TWO_PROCESSES)
    code, _, complained = ScriptProcess(folder / "script.py", folder / "two.yaml", run).finish(120)
    skip_without_loopback(complained)
    return code, finished_weights(run), complained


GROUP_NORM = {"name": "small-resnet", "width": 4, "depth": 8, "norm": "group"}
BATCH_NORM = {**GROUP_NORM, "norm": "batch"}
CHAINS = {"steps": 2, "buffer_size": 50, "reinit": 0.2}
# nothing averages over the batch in the forward, so a half batch each is the same mathematics; large batches, since in
# small ones rounding grows faster; L2 steps, since a sign turns rounding into a whole step
COMMON: dict[str, Any] = {"network": GROUP_NORM, "threat": {"norm": "l2", "radius": "0.5"}}
SMALL = {"batch_size": 96, "epochs": 2, "log_every": 2, "evaluate_every": 2, "held_out_images": 20}
METHODS: dict[str, Config] = {
    "standard": tiny("standard", SMALL, **COMMON),
    "awp": tiny("standard", SMALL, update={"name": "awp"}, **COMMON),
    "pgd-at": tiny("pgd-at", SMALL, attack={"steps": 2}, **COMMON),
    "trades": tiny("trades", SMALL, attack={"steps": 2}, **COMMON),
    "eb-jdat": tiny("eb-jdat", SMALL, attack={"steps": 2}, sampler=CHAINS, **COMMON),
    "dat": tiny("dat", SMALL, attack={"steps": 2}, sampler={"steps": 2}, **COMMON),
}
# per-image state and running statistics, which are others in each process
FREE_AT = tiny("free-at", {**SMALL, "ema": 0.9}, network=BATCH_NORM)
RESUMED = ("eb-jdat", "free-at")
# the recipe, the run folder, the number of processes, overrides and whether to resume, of each run
RUNS = """
import json, sys
from pathlib import Path
from trilemma.training.train import train
for recipe, out, count, overrides, resume in json.loads(Path(sys.argv[1]).read_text()):
    train(recipe, [f"devices={count}", *overrides], out=out, resume=resume, device="cpu", progress=False)
"""
STOP = "training.max_minutes=1e-9"


def in_processes(folder: Path, count: int, runs: list[tuple[Path, list[str], bool]]) -> None:
    """Trains several runs (folder, overrides, resume), one after the other, in the same processes of this machine."""
    jobs = [
        (f"{run.with_suffix('.yaml')}", str(run), count, overrides, resume) for run, overrides, resume in runs
    ]
    (folder / f"{count}.json").write_text(json.dumps(jobs))
    (folder / f"runs-{count}.py").write_text(RUNS)
    code, _, complained = ScriptProcess(folder / f"runs-{count}.py", folder / f"{count}.json").finish(500)
    skip_without_loopback(complained)
    assert code == 0, complained[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shared_cache: None) -> Path:
    """Folders ``1/NAME`` and ``2/NAME`` with every run in one and in two processes, and resumed ones.

    ``1-2/eb-jdat`` was stopped early in one process and resumed in two, ``2-2/NAME`` was stopped and resumed in two,
    and ``2-1/eb-jdat`` was stopped in two.
    """
    folder = tmp_path_factory.mktemp("processes")
    places = ["1/", "2/", "1-2/", "2-2/", "2-1/", "2-3/"]
    for name, config in {**METHODS, "free-at": FREE_AT}.items():
        for place in places:
            (folder / place).mkdir(exist_ok=True)
            (folder / place / f"{name}.yaml").write_text(dump_config(config))
    for name in METHODS:
        train(str(folder / f"1/{name}.yaml"), out=folder / f"1/{name}", progress=False)
    train(str(folder / "1-2/eb-jdat.yaml"), [STOP], out=folder / "1-2/eb-jdat", progress=False)
    stopped = [*(folder / f"2-2/{name}" for name in RESUMED), folder / "2-1/eb-jdat"]
    in_processes(
        folder,
        2,
        [
            *((folder / f"2/{name}", [], False) for name in (*METHODS, "free-at")),
            *((run, [STOP], False) for run in stopped),
            *((folder / f"2-2/{name}", [], True) for name in RESUMED),
            (folder / "1-2/eb-jdat", [], True),
        ],
    )
    return folder


def state(run: Path) -> dict[str, Any]:
    return load_state(RunDirectory(run).state_file)


def assert_near(run: Path, reference: Path) -> None:
    """The weights, the replay buffer and the position of a run are those of another one, up to rounding."""
    given, wanted = state(run), state(reference)
    for name, weight in wanted["weights"].items():
        torch.testing.assert_close(given["weights"][name], weight, rtol=1e-3, atol=1e-4)
    assert given["position"]["step"] == wanted["position"]["step"]
    assert torch.equal(given["method"]["generator"], wanted["method"]["generator"])
    if wanted["method"]["buffer"] is not None:
        assert torch.equal(given["method"]["buffer"]["labels"], wanted["method"]["buffer"]["labels"])
        images = given["method"]["buffer"]["images"], wanted["method"]["buffer"]["images"]
        torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_reach_the_weights_of_one(runs: Path, name: str) -> None:
    one, two = runs / f"1/{name}", runs / f"2/{name}"
    assert_near(two, one)
    rows = [[row for row in RunDirectory(run).metrics() if row["kind"] == "step"] for run in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for alone, shared in zip(*rows, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    status = RunDirectory(two).status()
    assert status["status"] == "finished" and RunDirectory(two).best_classifier.is_file()


@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_resume_bit_for_bit(runs: Path, name: str) -> None:
    resumed = runs / f"2-2/{name}"
    events = [event["name"] for event in RunDirectory(resumed).events()]
    assert events.index("max-minutes") < events.index("resume")
    first, second = state_of(resumed), state_of(runs / f"2/{name}")
    for one in (first, second):
        # a run that stops is evaluated, one evaluation more for the monitors and the selection
        del one["watch"], one["position"]["best"], one["position"]["best_step"]
    assert not differences(first, second)


def test_a_checkpoint_of_one_process_resumes_in_two_and_one_of_two_in_one_or_three(runs: Path) -> None:
    reference = runs / "1/eb-jdat"
    shutil.copytree(runs / "2-1/eb-jdat", runs / "2-3/eb-jdat")
    train(str(runs / "2-1/eb-jdat.yaml"), out=runs / "2-1/eb-jdat", resume=True, progress=False)
    in_processes(runs, 3, [(runs / "2-3/eb-jdat", [], True)])
    for place in ("1-2", "2-1", "2-3"):
        events = [event["message"] for event in RunDirectory(runs / place / "eb-jdat").events()]
        # one process stops after its first step, several at a logging step
        assert f"from the checkpoint of step {1 if place == '1-2' else 2}" in events
        assert_near(runs / place / "eb-jdat", reference)


COMMAND = """
import os, sys
from pathlib import Path
Path(sys.argv[0]).with_name(os.environ.get("LOCAL_RANK", "0") + ".pid").write_text(str(os.getpid()))
from trilemma.cli.main import app
app(prog_name="trilemma")
"""


@pytest.mark.parametrize(
    ("rank", "number", "code", "line"),
    [
        (0, signal.SIGTERM, 130, "interrupted; state saved; resume with: trilemma train {run} --resume"),
        (1, signal.SIGKILL, 2, "error: {run}: process 1 of 2 was killed by SIGKILL"),
        (0, signal.SIGKILL, -9, "error: {run}: the process that started this one has ended"),
    ],
)
def test_a_stopped_or_lost_process_ends_both_with_one_line_and_a_state_that_resumes(
    tmp_path: Path, shared_cache: None, rank: int, number: int, code: int, line: str
) -> None:
    run, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(tiny("eb-jdat", {"log_every": 2}, sampler=CHAINS)))
    (tmp_path / "command.py").write_text(COMMAND)
    options = ("--out", run, "--device", "cpu", "--quiet", "devices=2", "training.epochs=1000")
    process = ScriptProcess(tmp_path / "command.py", "train", recipe, *options)
    wait_until(RunDirectory(run).metrics_file.is_file, process, 240)
    os.kill(int((tmp_path / f"{rank}.pid").read_text()), number)
    ended, _, complained = process.finish(120)
    assert ended == code, complained[-3000:]
    (said,) = [text for text in complained.splitlines() if text.startswith("trilemma: ")]
    assert said.startswith(f"trilemma: {line.format(run=run)}") and "Traceback" not in complained, complained
    saved = load_state(RunDirectory.open(run).state_file)
    assert saved["method"]["buffer"]["labels"].bincount().tolist()
    if number == signal.SIGTERM:
        assert RunDirectory(run).status()["status"] == "interrupted"
        assert saved["position"]["step"] == RunDirectory(run).status()["step"]


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
    code, weights, complained = two_processes(tmp_path, tmp_path / "run", config, COLLAPSE)
    assert code == 0, complained[-3000:]
    run = RunDirectory.open(tmp_path / "run")
    (rollback,) = [event for event in run.events() if event["name"] == "rollback"]
    assert rollback["message"] == "from step 9 to the checkpoint of step 6, the last healthy evaluation"
    assert len(weights) == 2 and len(set(weights)) == 1
    rows = [row for row in run.metrics() if row["kind"] == "epoch"]
    # the monitors read the mean of both, the selection of the first process its own
    assert [row["held_out_pgd10"] for row in rows] == [0.5] * 5
    assert [row["held_out_raw_pgd10"] for row in rows] == pytest.approx([0.505] * 5)


LAUNCHED = """
import sys
from trilemma.training.train import train
train(sys.argv[1], ["devices=2"], out=sys.argv[2], device="cpu", progress=False)
"""


def launchers(folder: Path) -> dict[str, list[list[str]]]:
    """For each way to start two processes, the commands of the machines."""
    script, recipe = folder / "launched.py", folder / "recipe.yaml"
    command = ["-m", "trilemma", "train", str(recipe), "devices=2", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    port = str(find_free_network_port())
    machine = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    fabric = [sys.executable, "-m", "lightning_fabric.cli", "--devices", "2", "--main-port", port]
    return {
        "two machines of torchrun": [
            [*torchrun, *machine, "--node-rank", rank, *command, "--out", str(folder / "two machines of torchrun")]
            for rank in "01"
        ],
        "fabric run": [[*fabric, str(script), str(recipe), str(folder / "fabric run")]],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["two machines of torchrun", "fabric run"])
def test_launchers_train_what_two_own_processes_do(runs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "launched.py").write_text(LAUNCHED)
    (tmp_path / "recipe.yaml").write_text(dump_config(METHODS["pgd-at"]))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "OMP_WAIT_POLICY": "passive",
    }
    machines = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in launchers(tmp_path)[name]
    ]
    outputs = [machine.communicate(timeout=500)[0] for machine in machines]
    skip_without_loopback("".join(outputs))
    assert [machine.returncode for machine in machines] == [0] * len(machines), outputs
    assert not differences(state_of(tmp_path / name), state_of(runs / "2/pgd-at"))
    # Of the command's processes, the first prints.
    assert ["finished: " in output for output in outputs] in ([True, False], [False])


DISKS_OF_THEIR_OWN = """
import os, sys
from trilemma.cli.main import main
from trilemma.training import train
train.FOLDER_PATIENCE = 0.5
sys.argv[1:] = ["train", sys.argv[1], "devices=2", "--device", "cpu", "--out", sys.argv[2] + os.environ["RANK"]]
main()
"""


def test_machines_without_a_shared_folder_end_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "launched.py").write_text(DISKS_OF_THEIR_OWN)
    (tmp_path / "recipe.yaml").write_text(dump_config(METHODS["pgd-at"]))
    out = tmp_path / "machine-"
    machines = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "launched.py"), str(tmp_path / "recipe.yaml"), str(out)],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for variables in by_torchrun(2)
    ]  # fmt: skip
    outputs = [machine.communicate(timeout=120)[0] for machine in machines]
    skip_without_loopback("".join(outputs))
    assert [machine.returncode for machine in machines] == [2, 2], outputs
    line = "is not the same folder on all machines; give --out (in Python out=) in a folder that they share"
    assert f"trilemma: error: {out}0: {line}" in outputs[0]
    assert not any("Traceback" in output for output in outputs)
    assert not (tmp_path / "machine-1").exists()


def by_torchrun(count: int) -> list[dict[str, str]]:
    """The variables that ``torchrun`` gives to one process on each of ``count`` machines."""
    common = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "WORLD_SIZE": str(count),
        "GROUP_WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "a",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return [{**common, "RANK": str(rank), "GROUP_RANK": str(rank)} for rank in range(count)]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"LT_PRECISION": "bf16-mixed"}, "fabric run: --precision bf16-mixed: contradicts the recipe or the device"),
        ({"WORLD_SIZE": "3"}, "devices: 1, but the launcher has started 3 processes; set devices=3"),
    ],
)  # fmt: skip
def test_a_launcher_that_contradicts_the_recipe_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], line: str
) -> None:
    launched = {"LT_CLI_USED": "1", "TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1"}
    for variable, value in {**launched, **options}.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=re.escape(line)):
        train(METHODS["standard"], out=tmp_path / "run", device="cpu", progress=False)
