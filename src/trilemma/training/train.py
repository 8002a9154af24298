"""``trilemma.train``: trains a classifier from a recipe and writes a run folder."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from trilemma import shares
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.load import load
from trilemma.config.config import Config
from trilemma.config.recipe import load_config
from trilemma.data.image_set import Splits
from trilemma.errors import CheckpointError, ConfigError, DataError, NotStoredError, RunError
from trilemma.files import CLASSIFIER
from trilemma.memory import freed_memory_kept
from trilemma.runs.lock import writing
from trilemma.runs.run_directory import RunDirectory
from trilemma.shares import Share
from trilemma.storing import writable_file, writable_folder
from trilemma.training.build import build_data
from trilemma.training.checkpoint import newest_sound_state
from trilemma.training.checks import check_run
from trilemma.training.devices import check_compiler, check_devices
from trilemma.training.interrupt import stop_on_signals
from trilemma.training.loggers import Log
from trilemma.training.loop import Loop
from trilemma.training.processes import create_fabric, nodes, processes
from trilemma.training.progress import reporter
from trilemma.training.record import Record
from trilemma.training.run import Run
from trilemma.training.start import first_stage, load_start

# Seconds for which a network file system may hide from one machine what another one has written.
FOLDER_PATIENCE = 60.0


def train(
    recipe: str | Config,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    out: str | Path | None = None,
    resume: bool | Literal["auto", "restart"] = False,
    progress: bool = True,
    device: str = "auto",
    log: Log | Sequence[Log] = (),
) -> Run:
    """Trains a classifier, or resumes a run.

    Args:
        recipe: name of a packaged recipe (``digits/eb-jdat``), a YAML file, or a
            :class:`trilemma.config.config.Config`.
        overrides: configuration values, as ``{"training.lr": 0.1}`` or ``["training.lr=0.1"]``.
        out: run folder; ``runs/`` and the name of the recipe by default.
        resume: continue from the last checkpoint; the configuration must be that of the run. ``"auto"`` continues a run
            that exists (a finished one is returned at once) and starts a new one otherwise. A last checkpoint that is
            lost or damaged is replaced by the newest sound state that is stored for rollbacks. Without any, a run that
            has taken steps is refused; ``"restart"`` trains it again from step 0.
        progress: show progress on standard error.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        log: a function ``log(record, step)``, or several, called with a copy of every metric record and event, and with
            images (:mod:`trilemma.training.loggers`, which has adapters for Weights & Biases, MLflow and Trackio). If
            one raises an exception, training goes on; the first one is printed and becomes an event. Not called for
            the first stage of a recipe of two stages.

    Returns:
        The run, with the best finished classifier in eval mode on the CPU.

    Raises:
        UserError: a mistake in the recipe, the data or the folder; the message is one line.
        NotStoredError: a file of the run cannot be written, such as on a full disk. The last state and the best
            classifier stay as they were, and ``resume=True`` continues from that state.
        TrainingFailedError: an alarm after which no remedy is left, such as a further divergence.
        KeyboardInterrupt: SIGINT or SIGTERM, after the state was saved.
    """
    logs = [log] if callable(log) else list(log)
    if not all(callable(one) for one in logs):
        raise ConfigError(f"log: {log!r}; pass a function log(record, step), or a list of them")
    config = recipe if isinstance(recipe, Config) else load_config(recipe, overrides)
    chosen_device = check_devices(config, device)
    name = (
        "run"
        if isinstance(recipe, Config)
        else Path(recipe).stem
        if recipe.endswith((".yaml", ".yml"))
        else recipe
    )
    path = Path(out) if out is not None else Path("runs") / name.replace("/", "-")
    if resume not in (True, False, "auto", "restart"):
        raise ConfigError(f"resume: {resume!r}; pass True, False, 'auto' or 'restart'")
    resuming = bool(resume) and RunDirectory(path).exists()
    if resume in (True, "restart") and not resuming:
        raise RunError(f"{path}: no run to resume; start it without --resume")
    run = RunDirectory.open(path) if resuming else None
    if run is not None:
        run.check_config(config)
        name = _recipe_of(run) or name
        if run.status().get("status") == "finished":
            return Run(path, load(path), run.metrics())
    else:
        RunDirectory.check_unused(path)
    writable_folder(path)
    for file in () if run is None else (run.state_file, run.best_classifier, run.last_classifier):
        writable_file(file, "move it away, then continue the run with --resume (in Python resume=True)")
    check_compiler(config, chosen_device)
    data = build_data(config)
    if run is None or not run.has_begun():
        check_run(config, data)
    fabric = _fabric(config, device)
    # Further processes start here: each runs the program from its beginning up to this line. They too check that the
    # folder is unused, so the folder is created when all have.
    with (
        processes(fabric, config.devices, path) as share,
        writing(path) if share.rank == 0 else nullcontext(),
    ):
        share.wait(fabric.device)
        if run is None and share.rank == 0:
            RunDirectory.create(path, config, name)
        share.wait(fabric.device)
        run = RunDirectory(path)
        _check_same_folder(run, share, fabric.device)
        # The process that wrote before may have finished the run meanwhile.
        if run.status().get("status") != "finished":
            try:
                _run_training(config, run, name, data, fabric, progress, logs, restart=resume == "restart")
            except NotStoredError as error:
                advice = "free disk space, then continue the run with --resume (in Python resume=True)"
                raise NotStoredError(error.path, error.reason, advice) from error
    return Run(path, load(path), run.metrics())


def _check_same_folder(run: RunDirectory, share: Share, device: torch.device) -> None:
    """Checks, in all processes at once, that they see the same run folder: machines have disks of their own.

    Raises:
        RunError: they do not.
    """
    if share.count == 1:
        return
    until = time.monotonic() + FOLDER_PATIENCE
    while not run.exists() and time.monotonic() < until:
        time.sleep(0.5)
    files = (run.config_file, run.environment_file)
    seen = [zlib.crc32(file.read_bytes()) if file.is_file() else 0 for file in files]
    all_seen = share.whole(torch.tensor([seen], device=device))
    if bool((all_seen != all_seen[0]).any()):
        raise RunError(
            f"{run.path}: is not the same folder on all machines; give --out (in Python out=) in a folder that they "
            "share"
        )


def _run_training(
    config: Config,
    run: RunDirectory,
    name: str,
    data: Splits,
    fabric: Any,
    progress: bool,
    logs: Sequence[Log] = (),
    restart: bool = False,
) -> None:
    """Trains a run to its end, from its newest sound state, else from its initial weights.

    Raises:
        DataError: the training images have changed since.
        RunError: the state is of another run, or there is none after steps were taken, unless ``restart``.
    """
    saved = newest_sound_state(run.states())
    if saved is not None:
        _check_same_data(run, saved.state.get("data"), data)
        run.check_state(saved.path, saved.state.get("config"))
    lost = saved is None and run.has_begun()
    if lost and not restart:
        raise RunError(
            f"{run.path}: has taken training steps, but no sound training state is left to resume from; add --restart "
            "(in Python resume='restart') to train it again from step 0"
        )
    # Every process must have looked before the first one writes.
    share = shares.current()
    share.wait(fabric.device)
    if share.rank == 0:
        run.set_aside_damaged()
    start = None if saved else _initial_classifier(config, run, data, fabric, progress, restart)
    run_reporter = reporter(name, progress and share.rank == 0)
    for warning in config.warnings:
        run_reporter.message(f"warning: {warning}")
    try:
        with torch.random.fork_rng(), stop_on_signals() as stop:
            record = Record(run, config, run_reporter, name, share.rank == 0, logs)
            loop = Loop(config, record, data, fabric, stop, start)
            if saved is not None:
                loop.resume(saved)
            elif lost:
                loop.restart()
            # A state is as large as the run's weights, optimiser and replay buffer.
            del saved
            try:
                with freed_memory_kept(fabric.device):
                    loop.train()
            except NotStoredError:
                # The last state is sound. The status may be as impossible to write as the file before.
                with suppress(NotStoredError):
                    record.status(loop.state, "interrupted")
                raise
    finally:
        run_reporter.close()


def _initial_classifier(
    config: Config, run: RunDirectory, data: Splits, fabric: Any, progress: bool, restart: bool
) -> Classifier | None:
    """Returns the classifier with the initial weights; ``None`` for random initialisation.

    A first stage is trained first, or resumed, in a subfolder of the run; ``restart`` as in :func:`_run_training`.
    """
    if config.training.start is None:
        return None
    stage_config = first_stage(config)
    if stage_config is None:
        return load_start(config, data.train)
    stage = run.first_stage
    stage_exists = stage.exists()
    # Every process must have checked before the first one creates the folder.
    share = shares.current()
    share.wait(fabric.device)
    if stage_exists:
        stage.check_config(stage_config)
    elif share.rank == 0:
        RunDirectory.create(stage.path, stage_config, config.training.start)
    share.wait(fabric.device)
    if stage.status().get("status") != "finished":
        _run_training(stage_config, stage, config.training.start, data, fabric, progress, restart=restart)
    return load(stage.path)


def _recipe_of(run: RunDirectory) -> str | None:
    """Returns the name of the recipe that a run was started with, also if its ``environment.json`` is damaged."""
    names = [run.environment().get("recipe")]
    for file in run.classifiers().values() if names == [None] else ():
        with suppress(CheckpointError):
            names.append(CLASSIFIER.read_header(file).content()["about"].get("recipe"))
    return next((str(name) for name in names if name), None)


def _check_same_data(run: RunDirectory, trained_on: str | None, data: Splits) -> None:
    """Checks that the training images are those of the saved state; earlier versions did not store their name.

    Raises:
        DataError: they are others.
    """
    if trained_on not in (None, data.train.name):
        raise DataError(
            f"{run.path}: cannot resume: its training images were {trained_on}, and are {data.train.name} now; put "
            "them back as they were, or start a new run (training.start gives it these weights)"
        )


def _fabric(config: Config, device: str) -> Any:
    """Returns Lightning Fabric for devices, precision and the meeting of the processes, not launched yet."""
    accelerator, _, device_index = device.partition(":")
    # Every CPU device is the same one.
    single = bool(device_index) and accelerator != "cpu"
    machines = nodes(config.devices)
    devices: Any = [int(device_index)] if single else config.devices // machines
    precision: Any = "bf16-mixed" if config.training.precision == "bf16" else "32-true"
    strategy = "ddp" if config.devices > 1 else "auto"
    return create_fabric(
        accelerator=accelerator, devices=devices, num_nodes=machines, precision=precision, strategy=strategy
    )
