"""Part ``files``: every file of a run folder damaged in every way, under the commands that read it."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_suite import results
from benchmarks.fault_suite.case import LONGEST_SECONDS, Case, Ended, Judge, must_refuse
from benchmarks.fault_suite.damage import MISSING, copy_of, ways
from benchmarks.fault_suite.process import run

RECIPE = (
    "digits/pgd-at", "network.width=4", "training.epochs=3", "training.log_every=5", "training.ema=0.9",
    "training.held_out_images=50", "training.evaluate_every=1", "training.checkpoint_minutes=0.0001",
    "attack.steps=3",
)  # fmt: skip
# The step after which the unfinished run was interrupted; it has 27.
_INTERRUPTED = 15
SAMPLES = "class-pca_momentum_joint_2"
FINISHED, UNFINISHED = "finished", "unfinished"


@dataclass(frozen=True)
class Reader:
    """A command that reads a run.

    Attributes:
        arguments: of the command; the run is the folder ``run``.
        source: the run folder that it is given.
        read: reads its result.
        files: the files of the run that it reads.
    """

    arguments: tuple[str, ...]
    source: str
    read: Callable[[Ended], Any]
    files: tuple[str, ...]


_STATES = ("checkpoints/last/state.safetensors", f"checkpoints/last/state-{_INTERRUPTED:09d}.safetensors")
_BEST, _LAST = (f"checkpoints/{name}/classifier.safetensors" for name in ("best", "last"))
_ABOUT = ("config.yaml", "environment.json", "status.json", "metrics.jsonl", "events.jsonl")
_ROWS = ("evaluation/clean.json", "evaluation/last/pgd-20.json")
_PAGE = (
    "figures/energies.json", "figures/energies.npz", "figures/energy-histograms.png", f"samples/{SAMPLES}.json",
    f"samples/{SAMPLES}.png",
)  # fmt: skip
# Folders of results.
_RESULTS = ("evaluation/", "samples/", "figures/")
_QUICK = ("--json", "-q")


def _exported(ended: Ended) -> Any:
    """The weights that ``export`` wrote: in the run, or in the current folder if a warning says that it is no run."""
    is_run = not any("config.yaml" in line for line in ended.remarks)
    return results.of_weights("run/export/classifier.pt" if is_run else "classifier.pt")(ended)


READERS = {
    "evaluate": Reader(
        ("evaluate", "run", "--protocol", "clean", "--images", "40", *_QUICK), FINISHED, results.of_json,
        (*_ABOUT, *_ROWS, _BEST, _LAST),
    ),
    "predict": Reader(
        ("predict", "run", "digit.png", "--json"), FINISHED, results.of_json,
        ("config.yaml", "status.json", "metrics.jsonl", _BEST),
    ),
    "report": Reader(
        ("report", "run"), FINISHED, results.of_page("run/report.html"),
        (*_ABOUT, *_ROWS, *_PAGE, _BEST, _LAST),
    ),
    "compare": Reader(
        ("compare", "run", "--format", "json"), FINISHED, results.of_json,
        (*_ABOUT, *_ROWS, f"samples/{SAMPLES}.json", _BEST, _LAST),
    ),
    "monitor": Reader(
        ("monitor", "run", "--json"), FINISHED, results.of_json, ("config.yaml", "metrics.jsonl", "events.jsonl")
    ),
    "export": Reader(
        ("export", "run", "--state-dict", "-q"), FINISHED, _exported,
        ("config.yaml", "metrics.jsonl", _BEST),
    ),
    "generate": Reader(
        ("generate", "run", "--per-class", "1", "--steps", "2", *_QUICK), FINISHED, results.of_json,
        ("config.yaml", _BEST, f"samples/{SAMPLES}.json", f"samples/{SAMPLES}.npz"),
    ),
    "train --resume": Reader(
        ("train", "run", "--resume", *_QUICK), UNFINISHED, results.of_run("run"), (*_ABOUT, *_STATES, _BEST),
    ),
}  # fmt: skip


def make_runs(folder: Path) -> None:
    """Trains the runs that are damaged, unless they exist: a finished one with all results, and an interrupted one."""
    done = folder / "done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    succeed(lambda: stop_at(_INTERRUPTED, RECIPE[0], RECIPE[1:], UNFINISHED), folder)
    copy_of(folder / UNFINISHED, folder / FINISHED)
    for arguments in (
        ("train", FINISHED, "--resume", "-q"),
        ("evaluate", FINISHED, "--images", "40", "-q"),
        ("diagnose", FINISHED, "--images", "20", "--attack", "pgd", "-q"),
        ("generate", FINISHED, "--per-class", "1", "--steps", "2", "-q"),
    ):
        succeed(arguments, folder)
    done.touch()


def succeed(
    action: tuple[str, ...] | Callable[[], Any],
    folder: Path,
    codes: tuple[int, ...] = (0,),
    timeout: float = LONGEST_SECONDS,
) -> Ended:
    """Runs an action that must end with one of some exit codes, since all judgements rest on it."""
    ended = run(action, folder, timeout=timeout)
    if isinstance(ended, Ended) and ended.timed_out:
        raise SystemExit(f"the sound input takes more than {timeout:g} s; give this machine less to do")
    if isinstance(ended, str) or ended.code not in codes:
        raise SystemExit(f"the sound input fails: {ended if isinstance(ended, str) else ended.stderr}")
    return ended


def stop_at(last: int, recipe: str, overrides: tuple[str, ...], out: str) -> None:
    """Trains to a step, in a process of its own, as Ctrl-C leaves it."""
    from trilemma.training.train import train

    def stop(record: dict[str, Any], step: int) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        train(recipe, overrides, out=out, progress=False, log=stop)
    except KeyboardInterrupt:
        return
    raise SystemExit("the run was not interrupted")


def nothing(folder: Path) -> None:
    """Prepares nothing."""


def digit(file: Path) -> None:
    """Writes an image file of a digit."""
    from PIL import Image

    from trilemma.data.sources import load_splits

    Image.fromarray(load_splits("digits").test.images[0, 0].numpy()).save(file)


class Sound:
    """The sound runs, and the result of every reader for them, computed on first use.

    Args:
        folder: where the runs are made, or were made before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_runs(folder)
        self._results: dict[str, Any] = {}

    def prepare(self, reader: Reader, target: Path) -> None:
        """Writes what a reader is run on into an empty folder."""
        copy_of(self.folder / reader.source, target / "run")
        if "digit.png" in reader.arguments:
            digit(target / "digit.png")

    def result(self, name: str) -> Any:
        """The result of a reader for the sound run; it is computed twice, since it must not depend on the moment."""
        if name not in self._results:
            reader = READERS[name]
            found = []
            for attempt in range(2):
                place = self.folder / f"sound-{attempt}"
                place.mkdir()
                self.prepare(reader, place)
                found.append(reader.read(succeed(reader.arguments, place)))
                remove(place)
            if found[0] != found[1]:
                difference = results.first_difference(*found)
                raise SystemExit(f"{name}: two results of the same input differ: {difference}")
            self._results[name] = found[0]
        return self._results[name]


