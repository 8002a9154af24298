"""Part ``rough``: data that change under a run, clocks that are set back, run folders that move to other machines."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.fault_suite import results
from benchmarks.fault_suite.case import Case, Ended, Judge, must_refuse
from benchmarks.fault_suite.damage import copy_of
from benchmarks.fault_suite.files import FINISHED, READERS, UNFINISHED, Sound, stop_at, succeed
from benchmarks.fault_suite.process import exit_code

_STOP_AT = 4
_RECIPE = """
data: {name: NAME, root: ROOT}
network: {name: small-resnet, width: 4, depth: 8}
method: {name: standard}
threat: {norm: linf, radius: 1/10}
training: {epochs: 4, batch_size: 16, log_every: 1, held_out_images: 10, checkpoint_minutes: 0.0001}
"""
_FORMATS = {"arrays": "data.npz", "a folder": "photos", "a zip": "photos.zip", "shards": "shards"}
_PER_SHARD = 20


def _write_data(folder: Path, name: str, seed: int = 0) -> None:
    """Writes 60 images of two classes as arrays, as a folder or as a zip."""
    chance = np.random.default_rng(seed)
    images = chance.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    if name == "data.npz":
        np.savez(folder / name, images=images, labels=np.arange(60) % 2)
        return
    from PIL import Image

    photos = folder / "photos"
    for number, image in enumerate(images):
        file = photos / "ab"[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    if name.endswith(".zip"):
        shutil.make_archive(str(photos), "zip", photos)
        shutil.rmtree(photos)
    if name == "shards":
        from trilemma.data.sharding import shard_source

        shard_source(str(photos), folder / name, per_shard=_PER_SHARD)
        shutil.rmtree(photos)


def _remove(file: Path) -> None:
    shutil.rmtree(file) if file.is_dir() else file.unlink()


def _other(file: Path) -> None:
    _remove(file)
    _write_data(file.parent, file.name, seed=1)


def _first(folder: Path) -> Path:
    """The first image or shard."""
    return min([*folder.rglob("*.png"), *folder.rglob("*.tar")])


def _cut(file: Path) -> None:
    if file.is_dir():
        _cut(_first(file))
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _fewer(file: Path) -> None:
    _first(file).unlink()


def _more(file: Path) -> None:
    first = _first(file)
    shutil.copyfile(first, first.with_name("new.png"))


def _other_class(file: Path) -> None:
    first = _first(file)
    first.rename(file / "b" / "moved.png")


def _other_pixels(file: Path) -> None:
    """Other pixels, under the same name."""
    first = _first(file)
    first.write_bytes(max(file.rglob(f"*{first.suffix}")).read_bytes())


_CHANGES: dict[str, dict[str, Callable[[Path], None]]] = {
    "arrays": {"removed": _remove, "others": _other, "cut in half": _cut},
    "a zip": {"removed": _remove, "others": _other, "cut in half": _cut},
    "a folder": {
        "removed": _remove, "others": _other, "one cut in half": _cut, "one fewer": _fewer, "one more": _more,
        "one in another class": _other_class, "one with other pixels": _other_pixels,
    },
    "shards": {
        "removed": _remove, "others": _other, "one cut in half": _cut, "one fewer": _fewer,
        "one with other pixels": _other_pixels,
    },
}  # fmt: skip


def _data_cases() -> Iterator[Case]:
    for kind, changes in _CHANGES.items():
        for title, change in changes.items():
            # A shard is compared with its checksum when it is first read, after the run has gone on.
            yield Case(f"{kind}, {title} under a run: train --resume", _begun(kind, change),
                       ("train", "run", "--resume", "-q"), _said,
                       may_leave=r"(^|/)(\.lock|events\.jsonl)$")  # fmt: skip


def _write_all(folder: Path, kind: str) -> None:
    """Writes data and a recipe that trains on them."""
    name = _FORMATS[kind]
    _write_data(folder, name)
    recipe = _RECIPE.replace("NAME", "shards" if kind == "shards" else "folder").replace("ROOT", name)
    (folder / "new.yaml").write_text(recipe)


def _begun(kind: str, change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Prepares an interrupted run whose data have changed since."""

    def prepare(folder: Path) -> None:
        _write_all(folder, kind)
        succeed(lambda: stop_at(_STOP_AT, "new.yaml", (), "run"), folder)
        change(folder / _FORMATS[kind])

    return prepare


