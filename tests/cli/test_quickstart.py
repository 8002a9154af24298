"""``trilemma quickstart`` goes on where it was, and never does anything twice. Training and pages are stubs here.

The runs are made one after the other in this process; ``test_workers.py`` holds what several processes add.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trilemma.cli.quickstart import AUTOATTACK, EPOCHS, NAMES, PROTOCOLS, STARTS
from trilemma.runs.run_directory import RunDirectory

WORK = Path("quickstart")


@pytest.fixture
def done(monkeypatch, untrained_run):
    """What was done, in order; every job leaves what the real one leaves."""
    jobs: list[tuple[object, ...]] = []

    monkeypatch.setattr("trilemma.cli.quickstart.WORKERS", 1)

    def train(recipe, overrides=(), *, out, resume, progress, device):
        assert overrides == {"training.epochs": EPOCHS}
        jobs.append(("train", out.name, resume))
        if not resume:
            shutil.copytree(untrained_run, out)
        RunDirectory(out).write_status(status="finished", minutes=1.0)

    def evaluate_run(run, protocols, *, threat, **_):
        jobs.append(("evaluate", run.name, *protocols))
        assert (threat.norm, threat.epsilon) == ("linf", pytest.approx(0.2))
        (run / "evaluation").mkdir(exist_ok=True)
        for name in protocols:
            row = {
                "protocol": name, "version": 1, "value": 0.5, "lower": 0.4, "upper": 0.6, "count": 10, "threat": None,
                "data": {"name": "digits", "split": "test", "images": "all 10"}, "seed": 0,
            }  # fmt: skip
            (run / "evaluation" / f"{name}.json").write_text(json.dumps(row))

    def generate(run, *, start, namer, **_):
        jobs.append(("generate", run.name, start, namer and namer.name))
        (run / "samples").mkdir(exist_ok=True)
        metrics = {"count": 10, "named": 0.9, "named_lower": 0.8, "named_upper": 1.0, "distance": 1.0}
        record = {
            "name": start, "start": start, "sampler": "sgld", "energy": "joint", "steps": 1, "per_class": 1, "seed": 0,
            "namer": None, "reference": None, "figures": {"start": metrics, "sample": metrics},
        }  # fmt: skip
        (run / "samples" / f"{start}.json").write_text(json.dumps(record))

    def diagnose(run, **_):
        jobs.append(("diagnose", run.name))
        (run / "figures").mkdir(exist_ok=True)
        spread = {"mean": 0.0, "p05": 0.0, "p95": 0.0}
        record = {
            "count": 10, "data": {"name": "digits", "split": "test"}, "attack": "pgd", "generated": "sgld",
            "threat": None, "sets": {}, "distances": {}, "shift": {"shift": spread, "abnormal": {"value": 0.0}},
        }  # fmt: skip
        (run / "figures" / "energies.json").write_text(json.dumps(record))

    def write_comparison(runs, path, title="", note=""):
        jobs.append(("compare", *[run.name for run in runs]))
        path.write_text(note)
        return path

    def write_report(run):
        jobs.append(("report", run.name))
        (run / "report.html").write_text("the page of a run")

    monkeypatch.setattr("trilemma.training.train.train", train)
    monkeypatch.setattr("trilemma.evaluation.evaluate.evaluate_run", evaluate_run)
    monkeypatch.setattr("trilemma.evaluation.samples.generate", generate)
    monkeypatch.setattr("trilemma.evaluation.diagnose.diagnose", diagnose)
    monkeypatch.setattr("trilemma.pages.html.write_report", write_report)
    monkeypatch.setattr("trilemma.pages.comparison.write_comparison", write_comparison)
    return jobs


def interrupt_at(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(target, stop)


ORDER = ("standard", "eb-jdat", "pgd-at")


def test_everything_is_done_once_and_the_page_grows_with_each_run(trilemma, done):
    result = trilemma("quickstart")
    assert result.exit_code == 0, result.output
    assert [job for job in done if job[0] == "train"] == [("train", name, False) for name in ORDER]
    for name in NAMES:
        assert ("evaluate", name, *PROTOCOLS) in done
        assert ("evaluate", name, AUTOATTACK) in done
        assert ("diagnose", name) in done
        assert ("report", name) in done
        namer = None if name == "standard" else "standard"
        assert [job for job in done if job[:2] == ("generate", name)] == [
            ("generate", name, start, namer) for start in STARTS
        ]
    assert [job for job in done if job[0] == "compare"] == [
        ("compare", "standard"),
        ("compare", "standard", "eb-jdat"),
        ("compare", *NAMES),
    ]
    assert done[-1] == ("compare", *NAMES)
    # standard's page is there before the next run begins
    assert done.index(("compare", "standard")) < done.index(("train", "eb-jdat", False))
    assert len(set(done)) == len(done)
    assert result.stdout.splitlines()[-1] == "quickstart/report.html"
    assert all(f"quickstart/{name}" in result.stdout for name in NAMES)


def test_a_finished_one_prints_its_report_again_and_does_nothing(trilemma, done):
    trilemma("quickstart")
    done.clear()
    result = trilemma("quickstart")
    assert (result.exit_code, done, result.stderr) == (0, [], "")
    assert result.stdout.splitlines()[-1] == "quickstart/report.html"


def test_finished_runs_are_not_trained_again_and_an_interrupted_one_is_resumed(trilemma, done):
    trilemma("quickstart")
    (WORK / "report.html").unlink()
    RunDirectory(WORK / "pgd-at").write_status(status="interrupted", minutes=0.5)
    shutil.rmtree(WORK / "eb-jdat")
    done.clear()
    assert trilemma("quickstart").exit_code == 0
    assert [job for job in done if job[0] == "train"] == [
        ("train", "eb-jdat", False),
        ("train", "pgd-at", True),
    ]


def test_what_was_measured_is_not_measured_again(trilemma, done):
    trilemma("quickstart")
    (WORK / "report.html").unlink()
    (WORK / "pgd-at" / "evaluation" / "pgd-20.json").unlink()
    (WORK / "standard" / "samples" / "uniform.json").unlink()
    done.clear()
    trilemma("quickstart")
    assert [job for job in done if job[0] in ("evaluate", "generate", "diagnose")] == [
        ("generate", "standard", "uniform", None),
        ("evaluate", "pgd-at", "pgd-20"),
    ]


@pytest.mark.parametrize(
    "target",
    [
        "trilemma.training.train.train",
        "trilemma.evaluation.evaluate.evaluate_run",
        "trilemma.pages.comparison.write_comparison",
    ],
)
def test_an_interruption_at_any_stage_says_how_to_go_on(trilemma, done, monkeypatch, target):
    interrupt_at(monkeypatch, target)
    result = trilemma("quickstart", "--out", "my look", "--quiet")
    assert result.exit_code == 130
    assert (
        result.stderr
        == "trilemma: interrupted; finished steps are kept, resume with: trilemma quickstart --out 'my look'\n"
    )
    page = Path("my look/report.html")
    assert not page.exists() or page.read_text().startswith("Not complete: ")


def test_an_unfinished_page_says_which_runs_will_follow_and_is_finished_later(trilemma, done):
    assert trilemma("quickstart").exit_code == 0
    page = WORK / "report.html"
    assert page.read_text().startswith(f"{EPOCHS} epochs per run")
    (WORK / "pgd-at" / "report.html").unlink()
    page.write_text("an unfinished page")
    done.clear()
    assert trilemma("quickstart").exit_code == 0
    assert ("report", "pgd-at") in done and not any(job[0] == "train" for job in done)
    assert page.read_text().startswith(f"{EPOCHS} epochs per run")


def test_json(trilemma, done):
    result = json.loads(trilemma("quickstart", "--json", "--quiet").stdout)
    assert result["report"] == "quickstart/report.html"
    assert [row["method"] for row in result["runs"]] == ["standard"] * 3  # copies of one stub run
    assert result["runs"][0]["accuracy"] == dict.fromkeys((AUTOATTACK, *PROTOCOLS), 0.5)


def test_quiet_says_nothing_on_standard_error(trilemma, done):
    assert trilemma("quickstart", "--quiet").stderr == ""
