"""What the tests of sweeps share: training that takes no time, and a page that is not drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from trilemma.config.recipe import load_config
from trilemma.runs.run_directory import RunDirectory


class Trainer:
    """Stands for ``trilemma.train``: leaves what a finished run leaves, and raises ``errors[folder name]``, if any."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.errors: dict[str, BaseException] = {}

    def __call__(self, recipe, overrides=(), **options):
        config, run = load_config(recipe, overrides), RunDirectory(options["out"])
        assert options["resume"] == "auto"
        self.trained.append(run.path.name)
        if not run.config_file.is_file():
            RunDirectory.create(run.path, config, recipe)
        if error := self.errors.get(run.path.name):
            run.write_status(status="interrupted", minutes=0.5)
            raise error
        clean = 0.5 + config.training.seed / 10 + (0.02 if config.method.name == "trades" else 0)
        run.add_metrics(
            {"kind": "epoch", "step": 1, "epoch": 1, "minutes": 1.0, "held_out_clean": clean,
             "held_out_pgd10": clean / 2, "held_out_chance": 0.1, "held_out_images": 200, "selected": True}
        )  # fmt: skip
        run.write_status(status="finished", step=1, epochs=1, minutes=1.0)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainer:
    stub = Trainer()
    monkeypatch.setattr("trilemma.training.train.train", stub)
    monkeypatch.setattr("trilemma.pages.comparison.write_comparison", lambda runs, path, *_, **__: path)
    monkeypatch.chdir(tmp_path)
    return stub
