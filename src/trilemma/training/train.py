"""``trilemma.train``: a recipe becomes a run folder with a finished classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.config import Config
from trilemma.config.recipe import load_config
from trilemma.data.image_set import Splits
from trilemma.errors import ConfigError, RunError
from trilemma.methods.creation import create_from_config
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.build import build_data
from trilemma.training.interrupt import stop_on_signals
from trilemma.training.loop import Loop
from trilemma.training.progress import reporter
from trilemma.training.record import Record
from trilemma.training.start import check_start, find_start, first_stage


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: its folder.
        classifier: the best finished classifier.
        metrics: the lines of ``metrics.jsonl``.
    """

    path: Path
    classifier: Classifier
    metrics: list[dict[str, Any]]


def train(
    recipe: str | Config,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    device: str = "auto",
) -> Run:
    """Trains a classifier, or goes on with a run that was interrupted.

    Args:
        recipe: a packaged name (``digits/eb-jdat``), a YAML file, or a :class:`trilemma.config.config.Config`.
        overrides: ``{"training.lr": 0.1}`` or ``["training.lr=0.1"]``.
        out: run folder; ``runs/`` and the recipe's name by default.
        resume: go on from the last checkpoint; the configuration must be the one saved there.
        progress: show progress on standard error.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Returns:
        The run, with the best finished classifier in eval mode on the CPU.

    Raises:
        UserError: a mistake in the recipe, the data or the folder, in one line.
        TrainingFailedError: diverged after every remedy.
        KeyboardInterrupt: SIGINT or SIGTERM, after the state was saved.
    """
    config = recipe if isinstance(recipe, Config) else load_config(recipe, overrides)
    name = (
        "run"
        if isinstance(recipe, Config)
        else Path(recipe).stem
        if recipe.endswith((".yaml", ".yml"))
        else recipe
    )
    path = Path(out) if out is not None else Path("runs") / name.replace("/", "-")
    continuing = resume and (path / "config.yaml").is_file()
    if resume and not continuing:
        raise RunError(f"{path}: no run to resume; start it without --resume")
    run = RunDirectory.open(path) if continuing else None
    if run is not None:
        _same_config(run, config)
        name = run.environment().get("recipe") or name
        if run.status().get("status") == "finished":
            return Run(path, load(path), run.metrics())
    else:
        RunDirectory.check_unused(path)
    data = build_data(config)
    if run is None or not run.state_file.is_file():
        check_start(config, data.train)
        create_from_config(config).check(data.train)
    # Further processes are started here and come to this same line by running the program from its beginning,
    # so the folder, which they too must find free, is made after it.
    fabric = _fabric(config, device)
    if run is None and fabric.is_global_zero:
        RunDirectory.create(path, config, name)
    fabric.barrier()
    run = RunDirectory(path)
    _carry_out(config, run, name, data, fabric, progress)
    return Run(path, load(path), run.metrics())


def _carry_out(
    config: Config, run: RunDirectory, name: str, data: Splits, fabric: Any, progress: bool
) -> None:
    """Trains from the run's saved state, or from the weights it is to begin with."""
    begun = run.state_file.is_file()
    start = None if begun else _start(config, run, data, fabric, progress)
    shown = reporter(name, progress and fabric.is_global_zero)
    for warning in config.warnings:
        shown.message(f"warning: {warning}")
    try:
        with torch.random.fork_rng(), stop_on_signals() as stop:
            record = Record(run, config, shown, name, writes=fabric.is_global_zero)
            loop = Loop(config, record, data, fabric, stop, start)
            if begun:
                loop.resume()
            loop.train()
    finally:
        shown.close()


def _start(config: Config, run: RunDirectory, data: Splits, fabric: Any, progress: bool) -> Classifier | None:
    """The classifier whose weights the run begins with; a first stage is trained, or gone on with, in its folder."""
    if config.training.start is None:
        return None
    stage = first_stage(config)
    if stage is None:
        return find_start(config.training.start)
    part = run.first_stage
    made = part.config_file.is_file()
    fabric.barrier()  # every process has looked before the first one makes it
    if made:
        _same_config(part, stage)
    elif fabric.is_global_zero:
        RunDirectory.create(part.path, stage, config.training.start)
    fabric.barrier()
    if part.status().get("status") != "finished":
        _carry_out(stage, part, config.training.start, data, fabric, progress)
    return load(part.path)


def _same_config(run: RunDirectory, config: Config) -> None:
    saved = run.config().model_dump(mode="json")
    asked = config.model_dump(mode="json")
    for tree in (saved, asked):  # what changes no step: where it runs, and for how long
        del tree["devices"], tree["training"]["max_minutes"]
    for section in asked:
        if asked[section] != saved[section]:
            raise ConfigError(
                f"{run.path}: resuming with another {section!r} than the run was started with "
                f"(saved: {saved[section]}, asked: {asked[section]}); use the run's own config.yaml, or a new --out"
            )


def _fabric(config: Config, device: str) -> Any:
    """Lightning Fabric for devices, precision and reduction; imported late, for it takes seconds."""
    from lightning_fabric import Fabric

    kind, _, place = device.partition(":")
    devices: Any = [int(place)] if place else config.devices
    precision: Any = "bf16-mixed" if config.training.precision == "bf16" else "32-true"
    strategy = "ddp" if config.devices > 1 else "auto"
    fabric = Fabric(accelerator=kind, devices=devices, precision=precision, strategy=strategy)
    fabric.launch()
    return fabric
