"""What the tests of the command line share: the command itself, and a run folder that took no training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trilemma.cli.main import app

Command = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data go into a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILEMMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def trilemma(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """``trilemma("list", "methods")`` in an empty current folder; its ``stdout``, ``stderr`` and ``exit_code``."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(
        app, [str(argument) for argument in arguments], prog_name="trilemma"
    )


@pytest.fixture
def mistake(trilemma: Command) -> Callable[..., str]:
    """Runs a command that must fail as a user's mistake does; returns its one line."""

    def run(*arguments: object) -> str:
        result = trilemma(*arguments)
        lines = result.stderr.splitlines()
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert lines[-1].startswith("trilemma: error: ")
        assert "Traceback" not in result.stderr
        assert sum(line.startswith("trilemma: error: ") for line in lines) == 1
        return lines[-1].removeprefix("trilemma: error: ")

    return run


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run folder of the digits with a network of random weights."""
    import torch

    from trilemma.config.recipe import load_config
    from trilemma.data.sources import load_splits
    from trilemma.runs.run_directory import RunDirectory
    from trilemma.training.build import build_classifier
    from trilemma.training.statistics import attach

    path = tmp_path_factory.mktemp("runs") / "untrained"
    config = load_config(
        "digits/standard", {"network.width": 4, "threat.norm": "linf", "threat.radius": "0.2"}
    )
    run = RunDirectory.create(path, config)
    data = load_splits("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clf = build_classifier(config, data.train).eval()
    attach(clf, data.train)
    clf.about = {"recipe": "digits/standard", "data": "digits", "method": "standard", "checkpoint": "best"}
    clf.save(run.best_classifier)
    run.write_status(status="finished", step=0, epochs=0, minutes=0.0, seconds_per_step=0.0, peak_memory_mb=0)
    run.add_metrics(
        {
            "kind": "epoch",
            "step": 0,
            "epoch": 1,
            "minutes": 0.0,
            "held_out_clean": 0.5,
            "held_out_pgd10": 0.25,
            "selected": True,
        }
    )
    return path


@pytest.fixture
def run_folder(untrained_run: Path, tmp_path: Path) -> Path:
    """A fresh copy of it that a test may write into."""
    return Path(shutil.copytree(untrained_run, tmp_path / "run"))
