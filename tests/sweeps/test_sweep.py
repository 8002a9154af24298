"""Sweeps: which runs are made, skipped, resumed and listed, what the table says, and which folders are refused."""

from __future__ import annotations

import importlib.util
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import trilemma
from trilemma.config.recipe import load_config
from trilemma.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    NotStoredError,
    RunError,
    TrainingFailedError,
    UnknownNameError,
)
from trilemma.runs.lock import writing
from trilemma.runs.run_directory import RunDirectory
from trilemma.sweeps import launchers
from trilemma.sweeps.plan import run_name
from trilemma.sweeps.task import Task, missing_protocols
from trilemma.text_files import sealed

RECIPE = "digits/pgd-at"
GRID = {"seed": [0, 1], "method.name": ["pgd-at", "trades"]}
NAMES = ["method=pgd-at_seed=0", "method=pgd-at_seed=1", "method=trades_seed=0", "method=trades_seed=1"]
# A run of the digits that takes a fraction of a second.
TINY = {"data.train_images": 40, "network.width": 4, "training.epochs": 1, "training.batch_size": 20,
        "training.held_out_images": 20}  # fmt: skip


def test_every_combination_is_a_run_and_the_table_has_the_range_over_seeds(trainer):
    result = trilemma.sweep(RECIPE, GRID, progress=False)
    assert trainer.trained == NAMES
    assert result.path == Path("runs/digits-pgd-at-sweep")
    assert [run.name for run in result.runs] == NAMES
    assert RunDirectory(result.runs[3]).config() == load_config(
        RECIPE, {"method.name": "trades", "training.seed": 1}
    )
    assert [entry.title for entry in result.table.entries] == ["pgd-at (2 seeds)", "trades (2 seeds)"]
    clean, attacked = result.table.columns
    assert (clean.protocol, clean.threat, clean.count) == ("held-out clean", "", 200)
    assert (attacked.protocol, bool(attacked.threat)) == ("held-out pgd-10", True)
    first, second = (entry.values[clean] for entry in result.table.entries)
    assert (first["value"], first["min"], first["max"]) == (pytest.approx(0.55), 0.5, 0.6)
    assert (second["value"], second["min"], second["max"]) == (pytest.approx(0.57), 0.52, 0.62)
    assert "55.0 % ± 7.1 (50.0 to 60.0)" in result.table.to_markdown()
    assert "held_out_clean_min,held_out_clean_max" in result.table.to_csv()
    assert "pgd-at (2 seeds)" in repr(result)


def test_repeating_it_trains_nothing_and_further_values_add_runs(trainer):
    trilemma.sweep(RECIPE, GRID, progress=False)
    trainer.trained.clear()
    assert [run.name for run in trilemma.sweep(RECIPE, GRID, progress=False).runs] == NAMES
    assert trainer.trained == []
    # One further seed; single values of the keys that vary are values of the run too.
    result = trilemma.sweep(RECIPE, ["seed=2", "method=pgd-at"], progress=False)
    assert trainer.trained == ["method=pgd-at_seed=2"]
    assert [run.name for run in result.runs] == [*NAMES, "method=pgd-at_seed=2"]
    assert [entry.seeds for entry in result.table.entries] == [(0, 1, 2), (0, 1)]


