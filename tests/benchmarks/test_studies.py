"""The studies run from end to end at their smallest size, go on where they were, and keep what a person wrote."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "benchmarks" / "studies"
NAMES = (
    "catastrophic_overfitting",
    "collapse_sizes",
    "generation",
    "mnist",
    "recipes",
    "robust_overfitting",
    "trade_off",
)
# At least one case of each group of runs, by study and data.
CASES = {
    ("catastrophic_overfitting", "digits"): ("fgsm-rs", "0.5, 0.0"),
    ("catastrophic_overfitting", "cifar10-shallow"): (
        "fgsm + der (abnormal)",
        "batch, beta 30",
        "abnormal, beta 1",
    ),
    ("collapse_sizes", "mnist-small-cnn"): ("fgsm",),
    ("collapse_sizes", "cifar10-resnet8"): ("fgsm",),
    ("generation", "mnist"): ("eb-jdat", "pgd-at"),
    ("mnist", "mnist"): ("standard", "pgd-at"),
    ("recipes", "digits"): ("digits/pgd-at",),
    ("robust_overfitting", "digits"): ("pgd-at",),
    ("robust_overfitting", "cifar10-cnn"): ("pgd-at",),
    ("trade_off", "digits"): ("dat", "20 steps"),
}


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """The scripts' own folder is on the path, as when they are run."""
    sys.path.insert(0, str(STUDIES))
    yield
    sys.path.remove(str(STUDIES))
    for name in ("common", *NAMES):
        sys.modules.pop(name, None)


def study(name: str) -> Any:
    module = importlib.import_module(name)
    return next(
        thing()
        for thing in vars(module).values()
        if isinstance(thing, type) and thing.__module__ == name and hasattr(thing, "jobs")
    )


