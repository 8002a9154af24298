"""``trilemma train``: what is asked of the training room, and what is said at the end. No training happens here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trilemma.config.recipe import load_config
from trilemma.errors import TrainingFailedError
from trilemma.runs.run_directory import RunDirectory, default_folder


class Trainer:
    """Stands for ``trilemma.train``: remembers its arguments and leaves what a finished run leaves."""

    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []
        self.error: BaseException | None = None

    def __call__(self, recipe, overrides=(), **options):
        self.calls.append({"recipe": recipe, "overrides": overrides, **options})
        out = Path(options["out"])
        run = (
            RunDirectory(out)
            if options["resume"]
            else RunDirectory.create(out, load_config(recipe, overrides))
        )
        if self.error is not None:
            run.state_file.parent.mkdir(parents=True)
            run.state_file.touch()
            raise self.error
        for epoch, clean in ((1, 0.5), (2, 0.9), (3, 0.8)):
            selected = epoch < 3
            run.add_metrics(
                {"kind": "epoch", "step": epoch, "epoch": epoch, "minutes": 1.0, "held_out_clean": clean,
                 "held_out_pgd10": 0.25, "held_out_chance": 0.1, "selected": selected}
            )  # fmt: skip
        run.write_status(status="finished", step=3, epochs=3, minutes=1.0)


@pytest.fixture
def trainer(monkeypatch):
    stub = Trainer()
    monkeypatch.setattr("trilemma.training.train.train", stub)
    return stub


def test_the_recipe_and_its_overrides_are_passed_on(trilemma, trainer):
    result = trilemma(
        "train", "digits/pgd-at", "training.epochs=3", "--seed", 7, "--device", "cpu", "--quiet"
    )
    assert result.exit_code == 0, result.output
    assert trainer.calls == [
        {
            "recipe": "digits/pgd-at",
            "overrides": {"training.epochs": 3, "training.seed": 7},
            "out": Path("runs/digits-pgd-at"),
            "resume": False,
            "progress": False,
            "device": "cpu",
        }
    ]


def test_the_end_names_the_run_its_best_epoch_and_what_to_do_next(trilemma, trainer):
    lines = trilemma("train", "digits/pgd-at", "--out", "mine").stdout.splitlines()
    assert lines[0] == "finished: mine"
    assert lines[1] == "held-out accuracy (epoch 2): clean 90.0%, PGD-10 25.0% (largest class: 10.0%)"
    assert [line.split()[-2:] for line in lines[2:]] == [
        [command, "mine"] for command in ("evaluate", "generate", "diagnose", "report")
    ]


def test_json_says_the_same(trilemma, trainer):
    result = json.loads(trilemma("train", "digits/pgd-at", "--json").stdout)
    assert (result["run"], result["status"]) == ("runs/digits-pgd-at", "finished")
    assert (result["best_epoch"], result["held_out_clean"], result["held_out_pgd10"]) == (2, 0.9, 0.25)


def test_an_existing_run_is_never_touched_without_resume(mistake, trainer, run_folder):
    before = sorted(run_folder.rglob("*"))
    line = mistake("train", "digits/standard", "--out", run_folder)
    assert "already contains a run; add --resume" in line
    assert (trainer.calls, sorted(run_folder.rglob("*"))) == ([], before)


def test_resume_by_recipe_and_folder(trilemma, trainer, run_folder):
    trilemma("train", "digits/standard", "--out", run_folder, "--resume")
    assert [(call["out"], call["resume"]) for call in trainer.calls] == [(run_folder, True)]


def test_resume_by_run_folder_alone_uses_its_own_configuration(trilemma, trainer, run_folder):
    result = trilemma("train", run_folder, "--resume")
    assert result.exit_code == 0, result.output
    (call,) = trainer.calls
    assert (call["out"], call["resume"]) == (run_folder, True)
    assert load_config(str(call["recipe"])) == RunDirectory(run_folder).config()


def test_an_interruption_says_how_to_go_on(trilemma, trainer):
    trainer.error = KeyboardInterrupt()
    result = trilemma("train", "digits/standard", "--out", "my runs/a")
    assert result.exit_code == 130
    assert (
        result.stderr
        == "trilemma: interrupted; state saved; resume with: trilemma train 'my runs/a' --resume\n"
    )


def test_a_failed_training_leaves_with_3(trilemma, trainer):
    trainer.error = TrainingFailedError("runs/x: diverged")
    result = trilemma("train", "digits/standard")
    assert (result.exit_code, result.stderr) == (3, "trilemma: error: runs/x: diverged\n")


@pytest.mark.parametrize(
    ("recipe", "folder"),
    [
        ("digits/eb-jdat", "runs/digits-eb-jdat"),
        ("recipes/mine.yaml", "runs/mine"),
        ("mine.yml", "runs/mine"),
    ],
)
def test_default_run_folder(recipe, folder):
    assert default_folder(recipe) == Path(folder)
