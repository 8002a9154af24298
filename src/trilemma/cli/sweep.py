"""``trilemma sweep``: a training run per combination of values, one table and one comparison page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from trilemma.cli.common import (
    Device,
    Json,
    Quiet,
    Recipe,
    argument,
    complete_key,
    option,
    print_error,
    print_json,
    print_progress,
)
from trilemma.cli.compare import print_comparison
from trilemma.cli.exits import INTERRUPTED, TRAINING_FAILED
from trilemma.config.overrides import parse_overrides
from trilemma.errors import ConfigError
from trilemma.pages.compare import as_text
from trilemma.pages.table import as_tree
from trilemma.printing import print_block, print_lines
from trilemma.sweeps.plan import MAX_RUNS
from trilemma.sweeps.sweep import sweep as run_sweep

Values = Annotated[
    list[str],
    argument(
        "key=values...",
        "values of config keys: a,b or the integers a..b, or one value for all runs",
        autocompletion=complete_key,
    ),
]
Jobs = Annotated[
    int | None,
    option("--jobs N", "runs at once, which share the cores  [default: 1; on a cluster all]", min=1),
]
Slurm = Annotated[
    list[str] | None, option("--slurm KEY=VALUE", "repeatable: option of the jobs, such as partition=gpu")
]
Evaluate = Annotated[
    list[str] | None,
    option("--evaluate PROTOCOLS", "evaluate each run by these protocols, separated by commas"),
]
Images = Annotated[
    int | None, option("--images N", "number of test images for --evaluate  [default: all]", min=1)
]
Form = Annotated[
    Literal["markdown", "csv", "latex"] | None, option("--format", "format of the table on standard output")
]


def sweep(
    recipe: Recipe,
    values: Values,
    out: Annotated[
        Path | None, option("--out DIR", "folder of the runs  [default: runs/RECIPE-sweep]")
    ] = None,
    jobs: Jobs = None,
    launcher: Annotated[Literal["local", "slurm"], option("--launcher", "where the runs are made")] = "local",
    slurm: Slurm = None,
    evaluate: Evaluate = None,
    images: Images = None,
    form: Form = None,
    max_runs: Annotated[int, option("--max-runs N", "refuse more combinations", min=1)] = MAX_RUNS,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Trains all combinations of values and compares them.

    Commas separate values, and a..b stands for the integers from a to b; seed is short for training.seed. Each
    combination is a run in a folder of its own, named by its values. Repeating the command skips trained runs and
    resumes interrupted ones; further values of the same keys add runs. A run that fails is listed, and the others go on
    (exit code 3 at the end). The table has mean, standard deviation, lowest and highest value over the seeds: of the
    held-out accuracies and, with --evaluate, of protocols on test images. DIR/comparison.html compares all runs.

    \b
    Examples:
      trilemma sweep digits/trades seed=0..4 method.beta=1,6 --jobs 2
      trilemma sweep digits/pgd-at seed=0..4 method=pgd-at,trades --evaluate clean,pgd-20
      trilemma sweep digits/pgd-at seed=0,1 threat.radius=0.1,0.2 training.epochs=5 --format latex
      trilemma sweep cifar10/pgd-at seed=0..2 --launcher slurm --slurm partition=gpu --slurm time=600
    """
    if slurm and launcher != "slurm":
        raise ConfigError("--slurm: needs --launcher slurm")
    options = parse_overrides(slurm or ())
    protocols = [name.strip() for text in evaluate or () for name in text.split(",")]
    try:
        result = run_sweep(
            recipe, values, out, jobs=jobs, launcher=launcher, slurm=options, evaluate=protocols, images=images,
            device=device or "auto", progress=not quiet, max_runs=max_runs,
        )  # fmt: skip
    except KeyboardInterrupt:
        print_error(
            "interrupted; trained runs and the state of the others are kept, repeat the command to resume",
            prefix="",
        )
        raise typer.Exit(INTERRUPTED) from None
    for name, line in result.failed.items():
        print_progress(f"failed: {name}: {line}")
    if as_json:
        print_json(
            {
                "sweep": str(result.path),
                "runs": [str(run) for run in result.runs],
                "failed": dict(result.failed),
                "table": as_tree(result.table),
                "page": None if result.page is None else str(result.page),
            }
        )
    elif form is not None:
        print_block(as_text(result.table, form))
    elif result.runs:
        print_comparison(result.table)
        if result.page is not None:
            print_lines(result.page)
    if result.failed:
        count, path = len(result.failed), shlex.quote(str(result.path))
        print_error(
            f"{count} run{'s' if count > 1 else ''} of {path} failed, listed above; repeat the command to resume them "
            "(a run that failed after every remedy: delete its folder first)"
        )
        raise typer.Exit(TRAINING_FAILED)