def _train(kind: str, change: Callable[[Path], None] = lambda data: None) -> None:
    """Trains on data that change after a step."""
    from trilemma.training.train import train

    def log(record: dict[str, Any], step: int) -> None:
        if step == _STOP_AT and record["kind"] == "step":
            change(Path(_FORMATS[kind]))

    train("new.yaml", out="run", progress=False, log=log)


_EVALUATE = ("evaluate", "run", "--protocol", "clean", "--protocol", "pgd-20", "--json", "-q")


def _evaluate(kind: str, change: Callable[[Path], None]) -> None:
    """Evaluates on data that change after the first forward pass."""
    import torch

    waiting = [change]

    def hook(*_: object) -> None:
        if waiting:
            waiting.pop()(Path(_FORMATS[kind]))

    torch.nn.modules.module.register_module_forward_hook(hook)
    sys.exit(exit_code(_EVALUATE))


def _running_cases(sound: Sound) -> Iterator[Case]:
    """Data that change while a job works on them: it ends as if they had not, or says so."""
    peace: dict[str, tuple[Any, Any]] = {}
    read_run = results.of_run("run")

    def undisturbed(kind: str) -> tuple[Any, Any]:
        """The results of a training and of an evaluation of it, whose folder is kept."""
        place = sound.folder / f"on {kind}"
        if kind not in peace:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            _write_all(place, kind)
            trained = read_run(succeed(lambda: _train(kind), place))
            peace[kind] = trained, results.of_json(succeed(_EVALUATE, place))
            shutil.rmtree(place / "run" / "evaluation")
        return peace[kind]

    for kind, changes in _CHANGES.items():
        for title, change in changes.items():

            def prepare(folder: Path, kind: str = kind) -> None:
                undisturbed(kind)
                _write_all(folder, kind)

            def judge(ended: Ended, kind: str = kind) -> str:
                return results.same_as(undisturbed(kind)[0], read_run)(ended) and _said(ended)

            def action(kind: str = kind, change: Callable[[Path], None] = change) -> None:
                _train(kind, change)

            yield Case(f"{kind}, {title} while a run trains", prepare, action, judge, may_leave="^run/")

        def copied(folder: Path, kind: str = kind) -> None:
            undisturbed(kind)
            shutil.copytree(sound.folder / f"on {kind}", folder, dirs_exist_ok=True)

        def judge_rows(ended: Ended, kind: str = kind) -> str:
            return results.same_as(undisturbed(kind)[1], results.of_json)(ended) and _said(ended)

        def evaluate(kind: str = kind) -> None:
            _evaluate(kind, _remove)

        yield Case(f"{kind}, removed while a run is evaluated", copied, evaluate, judge_rows)


def _said(ended: Ended) -> str:
    """The judge of a run that went on with other data: a line must say so."""
    said = any("data" in line or "images" in line or "photos" in line for line in ended.remarks)
    return "" if said else "resumed with other data without a word"


def _backwards() -> None:
    """A clock that is set back again and again, and files from the future."""
    now = iter(range(2_000_000_000, 0, -3600))
    time.time = lambda: float(next(now))
    time.time_ns = lambda: next(now) * 10**9
    for file in Path("run").rglob("*"):
        os.utime(file, (4e9, 4e9))


def _in_1970() -> None:
    time.time = lambda: 0.0
    time.time_ns = lambda: 0


