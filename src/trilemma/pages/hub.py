"""``trilemma.push`` and ``trilemma.pull``: runs and classifiers to and from the Hugging Face hub."""

from __future__ import annotations

import copy
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import yaml

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.hub import CLASSIFIER_FILE
from trilemma.classifier.load import load
from trilemma.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    NotStoredError,
    RunError,
    describe,
)
from trilemma.evaluation.source import Source, find_run, open_source
from trilemma.files import replacing, write_text
from trilemma.pages.card import model_card
from trilemma.runs.read import read_contents, read_rows
from trilemma.runs.records import read_config, write_json
from trilemma.runs.run_directory import RunDirectory
from trilemma.storing import ONLY_WRITING, not_stored, temporary_folder, writable_folder

# Kinds of events whose messages hold no path.
_EVENTS = ("alarm", "remedy", "restart", "stop")


def push(
    source: Source,
    repository: str,
    *,
    license: str | None = None,
    private: bool = False,
    checkpoint: Literal["best", "last"] = "best",
    results: str | Path | None = None,
    out: str | Path | None = None,
) -> str:
    """Uploads a run or a classifier to the Hugging Face hub, with a model card made from its results.

    The repository gets ``classifier.safetensors``, which ``trilemma.load("hub:OWNER/NAME")`` reads, and ``README.md``,
    the card. Of a run it also gets the configuration, the metrics, the events and the result rows, so that
    :func:`pull` gives a run folder. Paths of this machine (``data.root``, ``training.start``, the command line) are
    left out. Log in first: ``hf auth login``, or set ``HF_TOKEN``.

    Args:
        source: a run folder, a classifier file, a :class:`Run` or a :class:`Classifier`.
        repository: ``OWNER/NAME``; created if it does not exist.
        license: identifier of the licence on the card, such as ``mit``.
        private: whether a new repository is private.
        checkpoint: checkpoint of a run: best on held-out images (the last one if there is no best), or last.
        results: a run or a folder of result rows for the card; by default the run.
        out: write the files to this new folder instead, and upload nothing.

    Returns:
        The address of the commit, or the path ``out``.

    Raises:
        ConfigError: a name of another form, or a plain network.
        MissingExtraError: huggingface_hub is not installed.
        CheckpointError: the upload failed.
        RunError: ``out`` exists already.
        NotStoredError: the files cannot be written.
    """
    _check_name(repository)
    hub = None if out is not None else _package(repository)
    run = find_run(source)
    clf = copy.copy(open_source(source) if run is None else load(run.path, checkpoint=checkpoint))
    # Where the classifier was loaded from is a path of this machine.
    clf.about = {key: value for key, value in clf.about.items() if key != "source"}
    folder_of_rows = results or (None if run is None else run.path)
    contents = None if folder_of_rows is None else read_contents(folder_of_rows)
    card = model_card(repository, clf, contents, license)
    if hub is None:
        folder = Path(str(out))
        if folder.exists():
            raise RunError(f"{folder}: already exists; refusing to overwrite, choose another --out")
        writable_folder(folder)
        try:
            _write(folder, clf, run, card)
        except NotStoredError:
            # Else the next attempt would be refused.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return str(folder)
    with temporary_folder() as folder_name:
        folder = Path(folder_name)
        _write(folder, clf, run, card)
        return _upload(hub, repository, folder, private)


def pull(repository: str, out: str | Path) -> Path:
    """Downloads a repository that :func:`push` wrote; of a run, the result is a run folder.

    Args:
        repository: ``OWNER/NAME``, or ``OWNER/NAME@REVISION`` with a branch, tag or commit.
        out: a new folder.

    Returns:
        The folder; :func:`trilemma.load`, ``report`` and ``compare`` read it if it holds a run.

    Raises:
        ConfigError: a name of another form.
        MissingExtraError: huggingface_hub is not installed.
        CheckpointError: the download failed.
        RunError: ``out`` exists already.
        NotStoredError: ``out`` cannot be written.
    """
    name, _, revision = repository.partition("@")
    _check_name(name)
    hub, folder = _package(name), Path(out)
    if folder.exists():
        raise RunError(f"{folder}: already exists; refusing to overwrite, choose another --out")
    writable_folder(folder)
    try:
        hub.snapshot_download(name, revision=revision or None, local_dir=str(folder))
    # The package raises errors of its HTTP library too, which depends on its version.
    except Exception as error:
        # Else the next attempt would be refused.
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in ONLY_WRITING:
            raise not_stored(folder, error) from error
        raise CheckpointError(f"hub:{repository}: cannot be downloaded ({describe(error)})") from error
    # Kept by the package for later downloads into the same folder.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder


def _check_name(repository: str) -> None:
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ConfigError(f"{repository}: write OWNER/NAME, the name of a repository on the hub")


def _package(repository: str) -> ModuleType:
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtraError(
            f"{repository}: the hub needs huggingface_hub, which cannot be imported ({error}); "
            "pip install -e '.[hub]' in the clone"
        ) from error


def _upload(hub: Any, repository: str, folder: Path, private: bool) -> str:
    api = hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=str(folder), commit_message="Upload by trilemma"
        )
    # The package raises errors of its HTTP library too, which depends on its version.
    except Exception as error:
        raise CheckpointError(
            f"{repository}: cannot be uploaded ({describe(error)}); log in with `hf auth login`, and check the name"
        ) from error
    return str(commit.commit_url)


def _write(folder: Path, clf: Classifier, run: RunDirectory | None, card: str) -> None:
    """Writes the files of the repository to ``folder``."""
    clf.save(folder / CLASSIFIER_FILE)
    write_text(folder / "README.md", card)
    if run is None:
        return
    pushed = RunDirectory(folder)
    if metrics := run.metrics():
        pushed.write_metrics(metrics)
    for file, row in read_rows(run.path / "evaluation"):
        write_json(folder / file.relative_to(run.path), row)
    for event in run.events():
        if event["kind"] in _EVENTS:
            pushed.add_event(event)
    # Last, since it records the numbers of lines.
    if status := run.status():
        pushed.write_status(**status)
    # The hub stores the same content once.
    with replacing(pushed.best_classifier) as temporary:
        shutil.copyfile(folder / CLASSIFIER_FILE, temporary)
    config = read_config(run.path)
    config["data"]["root"] = None
    if Path(str(config["training"].get("start"))).exists():
        config["training"]["start"] = None
    pushed.write_config(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    pushed.write_environment({key: value for key, value in run.environment().items() if key != "command"})