def remove(folder: Path) -> None:
    """Removes a folder with its content."""
    shutil.rmtree(folder)


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """The cases; of the short form every 60th."""
    sound = Sound(folder)
    every = [
        (name, file, way) for name, reader in READERS.items() for file in reader.files for way in ways(file)
    ]
    for name, file, way in every[::60] if short else every:
        yield _case(sound, name, file, way)
    mixed = [*_mixed(sound)]
    yield from mixed[::4] if short else mixed


def _other_classifier(change: Callable[[Any, dict[str, Any]], None]) -> Callable[[Path], None]:
    """Puts another classifier, of the same step, in the place of the best one."""

    def mix(run_folder: Path) -> None:
        from trilemma.files import CLASSIFIER

        file = run_folder / _BEST
        header, tensors = CLASSIFIER.read(file)
        content = header.content()
        change(tensors, content)
        CLASSIFIER.write(file, tensors, content)

    return mix


def _older_weights(tensors: Any, header: dict[str, Any]) -> None:
    """Other weights, in a file as earlier versions wrote them."""
    first = min(name for name in tensors if name.startswith("network.") and tensors[name].is_floating_point())
    tensors[first].mul_(1.01)
    header["weights"] = None


def _other_names(tensors: Any, header: dict[str, Any]) -> None:
    header["class_names"] = header["class_names"][::-1]


def _remove(*names: str) -> Callable[[Path], None]:
    def mix(run_folder: Path) -> None:
        for name in names:
            place = run_folder / name
            remove(place) if place.is_dir() else place.unlink()

    return mix