@pytest.mark.parametrize(
    ("values", "recipe", "message"),
    [
        (
            {**GRID, "training.epochs": 3},
            RECIPE,
            "share the values of the recipe only, not training.epochs=3",
        ),
        ({"seed": [0, 1]}, RECIPE, "its sweep varies method.name, training.seed, not training.seed"),
        (GRID, "digits/standard", "holds a sweep of digits/pgd-at, not of digits/standard"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(trainer, values, recipe, message):
    trilemma.sweep(RECIPE, GRID, "s", progress=False)
    before = sorted(Path("s").rglob("*"))
    with pytest.raises(RunError) as error:
        trilemma.sweep(recipe, values, "s", progress=False)
    assert message in str(error.value)
    assert "choose another --out" in str(error.value)
    assert sorted(Path("s").rglob("*")) == before


def test_a_run_of_an_edited_recipe_is_refused_before_the_first_run_begins(trainer):
    text = Path("mine.yaml")
    text.write_text("base: digits/pgd-at\ntraining: {epochs: 2}\n")
    trilemma.sweep("mine.yaml", {"seed": [0, 1]}, progress=False)
    trainer.trained.clear()
    text.write_text("base: digits/pgd-at\ntraining: {epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"training.epochs=3: the run was started with training.epochs=2"):
        trilemma.sweep("mine.yaml", {"seed": [0, 1, 2]}, progress=False)
    assert trainer.trained == []


def test_failed_runs_are_listed_and_the_others_go_on(trainer, capsys):
    trainer.errors = {
        NAMES[0]: DataError("digits: no such file\nin the folder"),
        NAMES[1]: ZeroDivisionError("a bug"),
        NAMES[2]: TrainingFailedError("diverged"),
    }
    result = trilemma.sweep(RECIPE, GRID)
    assert list(result.failed) == NAMES[:3]
    assert result.failed[NAMES[0]] == "digits: no such file in the folder"
    assert result.failed[NAMES[1]].startswith("ZeroDivisionError: a bug (")
    assert result.failed[NAMES[2]] == "diverged"
    assert [run.name for run in result.runs] == NAMES[3:]
    messages = capsys.readouterr().err
    assert "sweep: 4 runs, 0 done before\n" in messages
    assert f"[1/4] {NAMES[0]}: failed: digits: no such file in the folder; about" in messages
    assert f"[4/4] {NAMES[3]}: done\n" in messages
    assert "Traceback" in messages
    # Repeated, they are tried again, but one that failed after every remedy.
    trainer.trained.clear()
    trainer.errors.clear()
    run = RunDirectory(result.path / NAMES[2])
    run.write_status(status="failed", minutes=1.0)
    run.add_event({"kind": "stop", "name": "failed", "message": "diverged at step 7", "step": 7, "epoch": 1})
    result = trilemma.sweep(RECIPE, GRID)
    assert trainer.trained == NAMES[:2]
    assert result.failed == {NAMES[2]: "diverged at step 7"}
    assert "sweep: 4 runs, 1 done before, 1 failed before\n" in capsys.readouterr().err


def test_a_complete_sweep_on_a_full_disk_shows_its_table_without_a_page(trainer, monkeypatch, capsys):
    trilemma.sweep(RECIPE, GRID, progress=False)

    def full(*_: object, **__: object) -> None:
        raise NotStoredError("comparison.html", "No space left on device")

    monkeypatch.setattr("trilemma.sweeps.plan.write_text", full)
    monkeypatch.setattr("trilemma.pages.comparison.write_comparison", full)
    capsys.readouterr()
    result = trilemma.sweep(RECIPE, GRID, progress=False)
    assert (len(result.table.entries), result.page) == (2, None)
    assert "comparison.html: cannot be written (No space left on device)" in capsys.readouterr().err
    with pytest.raises(NotStoredError):
        trilemma.sweep(RECIPE, {**GRID, "seed": [5]}, progress=False)


def test_an_interrupted_sweep_goes_on_with_the_same_call(trainer):
    trainer.errors = {NAMES[1]: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        trilemma.sweep(RECIPE, GRID, progress=False)
    assert trainer.trained == NAMES[:2]
    trainer.errors.clear()
    trainer.trained.clear()
    assert len(trilemma.sweep(RECIPE, GRID, progress=False).runs) == 4
    assert trainer.trained == NAMES[1:]


def test_a_run_waits_for_a_process_of_a_killed_sweep_that_saves_its_state(trainer):
    run = RunDirectory(trilemma.sweep(RECIPE, ["seed=0,1"], progress=False).path / "seed=0")
    run.write_status(status="interrupted", minutes=0.5)
    with ThreadPoolExecutor() as pool:
        with writing(run.path):
            again = pool.submit(lambda: trilemma.sweep(RECIPE, ["seed=0,1"], progress=False))
            time.sleep(0.3)
            assert len(trainer.trained) == 2 and not again.done()
        assert again.result().failed == {} and trainer.trained[2:] == ["seed=0"]


def test_two_spellings_of_one_configuration_are_one_run(trainer):
    result = trilemma.sweep(RECIPE, ["training.lr=0.1,1e-1,0.10", "seed=0,0"], progress=False)
    assert [run.name for run in result.runs] == ["training.lr=0.1_seed=0"]
    trilemma.sweep(RECIPE, {"training.lr": [1], "seed": 0}, result.path, progress=False)
    trilemma.sweep(RECIPE, {"training.lr": [1.0], "seed": 0}, result.path, progress=False)
    assert trainer.trained == ["training.lr=0.1_seed=0", "training.lr=1_seed=0"]


def test_names_of_folders():
    values = {"threat.radius": "8/255", "method.name": "pgd-at", "training.ema": None, "training.seed": 3}
    assert run_name(values) == "threat.radius=8-255_method=pgd-at_training.ema=null_seed=3"
    long, other = ({"data.root": letter * 300} for letter in "ab")
    assert len(run_name(long)) == 100
    assert run_name(long)[:20] == "data.root=aaaaaaaaaa"
    assert run_name(long) != run_name({"data.root": "a" * 301})
    assert run_name(other) != run_name(long)


def test_values_whose_names_are_equal_have_folders_of_their_own(trainer):
    roots = ["a/b", "a-b", "A-B"]
    result = trilemma.sweep(RECIPE, {"data.root": roots}, progress=False)
    assert len({run.name.casefold() for run in result.runs}) == 3
    assert [RunDirectory(run).config().data.root for run in result.runs] == roots
    trainer.trained.clear()
    trilemma.sweep(RECIPE, {"data.root": roots[::-1]}, progress=False)
    assert trainer.trained == []


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ({"training.epoch": [1, 2]}, {}, ConfigError, "training.epoch: unknown key. Did you mean 'epochs'?"),
        ({"training.epochs": [1, "many"]}, {}, ConfigError, "training.epochs: "),
        ({"method.name": ["pgd-at", "pgdat"]}, {}, UnknownNameError, "Did you mean 'pgd-at'?"),
        ({"training.epochs": 3}, {}, ConfigError, "no key has several values; write seed=0..4"),
        ({}, {}, ConfigError, "no key has several values"),
        (
            {"seed": range(300)},
            {},
            ConfigError,
            "300 runs (300 training.seed), which is more than 256; give fewer",
        ),
        (
            {"seed": range(90_000), "training.epochs": list(range(1, 90_000))},
            {},
            ConfigError,
            "8,099,910,000 runs",
        ),
        ({"seed": [0, 1], "devices": 2}, {}, ConfigError, "devices=2: each run of a sweep is one process"),
        ({"seed": [0, 1]}, {"jobs": 0}, ConfigError, "jobs: 0; must be an integer of at least 1"),
        ({"seed": [0, 1]}, {"launcher": "pbs"}, ConfigError, "'pbs': unknown; use local or slurm"),
        ({"seed": [0, 1]}, {"evaluate": ["pgd-2"]}, UnknownNameError, "pgd-2"),
        ({"seed": [0, 1]}, {"device": "cuda:7"}, ConfigError, "device cuda:7: not available"),
        (
            {"seed": [0, 1], "threat": None, "method.name": "standard"},
            {"evaluate": ["clean", "pgd-20"]},
            ConfigError,
            "evaluate pgd-20: seed=0 has no threat model",
        ),
        ({"method": [{"name": "trades", "beta": 1}], "method.beta": [1, 2]}, {}, ConfigError, "given twice"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(trainer, values, options, error, message):
    with pytest.raises(error) as raised:
        trilemma.sweep(RECIPE, values, "s", progress=False, **options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (trainer.trained, Path("s").exists()) == ([], False)


def test_folders_that_are_no_sweep_are_refused(trainer):
    RunDirectory.create("run", load_config(RECIPE))
    Path("photos").mkdir()
    Path("photos/a.png").touch()
    Path("file").touch()
    Path("damaged").mkdir()
    Path("damaged/sweep.json").write_text('{"recipe": "digits')
    Path("later").mkdir()
    record = {"version": 2, "recipe": RECIPE, "fixed": {}, "varying": [], "runs": {}}
    Path("later/sweep.json").write_text(json.dumps(record))
    for name, content in (
        ("edited", {**sealed(record), "recipe": "x"}),
        ("odd", {**record, "runs": {"a": [1]}}),
    ):
        Path(name).mkdir()
        Path(name, "sweep.json").write_text(json.dumps(content))
    Path("folder/sweep.json").mkdir(parents=True)
    for folder, message in {
        "run": "holds a run, not a sweep",
        "photos": r"is not empty and holds no sweep \(no sweep.json\)",
        "file": "is a file, not a folder",
        "damaged": "damaged/sweep.json: cannot be read",
        "later": "version 2 instead of 1",
        "edited": "does not match the digest",
        "odd": "not the record of a sweep",
        "folder": "folder/sweep.json: cannot be read .is a folder",
    }.items():
        with pytest.raises(RunError, match=message):
            trilemma.sweep(RECIPE, GRID, folder, progress=False)
    assert trainer.trained == []


def test_more_jobs_than_cores_is_one_line(trainer, capsys, monkeypatch):
    monkeypatch.setattr("trilemma.sweeps.sweep.cores", lambda: 2)
    monkeypatch.setattr("trilemma.sweeps.sweep.run_local", lambda tasks, jobs, ended, idle: None)
    trilemma.sweep(RECIPE, {"seed": [0, 1]}, jobs=3, progress=False)
    assert capsys.readouterr().err == (
        "warning: 3 jobs on 2 cores: they slow each other down, and finish no sooner\n"
    )


def test_jobs_share_the_cores_unless_the_environment_says_otherwise(trainer, monkeypatch):
    given = []
    monkeypatch.setattr(
        launchers, "run_jobs", lambda jobs, workers, *_: given.append((workers, jobs[0].threads))
    )
    monkeypatch.setattr(launchers, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for jobs in (1, 3, 16):
        trilemma.sweep(RECIPE, {"seed": [0, 1]}, jobs=jobs, progress=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    trilemma.sweep(RECIPE, {"seed": [0, 1]}, jobs=3, progress=False)
    # One at a time is done in this process, whose threads stay.
    assert given == [(0, 8), (3, 2), (16, 1), (3, None)]


def test_which_protocols_are_missing(complete_run):
    """All rows are of 20 of the test images and of the present weights."""
    assert missing_protocols(complete_run.path, ["clean", "pgd-20", "ece"], 20) == ["ece"]
    assert missing_protocols(complete_run.path, ["clean", "pgd-20"], 30) == ["clean", "pgd-20"]
    assert missing_protocols(complete_run.path, ["clean"], None) == ["clean"]


@pytest.mark.usefixtures("shared_cache")
def test_real_runs_in_processes_are_evaluated_and_compared(tmp_path, capfd):
    """One page and one table; a run of the sweep equals the same run made alone."""
    values = {"seed": [0, 1], **TINY}
    result = trilemma.sweep(
        RECIPE, values, tmp_path / "s", jobs=2, evaluate=["clean"], images=20, device="cpu"
    )
    assert result.failed == {}
    assert "[2/2] seed=" in capfd.readouterr().err
    (entry,) = result.table.entries
    assert entry.seeds == (0, 1)
    assert {column.protocol for column in entry.values} == {"clean", "held-out clean", "held-out pgd-10"}
    assert all(row["runs"] == 2 for row in entry.values.values())
    page = (tmp_path / "s" / "comparison.html").read_text()
    assert "Sweep of digits/pgd-at" in page
    assert "held-out" in page
    assert (tmp_path / "s" / "logs" / "seed=0.log").is_file()
    # The same run as one that is trained alone.
    alone = trilemma.train(
        RECIPE, {**TINY, "training.seed": 1}, out=tmp_path / "alone", progress=False, device="cpu"
    )

    def held_out(metrics: list[dict[str, Any]]) -> list[object]:
        return [row.get(key) for row in metrics for key in ("held_out_clean", "held_out_pgd10")]

    assert held_out(RunDirectory(result.runs[1]).metrics()) == held_out(alone.metrics)


class Submitted:
    """A job of a cluster that ends at the second look."""

    def __init__(self, executor: Cluster, task: Task) -> None:
        self.executor, self.task, self.looks, self.cancelled = executor, task, 0, False
        self.paths = type("Paths", (), {"stderr": Path("job.err")})
        executor.jobs.append(self)
        executor.most = max(executor.most, sum(not job.done_ for job in executor.jobs))

    done_ = False

    def done(self) -> bool:
        self.looks += 1
        self.done_ = self.looks > 1
        return self.done_

    def result(self) -> str | None:
        if self.task.name == self.executor.killed:
            raise RuntimeError("Job 7 has not produced any output (state: OUT_OF_MEMORY)\nand more")
        return self.task()

    def cancel(self) -> None:
        self.cancelled = True


class Cluster:
    """Stands for an executor of submitit."""

    def __init__(self) -> None:
        self.jobs: list[Submitted] = []
        self.most, self.killed = 0, ""

    def submit(self, task: Task) -> Submitted:
        return Submitted(self, task)


@pytest.fixture
def cluster(monkeypatch):
    executor = Cluster()
    monkeypatch.setattr("trilemma.sweeps.sweep.slurm_executor", lambda folder, options: executor)
    monkeypatch.setattr(launchers, "INTERVAL", 0)
    return executor


@pytest.mark.parametrize(("jobs", "most"), [(None, 4), (2, 2)])
def test_a_cluster_gets_at_most_that_many_jobs_at_once(trainer, cluster, jobs, most):
    cluster.killed = NAMES[1]
    result = trilemma.sweep(RECIPE, GRID, launcher="slurm", jobs=jobs, progress=False)
    assert (len(cluster.jobs), cluster.most) == (4, most)
    assert list(result.failed) == [NAMES[1]]
    line = result.failed[NAMES[1]]
    assert line.startswith("RuntimeError: Job 7 has not produced any output (state: OUT_OF_MEMORY)")
    assert line.endswith("; its output is in job.err")
    assert len(result.runs) == 3


def test_jobs_of_a_cluster_are_cancelled_by_an_interruption(trainer, cluster):
    trainer.errors = {NAMES[1]: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        trilemma.sweep(RECIPE, GRID, launcher="slurm", jobs=3, progress=False)
    assert [job.cancelled for job in cluster.jobs] == [False, False, True, True][: len(cluster.jobs)]


def test_a_cluster_without_submitit_or_without_slurm_is_one_line(trainer, monkeypatch):
    monkeypatch.setenv("PATH", "")
    installed = importlib.util.find_spec("submitit") is not None
    with pytest.raises((ConfigError, MissingExtraError)) as error:
        trilemma.sweep(RECIPE, GRID, "s", launcher="slurm", progress=False)
    expected = "Could not detect" if installed else "submitit is not installed; pip install 'trilemma[slurm]'"
    assert expected in str(error.value)
    assert not Path("s/sweep.json").exists()


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs submitit (extra slurm)")
@pytest.mark.usefixtures("shared_cache")
def test_the_local_executor_of_submitit_makes_real_runs(tmp_path, monkeypatch):
    """A real job, pickled and run by submitit; a task that it interrupts is submitted again as it is."""
    import submitit

    def executor(folder: Path, options: object) -> object:
        return submitit.LocalExecutor(folder=folder)

    monkeypatch.setattr("trilemma.sweeps.sweep.slurm_executor", executor)
    result = trilemma.sweep(
        RECIPE, {"seed": [0], **TINY}, tmp_path / "s", launcher="slurm", device="cpu", progress=False
    )
    assert (result.failed, [run.name for run in result.runs]) == ({}, ["seed=0"])
    task = Task("a", RECIPE, {}, tmp_path, tmp_path, "cpu", (), None, False, 1)
    assert task.checkpoint().function == task
