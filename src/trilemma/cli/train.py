"""``trilemma train``: one training run, new or resumed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trilemma.cli.common import (
    Device,
    Json,
    Overrides,
    Quiet,
    argument,
    choose_device,
    complete_recipe,
    option,
    percent,
    print_error,
    print_json,
)
from trilemma.cli.exits import INTERRUPTED
from trilemma.config.overrides import parse_overrides
from trilemma.config.recipe import load_config
from trilemma.errors import RunError
from trilemma.printing import print_lines
from trilemma.processes import started_rank
from trilemma.runs.run_directory import RunDirectory, default_folder
from trilemma.units import MAX_SEED

RECIPE_HELP = (
    "name of a packaged recipe (`trilemma list recipes`), a YAML file, or with --resume a run folder"
)
Resume = bool | Literal["restart"]
RESTART_HELP = "as --resume, and begin again at step 0 if no sound state is left"


def train(
    recipe: Annotated[str, argument("RECIPE", RECIPE_HELP, autocompletion=complete_recipe)],
    overrides: Overrides = None,
    out: Annotated[Path | None, option("--out DIR", "run folder  [default: runs/RECIPE]")] = None,
    resume: Annotated[bool, option("--resume", "resume the run in that folder")] = False,
    restart: Annotated[bool, option("--restart", RESTART_HELP)] = False,
    seed: Annotated[int | None, option("--seed N", "short for training.seed=N", min=0, max=MAX_SEED)] = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Trains a classifier and writes a run folder.

    Ctrl-C saves the state and exits; --resume continues the run. On a CPU, a resumed run gives bit-identical results.

    \b
    Examples:
      trilemma train digits/eb-jdat
      trilemma train cifar10/pgd-at-small data.root=data/cifar10 training.max_minutes=20 --out runs/small
      trilemma train runs/small --resume
    """
    folder, resume = Path(recipe), resume or restart
    if resume and out is None and folder.is_dir():
        out, recipe = folder, str(RunDirectory.open(folder).config_file)
    out = out or default_folder(recipe)
    settings = parse_overrides([*(overrides or ()), *([] if seed is None else [f"training.seed={seed}"])])
    # Reports a mistake in the config before torch and the data are loaded.
    load_config(recipe, settings)
    if resume:
        RunDirectory.open(out)
    elif RunDirectory(out).exists():
        raise RunError(f"{out}: already contains a run; add --resume to continue it, or choose another --out")
    how: Resume = "restart" if restart else resume
    run_training(recipe, settings, out, resume=how, device=device, quiet=quiet)
    # Of several processes, only the first prints.
    if started_rank():
        return
    result = RunDirectory(out).summary()
    if as_json:
        print_json(result)
    else:
        _print_summary(result)


def run_training(
    recipe: str, settings: Mapping[str, Any], out: Path, *, resume: Resume, device: str | None, quiet: bool
) -> None:
    """Trains; an interruption exits with code 130 and prints the command that resumes the run."""
    from trilemma.training import train as training

    chosen = str(choose_device(device))
    try:
        training.train(recipe, settings, out=out, resume=resume, progress=not quiet, device=chosen)
    except KeyboardInterrupt:
        run = RunDirectory(out)
        saved = any(path.is_file() for path in (*run.states(), *run.first_stage.states()))
        outcome = (
            f"state saved; resume with: trilemma train {shlex.quote(str(out))} --resume"
            if saved
            else "before the first step"
        )
        print_error(f"interrupted; {outcome}", prefix="")
        raise typer.Exit(INTERRUPTED) from None


def _print_summary(result: dict[str, Any]) -> None:
    path = shlex.quote(result["run"])
    print_lines(f"{result['status']}: {result['run']}")
    if result["held_out_clean"] is not None:
        clean, robust = percent(result["held_out_clean"]), percent(result["held_out_pgd10"])
        under_attack = "" if robust is None else f", PGD-10 {robust}"
        chance = percent(result["held_out_chance"])
        largest = "" if chance is None else f" (largest class: {chance})"
        print_lines(
            f"held-out accuracy (epoch {result['best_epoch']:g}): clean {clean}{under_attack}{largest}"
        )
    for index, command in enumerate(("evaluate", "generate", "diagnose", "report")):
        print_lines(f"{'     ' if index else 'next:'} trilemma {command} {path}")