def _copied_state(name: str) -> Callable[[Path], None]:
    """Copies the last state under another name."""

    def mix(run_folder: Path) -> None:
        shutil.copyfile(run_folder / _STATES[0], run_folder / "checkpoints" / "last" / name)

    return mix


def _running(run_folder: Path) -> None:
    """The status of a process that was killed before it wrote that it had finished."""
    from trilemma.runs.run_directory import RunDirectory

    found = RunDirectory(run_folder)
    found.write_status(**{**found.status(), "status": "running"})
    (run_folder / _LAST).unlink()


def _mixed(sound: Sound) -> Iterator[Case]:
    """Files that are whole, and of another run or time; several files that are lost at once."""

    def finished(run_folder: Path) -> None:
        shutil.copyfile(sound.folder / FINISHED / "status.json", run_folder / "status.json")

    def same(name: str) -> Judge:
        return lambda ended: results.same_as(sound.result(name), READERS[name].read)(ended)

    def said(text: str) -> Judge:
        return lambda ended: "" if any(text in line for line in ended.remarks) else f"no word of {text}"

    def stale(ended: Ended) -> str:
        return "" if '"stale": true' in ended.stdout else "rows of another classifier are not marked"

    resume = "train --resume"
    copied, misnamed = (_copied_state(f"state-{name}.safetensors") for name in ("000000015 (1)", "000000003"))
    table: list[tuple[str, str, str, Callable[[Path], None], Judge]] = [
        ("the status of a finished run", resume, UNFINISHED, finished, same(resume)),
        ("the status of a finished run", "compare", UNFINISHED, finished, said("status.json: says finished")),
        ("the status of a finished run", "report", UNFINISHED, finished, said("status.json: says finished")),
        ("the status of a running one", resume, FINISHED, _running, same(resume)),
        ("no status", resume, FINISHED, _remove("status.json", _LAST), same(resume)),
        ("a copy of a state", resume, UNFINISHED, copied, same(resume)),
        ("a copy of a state", "compare", FINISHED, copied, same("compare")),
        ("a state of another step", resume, UNFINISHED, misnamed, same(resume)),
        ("older weights", "compare", FINISHED, _other_classifier(_older_weights), stale),
        ("other class names", "compare", FINISHED, _other_classifier(_other_names), stale),
        ("no checkpoints", "predict", FINISHED, _remove("checkpoints"), must_refuse),
        ("no checkpoints", "evaluate", FINISHED, _remove("checkpoints"), must_refuse),
        ("no checkpoints", resume, UNFINISHED, _remove("checkpoints"), must_refuse),
        ("no best and no metrics", "predict", FINISHED, _remove(_BEST, "metrics.jsonl"), must_refuse),
        ("no logs", "compare", FINISHED, _remove("metrics.jsonl", "events.jsonl"), said("events.jsonl: is missing")),
        ("no logs", resume, UNFINISHED, _remove("metrics.jsonl", "events.jsonl"), said("metrics.jsonl: is missing")),
    ]  # fmt: skip
    for title, name, source, mix, judge in table:

        def prepare(
            target: Path, name: str = name, source: str = source, mix: Callable[[Path], None] = mix
        ) -> None:
            sound.prepare(dataclasses.replace(READERS[name], source=source), target)
            mix(target / "run")

        yield Case(f"{title}: {name}", prepare, READERS[name].arguments, judge)


def _case(sound: Sound, name: str, file: str, way: str) -> Case:
    reader = READERS[name]
    title = f"{file}, {way}: {name}"

    def prepare(target: Path) -> None:
        sound.prepare(reader, target)
        ways(file)[way](target / "run" / file, random.Random(title))

    # Nothing else says that the result existed, and to delete it is a way to repeat the measurement.
    may_lack = way == MISSING and (file.startswith(_RESULTS) or file == _LAST)

    def judge(ended: Ended) -> str:
        return results.same_as(sound.result(name), reader.read, file, may_lack)(ended)

    # A command that computes a result shows it, also if a folder is where it would be stored.
    codes = (2, 4) if way == "a folder in its place" else (2,)
    return Case(title, prepare, reader.arguments, judge, codes, _names(file))


def _names(file: str) -> Callable[[Ended], str]:
    """The judge of a refusal, which must say what is damaged."""

    def judge(ended: Ended) -> str:
        # A folder without its configuration is no run.
        parts = (Path(file).name, *Path(file).parts[:1], "run:")
        return "" if any(part in ended.error for part in parts) else f"does not name {file}: {ended.error}"

    return judge
