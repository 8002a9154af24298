"""``trilemma sweep``: what is passed on, what is printed, and its exit codes. No training happens here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trilemma.pages.table import Column, Entry, Table
from trilemma.sweeps.sweep import Sweep

COLUMN = Column("held-out clean", 1, "accuracy", "higher", "", 200, "digits held-out, first 200")
ROW = {"value": 0.55, "lower": None, "upper": None, "std": 0.07, "min": 0.5, "max": 0.6, "runs": 2, "of": 2}
TABLE = Table((COLUMN,), (Entry("trades", "s/seed=0", 0, "trades", "best", 1.0, {COLUMN: ROW}, (), (0, 1)),))


class Stub:
    """Stands for ``trilemma.sweep``."""

    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []
        self.result: Sweep | BaseException = Sweep(
            Path("s"), (Path("s/seed=0"), Path("s/seed=1")), {}, TABLE, Path("s/comparison.html")
        )

    def __call__(self, recipe, values, out, **options):
        self.calls.append({"recipe": recipe, "values": values, "out": out, **options})
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def stub(monkeypatch):
    replacement = Stub()
    monkeypatch.setattr("trilemma.cli.sweep.run_sweep", replacement)
    return replacement


def test_options_are_passed_on_and_the_table_and_the_page_are_printed(trilemma, stub):
    result = trilemma(
        "sweep", "digits/trades", "seed=0..1", "method.beta=1,6", "--jobs", 2, "--evaluate", "clean, pgd-20",
        "--evaluate", "ece", "--images", 100, "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert stub.calls == [
        {
            "recipe": "digits/trades", "values": ["seed=0..1", "method.beta=1,6"], "out": None, "jobs": 2,
            "launcher": "local", "slurm": {}, "evaluate": ["clean", "pgd-20", "ece"], "images": 100,
            "device": "auto", "progress": False, "max_runs": 256,
        }
    ]  # fmt: skip
    assert "55.0 % ± 7.0 (50.0 to 60.0)" in result.stdout
    assert result.stdout.splitlines()[-1] == "s/comparison.html"


@pytest.mark.parametrize(
    ("form", "first"),
    [
        ("markdown", "| run | method"),
        ("csv", "run,method,checkpoint"),
        ("latex", "% needs \\usepackage{booktabs}"),
    ],
)
def test_the_table_alone_in_a_format(trilemma, stub, form, first):
    assert trilemma("sweep", "digits/trades", "seed=0..1", "--format", form).stdout.startswith(first)


def test_json(trilemma, stub):
    result = json.loads(trilemma("sweep", "digits/trades", "seed=0..1", "--json").stdout)
    assert (result["sweep"], result["page"], result["failed"]) == ("s", "s/comparison.html", {})
    assert result["runs"] == ["s/seed=0", "s/seed=1"]
    (row,) = result["table"]["rows"]
    assert (row["seeds"], row["values"][0]["min"]) == ([0, 1], 0.5)


def test_failed_runs_are_listed_after_the_table_with_exit_code_3(trilemma, stub):
    stub.result = Sweep(
        Path("s"), (Path("s/seed=0"),), {"seed=1": "diverged"}, TABLE, Path("s/comparison.html")
    )
    result = trilemma("sweep", "digits/trades", "seed=0..1")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (3, "s/comparison.html")
    assert result.stderr.splitlines()[0] == "failed: seed=1: diverged"
    assert "error: 1 run of s failed" in result.stderr


def test_without_a_trained_run_there_is_no_table(trilemma, stub):
    stub.result = Sweep(Path("s"), (), {"seed=0": "diverged", "seed=1": "diverged"}, Table((), ()), None)
    result = trilemma("sweep", "digits/trades", "seed=0..1")
    assert (result.exit_code, result.stdout) == (3, "")


def test_an_interruption_says_how_to_go_on(trilemma, stub):
    stub.result = KeyboardInterrupt()
    result = trilemma("sweep", "digits/trades", "seed=0..1")
    assert (result.exit_code, result.stderr) == (
        130, "trilemma: interrupted; trained runs and the state of the others are kept, repeat the command to resume\n"
    )  # fmt: skip


def test_options_of_a_cluster(trilemma, stub, mistake):
    result = trilemma(
        "sweep",
        "cifar10/pgd-at",
        "seed=0,1",
        "--launcher",
        "slurm",
        "--slurm",
        "partition=gpu",
        "--slurm",
        "time=60",
    )
    assert result.exit_code == 0, result.output
    assert (stub.calls[0]["launcher"], stub.calls[0]["slurm"]) == ("slurm", {"partition": "gpu", "time": 60})
    assert "--slurm: needs --launcher slurm" in mistake(
        "sweep", "cifar10/pgd-at", "seed=0,1", "--slurm", "partition=gpu"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits/trades"], "Missing argument"),
        (["digits/trade", "seed=0,1"], "unknown recipe 'digits/trade'. Did you mean 'digits/trades'?"),
        (["digits/trades", "seed=4..0"], "the range is empty; write 0..4"),
        (["digits/trades", "training.seeds=0,1"], "training.seeds: unknown key"),
        (["digits/trades", "seed=0,1", "--jobs", "0"], "'--jobs'"),
        (["digits/trades", "seed=0,1", "--launcher", "pbs"], "'--launcher'"),
        (["digits/trades", "seed=0..999"], "1,000 runs (1000 training.seed), which is more than 256"),
    ],
)
def test_mistakes_are_one_line(mistake, arguments, message):
    assert message in mistake("sweep", *arguments)