_CLOCKS: dict[str, Callable[[], None]] = {"set back": _backwards, "in 1970": _in_1970}


def _clock_cases(sound: Sound) -> Iterator[Case]:
    for title, set_clock in _CLOCKS.items():
        for name, reader in READERS.items():

            def judge(ended: Ended, name: str = name) -> str:
                return results.same_as(sound.result(name), READERS[name].read)(ended)

            def action(
                set_clock: Callable[[], None] = set_clock, arguments: tuple[str, ...] = reader.arguments
            ) -> None:
                set_clock()
                sys.exit(exit_code(arguments))

            def prepare(target: Path, name: str = name) -> None:
                sound.prepare(READERS[name], target)

            yield Case(f"a clock {title}: {name}", prepare, action, judge, refusals=())


def _other_processor() -> None:
    import torch

    torch.backends.cpu.get_cpu_capability = lambda: "ANOTHER"


def _other_threads() -> None:
    import torch

    # A forked process cannot have more.
    torch.get_num_threads = lambda: 64


def _other_torch() -> None:
    import torch

    setattr(torch, "__version__", "1.0.0")  # noqa: B010


_MACHINES: dict[str, Callable[[], None]] = {
    "another processor": _other_processor, "another number of threads": _other_threads,
    "another torch": _other_torch,
}  # fmt: skip


def _machine_cases(sound: Sound) -> Iterator[Case]:
    for title, move in _MACHINES.items():

        def action(move: Callable[[], None] = move) -> None:
            move()
            sys.exit(exit_code(("train", "run", "--resume", "-q")))

        def prepare(target: Path) -> None:
            copy_of(sound.folder / UNFINISHED, target / "run")

        yield Case(f"{title}: train --resume", prepare, action, _bits_may_differ, refusals=())


def _bits_may_differ(ended: Ended) -> str:
    lines = [line for line in ended.remarks if "may differ" in line]
    return "" if len(lines) == 1 else f"{len(lines)} lines say that bits may differ"


def _copies(sound: Sound) -> Iterator[Case]:
    """A run folder that moves, or is a link."""

    def moved(target: Path) -> None:
        copy_of(sound.folder / FINISHED, target / "elsewhere" / "run")
        (target / "run").symlink_to("elsewhere/run")
        sound_digit(target)

    def sound_digit(target: Path) -> None:
        from benchmarks.fault_suite.files import digit

        digit(target / "digit.png")

    for name in ("predict", "compare", "monitor", "evaluate", "report"):

        def judge(ended: Ended, name: str = name) -> str:
            return "" if name == "compare" else _same(sound, name)(ended)

        yield Case(f"a run folder that is a link: {name}", moved, READERS[name].arguments, judge, refusals=())


def _same(sound: Sound, name: str) -> Judge:
    return results.same_as(sound.result(name), READERS[name].read)


def _twice(sound: Sound) -> Iterator[Case]:
    """Two writers of one run folder."""

    def action(arguments: tuple[str, ...]) -> Callable[[], Any]:
        def both() -> None:
            from filelock import FileLock

            with FileLock("run/.lock"):
                pid = os.fork()
                if not pid:
                    os._exit(exit_code(arguments))
                _, status = os.waitpid(pid, 0)
            sys.exit(os.waitstatus_to_exitcode(status))

        return both

    for name, source in (("evaluate", FINISHED), ("generate", FINISHED), ("train --resume", UNFINISHED)):

        def prepare(target: Path, source: str = source) -> None:
            copy_of(sound.folder / source, target / "run")

        yield Case(
            f"while another process writes: {name}", prepare, action(READERS[name].arguments), must_refuse
        )


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """The cases; of the short form six."""
    sound = Sound(folder)
    every = [
        *_data_cases(), *_running_cases(sound), *_clock_cases(sound), *_machine_cases(sound), *_copies(sound),
        *_twice(sound),
    ]  # fmt: skip
    yield from random.Random(0).sample(every, 6) if short else every