def common() -> ModuleType:
    return importlib.import_module("common")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 archives: 6 training and 2 test images per class."""
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        with tarfile.open(root / f"{split}.tar.gz", "w:gz") as archive:
            for label, number in itertools.product(range(10), range(count)):
                stream = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(stream, "PNG")
                entry = tarfile.TarInfo(f"{split}/{label}/{number}.png")
                entry.size = stream.tell()
                stream.seek(0)
                archive.addfile(entry, stream)
    return root


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
@pytest.mark.parametrize(("name", "data"), CASES)
def test_a_study_runs_from_end_to_end(name, data, photographs, tmp_path, capsys):
    """One case of each group, in one process; that every case is possible is checked below."""
    asked = study(name)
    root = photographs if data.startswith("cifar10") else None
    argv = ["--data", data, *(() if root is None else ("--root", str(root)))]
    argv += ["--toy", "--jobs", "0", "--work", str(tmp_path), "--cases", *CASES[name, data]]
    assert common().main(asked, "About.", argv) == 0
    scale = common().Scale(data, tmp_path, toy=True, root=root)
    stem = asked.stem(scale)
    written = (tmp_path / "results" / f"{stem}.json").read_text()
    result = json.loads(written)
    assert str(tmp_path) not in written, "published rows name no folder of the machine"
    assert str(photographs) not in written
    everything = asked.jobs(scale)
    jobs = [job for job in everything if job.first or job.case in CASES[name, data]]
    assert {job.group for job in jobs} == {job.group for job in everything}
    assert [row["key"] for row in result["rows"]] == [job.key for job in jobs]
    assert {row["outcome"] for row in result["rows"]} <= {"finished", "failed"}
    page = (tmp_path / "results" / f"{stem}.md").read_text()
    assert all(f"| {job.case} |" in page for job in jobs if job.group == "main")
    figures = {figure.name for figure in (tmp_path / "results").glob("*.png")}
    assert {f"{stem}.png", f"{stem}-dark.png"} <= figures
    capsys.readouterr()

    # asked again, nothing is run, and a reading that a person wrote stays
    before = sorted((tmp_path / "rows").iterdir(), key=str)
    times = [file.stat().st_mtime_ns for file in before]
    file = tmp_path / "results" / f"{stem}.md"
    file.write_text(page.replace("Not written yet.", "It holds on **every** seed."))
    assert common().main(asked, "About.", argv) == 0
    assert [row.stat().st_mtime_ns for row in before] == times
    assert file.read_text().endswith("## Reading\n\nIt holds on **every** seed.\n")
    assert f"{len(jobs)} of them done before" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_runs_are_processes_of_their_own_and_a_failed_one_leaves_the_others_alone(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", [str(STUDIES / "robust_overfitting.py")])
    asked = study("robust_overfitting")

    def run(jobs: int, *cases: str) -> tuple[int, str, str]:
        argv = ["--toy", "--jobs", str(jobs), "--work", str(tmp_path), "--cases", *cases]
        code = common().main(asked, "About.", argv)
        return code, *capsys.readouterr()

    def rows() -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in sorted((tmp_path / "rows").iterdir())]

    run(0, "pgd-at")
    key = rows()[0]["key"]
    (tmp_path / "rows" / f"{key}.json").unlink()
    (tmp_path / "runs" / key / "checkpoints" / "last" / "classifier.safetensors").write_bytes(b"cut")
    code, page, messages = run(2, "pgd-at", "trades")
    assert code == 1
    assert [row["case"] for row in rows()] == ["trades"]
    assert "1 runs gave no row; their logs are in" in messages
    assert "6 of 7 runs are missing" in page

    shutil.rmtree(tmp_path / "runs" / key)
    code, page, messages = run(0, "pgd-at", "trades")
    assert code == 0, messages
    assert [row["case"] for row in rows()] == ["pgd-at", "trades"]
    assert "5 of 7 runs are missing" in page


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_published_rows_are_taken_over_and_what_a_missing_run_starts_from_is_trained_again(
    photographs, tmp_path, capsys
):
    asked = study("catastrophic_overfitting")

    def run(work: str, *cases: str) -> str:
        argv = ["--data", "cifar10-shallow", "--root", str(photographs), "--toy", "--jobs", "0"]
        argv += ["--work", str(tmp_path / work), "--results", str(tmp_path / "results"), "--cases", *cases]
        assert common().main(asked, "About.", argv) == 0
        return str(capsys.readouterr().err)

    def rows() -> dict[str, Any]:
        text = (tmp_path / "results" / "catastrophic_overfitting-cifar10-shallow.json").read_text()
        return {row["case"]: row for row in json.loads(text)["rows"]}

    first, control = "abnormal, beta 1", "fgsm alone"
    run("one", first)
    before = rows()
    # Another folder has neither rows nor runs; the published rows say all that is asked, so nothing is trained.
    assert "2 runs, 2 of them done before" in run("two", first)
    assert not (tmp_path / "two" / "runs").exists()
    assert rows() == before
    # A further case starts from the state, whose run is made again while its row stays.
    messages = run("two", first, control)
    assert "3 runs, 1 of them done before" in messages
    assert "1/2" in messages and "2/2" in messages
    assert {case: rows()[case] for case in before} == before
    assert rows()[control]["outcome"] == "finished"
    assert {path.name.split("-")[0] for path in (tmp_path / "two" / "runs").iterdir()} == {
        "state",
        "ablation",
    }
    # Rows of another configuration, and with --fresh all rows, are made here.
    assert "taken over" not in run("three", first, "--fresh")
    assert "3 runs, 3 of them done before" in run("two", first, control)


def test_the_key_of_a_run_does_not_depend_on_the_folders_of_the_machine(tmp_path):
    asked = study("catastrophic_overfitting")
    here, there = (common().Scale("cifar10-shallow", tmp_path / part, root=tmp_path / part) for part in "ab")
    assert [job.key for job in asked.jobs(here)] == [job.key for job in asked.jobs(there)]
    job = next(job for job in asked.jobs(here) if "start" in job.config["training"])
    placed = common().on_this_machine(job.config, here)
    assert placed["data"]["root"] == str(tmp_path / "a")
    start = next(state for state in asked.jobs(here) if state.first)
    assert Path(placed["training"]["start"]) == common().run_folder(here, start)
    assert job.config["data"]["root"] == "PATH"


def test_a_run_whose_training_failed_is_a_row(tmp_path, monkeypatch):
    import trilemma
    from trilemma.errors import TrainingFailedError
    from trilemma.runs.run_directory import RunDirectory

    def fails(config: Any, out: Path, **_: Any) -> None:
        run = RunDirectory.create(out, config)
        run.write_status(status="failed", step=3, epochs=1.0, minutes=0.1)
        raise TrainingFailedError("loss is nan at step 3, after 3 rollbacks")

    monkeypatch.setattr(trilemma, "train", fails)
    asked = study("robust_overfitting")
    scale = common().Scale("digits", tmp_path, toy=True)
    jobs = asked.jobs(scale)[:2]
    rows = [common().make_row(asked, job, scale) for job in jobs]
    assert [row["outcome"] for row in rows] == ["failed", "failed"]
    assert rows[0]["train_seconds"] == 6.0
    assert "| pgd-at (1 failed) |" in asked.tables(common().stored_rows(jobs, scale), scale)
    assert asked.figures([], scale) == {}


@pytest.mark.parametrize("name", NAMES)
def test_the_full_studies_have_possible_runs_without_repetition(name, tmp_path):
    marks = (ROOT / "docs" / "studies.md").read_text()
    for data in study(name).scales:
        scale = common().Scale(data, tmp_path, root=tmp_path)
        jobs = study(name).jobs(scale)
        common()._check(jobs)
        assert len({job.key for job in jobs}) == len(jobs) > 5
        stem = study(name).stem(scale)
        assert f"<!-- {stem}: begin -->" in marks and f"<!-- {stem}: end -->" in marks


def test_what_a_start_needs_is_trained_before_the_start(tmp_path):
    """The chain standard, two steps, single step: each begins with the weights of a job that is made before it."""
    scale = common().Scale("mnist-small-cnn", tmp_path, root=tmp_path)
    jobs = {f"WORK/runs/{job.key}": job for job in study("collapse_sizes").jobs(scale)}
    for job in jobs.values():
        start = job.config["training"].get("start")
        assert (start is None) == (job.case == "standard")
        assert start is None or (jobs[start].first > job.first and jobs[start].seed == job.seed)


def test_a_run_has_collapsed_where_one_step_is_twice_as_robust_as_many_and_its_onset_is_where_that_stays_so():
    judged = importlib.import_module("catastrophic_overfitting").judged

    def at(fgsm: float, pgd: float, *held: tuple[float | None, float]) -> dict[str, Any]:
        epochs = [float(epoch) for epoch in range(1, len(held) + 1)]
        pairs = {"fgsm": [one for one, _ in held], "pgd10": [many for _, many in held]}
        result: dict[str, Any] = judged({"fgsm": fgsm, "pgd-10": pgd}, {"epoch": epochs, **pairs})
        return result

    well, ill = (0.4, 0.35), (0.4, 0.0)
    # ill at once, well again; from epoch 5 on the mean of three is below half for good: 0.35 / 1.2 (0.7 / 1.2 at 4)
    assert at(0.7, 0.1, ill, well, well, ill, ill, ill) == {"collapsed": True, "onset": 5.0}
    assert at(0.7, 0.4, ill, ill, ill) == {"collapsed": False, "onset": None}
    assert at(0.7, 0.1, (None, 0.2), (None, 0.0)) == {
        "collapsed": True,
        "onset": None,
    }  # no FGSM accuracy on record


def test_the_cases_of_the_trade_off_spend_the_same(tmp_path):
    from trilemma.config.recipe import build_config
    from trilemma.training.estimate import forward_passes

    module = importlib.import_module("trade_off")
    jobs = study("trade_off").jobs(common().Scale("digits", tmp_path))
    spent: dict[tuple[str, int], float] = {}
    for job in jobs:
        config = build_config(job.config)
        case = ("dat" if job.group == "stage-1" else job.case, job.seed)
        if job.group in ("main", "stage-1"):
            spent[case] = spent.get(case, 0) + config.training.epochs * forward_passes(config)
    assert all(abs(value / module.BUDGET["digits"] - 1) < 0.03 for value in spent.values())


def test_the_sets_beside_mnist_are_made_of_the_test_images_and_of_letters():
    module = importlib.import_module("mnist")
    images = torch.rand(20, 1, 28, 28)
    sets = module.outside_sets(images)
    assert tuple(sets) == module.OUTSIDE
    assert all(others.shape == images.shape for others in sets.values())
    assert torch.equal(sets["inverted"], 1 - images)
    assert torch.equal(sets["rotated"].rot90(3, (2, 3)), images)
    drawn = sets["letters"]
    # ink in the middle, none at the border, and the second ten in another font
    assert drawn[..., 8:20, 8:20].amax((1, 2, 3)).min() > 0.5
    assert drawn[..., 0, :].max() == drawn[..., -1, :].max() == 0
    assert not torch.equal(drawn[:10], drawn[10:])


def test_a_job_that_measures_more_of_a_run_has_its_own_row_and_comes_after_the_run(tmp_path):
    scale = common().Scale("mnist", tmp_path, root=tmp_path)
    everything = study("mnist").jobs(scale)
    jobs = [job for job in everything if job.case == "trades"]
    assert [job.group for job in jobs] == ["main", "autoattack", "pgd"]
    assert len({common().row_file(scale, job) for job in jobs}) == 3
    assert len({common().run_folder(scale, job) for job in jobs}) == 1
    assert [job.turn for job in jobs] == [1, 2, 2]
    # a recipe that starts from mnist/pgd-at continues the run of that case, which comes first
    first, later = (next(job for job in everything if job.case == case) for case in ("pgd-at", "eb-jdat"))
    assert later.config["training"]["start"] == str(common().run_folder(scale, first))
    assert (first.turn, later.turn) == (0, 1)
