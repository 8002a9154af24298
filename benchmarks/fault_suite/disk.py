"""Part ``disk``: full disks and read-only folders; a real one in memory where the system allows to mount it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.fault_suite import results
from benchmarks.fault_suite.case import Case, Ended, Judge
from benchmarks.fault_suite.damage import copy_of
from benchmarks.fault_suite.files import FINISHED, UNFINISHED, Sound, digit, remove, succeed
from benchmarks.fault_suite.process import exit_code

_CLONE_NEWNS, _MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 0x20000, 1, 32, 0x4000, 1 << 18
_DISK = Path("disk")
# What the child saw on the disk, which the parent does not see.
_SEEN = "seen.json"
_FILLER = "filler"
# Exit codes: refused before anything was computed, or computed and not stored.
_CODES = (2, 4)
# New files there are judged by the child.
_ON_DISK = r"^seen\.json$|^disk/"

_QUICK = ("-q", "--json")
_NEW = ("training.epochs=1", "training.held_out_images=20", "network.width=4", "--out", "disk/new", *_QUICK)
# Commands that write into the run folder on the disk, or to another place there.
WRITERS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", "disk/run", "--protocol", "clean", "--images", "60", *_QUICK),
    "evaluate --out": ("evaluate", "clf.safetensors", "--data", "digits", "--protocol", "clean", "--images", "20",
                       "--out", "disk/rows", *_QUICK),
    "evaluate --save-adversarial": ("evaluate", "clf.safetensors", "--data", "digits", "--protocol", "pgd-20",
                                    "--images", "10", "--save-adversarial", "disk/x.npz", *_QUICK),
    "report": ("report", "disk/run"),
    "compare": ("compare", "disk/run", "--out", "disk/compare.html"),
    "compare to CSV": ("compare", "disk/run", "--out", "disk/compare.csv"),
    "generate": ("generate", "disk/run", "--per-class", "1", "--steps", "3", *_QUICK),
    "diagnose": ("diagnose", "disk/run", "--images", "10", "--attack", "pgd", *_QUICK),
    "export": ("export", "disk/run", "--state-dict", "--out", "disk/x.pt", *_QUICK),
    "monitor": ("monitor", "disk/run", "--figure", "disk/x.png", "--json"),
    "counterfactual": ("counterfactual", "clf.safetensors", "digit.png", "--target", "3", "--budget", "1", "--steps",
                       "2", "--out", "disk/moved", *_QUICK),
    "train": ("train", "digits/standard", *_NEW),
    "train --resume": ("train", "disk/unfinished", "--resume", *_QUICK),
}  # fmt: skip
# Commands that show a result and need not write.
READERS: dict[str, tuple[str, ...]] = {
    "predict": ("predict", "disk/run", "digit.png", "--json"),
    "score": ("score", "disk/run", "digit.png", "--json"),
    "lint": ("lint", "disk/run", *_QUICK),
    "compare": ("compare", "disk/run", "--format", "csv"),
    "monitor": ("monitor", "disk/run", "--json"),
    "evaluate": WRITERS["evaluate"],
    "list": ("list", "recipes"),
    "validate": ("validate", "digits/standard"),
    "recipe": ("recipe", "digits/standard"),
}
FREE = (0, 4096, 40_960, 204_800)


def _mounted(free: int | None) -> Callable[[], str | None]:
    """Mounts a disk for this process alone and copies the runs there; ``free`` bytes are left, ``None``: read-only."""

    def mount() -> str | None:
        libc = ctypes.CDLL(None, use_errno=True)
        if not sys.platform.startswith("linux") or libc.unshare(_CLONE_NEWNS):
            return "needs Linux, and the right to mount a disk"
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        _DISK.mkdir()
        if libc.mount(b"tmpfs", b"disk", b"tmpfs", 0, b"size=64m"):
            return "needs the right to mount a disk"
        for name in ("run", "unfinished"):
            copy_of(Path(name), _DISK / name)
        if free is None:
            libc.mount(b"tmpfs", b"disk", b"tmpfs", _MS_REMOUNT | _MS_RDONLY, None)
        else:
            _fill(free)
        Path(_SEEN).write_text(json.dumps(_content(_DISK)))
        return None

    return mount


def _fill(free: int) -> None:
    """Fills the disk except for ``free`` bytes."""
    with (_DISK / _FILLER).open("wb") as file:
        state = os.statvfs(_DISK)
        file.write(bytes(max(0, state.f_bavail * state.f_frsize - free)))


def _content(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def _and_look(arguments: tuple[str, ...]) -> Callable[[], Any]:
    """Runs a command, and records what is wrong with the files on the disk afterwards."""

    def action() -> None:
        before = json.loads(Path(_SEEN).read_text())
        code = exit_code(arguments)
        after = _content(_DISK)
        # Training keeps the newest of its earlier states only.
        lost = [name for name in before if name not in after and "/state-" not in name]
        temporary = [name for name in after if name.endswith(".tmp")]
        broken = [name for name in after if name not in before and not _is_whole(_DISK / name)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(_SEEN).write_text(json.dumps({"lost": lost, "left behind": temporary, "half-written": broken}))
        sys.exit(code)

    return action


def _is_whole(file: Path) -> bool:
    """Whether a file can be read to its end by a program of its format."""
    readers: dict[str, Callable[[], Any]] = {
        ".json": lambda: json.loads(file.read_text()),
        ".jsonl": lambda: [json.loads(line) for line in file.read_text().splitlines()],
        ".html": lambda: _ends_in(file, "</html>"),
        ".csv": lambda: _ends_in(file, "\n"),
        ".png": lambda: _open_image(file),
        ".npz": lambda: _open_arrays(file),
        ".pt": lambda: _open_weights(file),
        ".safetensors": lambda: results.tensors_digest(file),
        ".yaml": lambda: _ends_in(file, "\n"),
    }
    try:
        readers.get(file.suffix, lambda: None)()
    # Whatever a reader raises, the file is not whole.
    except Exception:
        return False
    return True


def _ends_in(file: Path, end: str) -> None:
    if not file.read_text().endswith(end):
        raise ValueError("cut short")


def _open_image(file: Path) -> None:
    from PIL import Image

    with Image.open(file) as image:
        image.load()


def _open_arrays(file: Path) -> None:
    import numpy as np

    with np.load(file) as archive:
        for name in archive.files:
            archive[name]


def _open_weights(file: Path) -> None:
    import torch

    torch.load(file, weights_only=True)


def _wrong_files(ended: Ended) -> str:
    """What the child found wrong with the files, as text."""
    try:
        seen = json.loads((ended.folder / _SEEN).read_text())
    except (OSError, ValueError):
        return ""
    wrong = {kind: seen[kind] for kind in ("lost", "left behind", "half-written") if seen.get(kind)}
    return "; ".join(f"{kind}: {names[0]}" for kind, names in wrong.items())


class _Runs:
    def __init__(self, folder: Path) -> None:
        self.sound = Sound(folder)
        self._shown: dict[tuple[str, ...], Any] = {}

    def prepare(self, target: Path) -> None:
        copy_of(self.sound.folder / FINISHED, target / "run")
        copy_of(self.sound.folder / UNFINISHED, target / "unfinished")
        best = target / "run" / "checkpoints" / "best" / "classifier.safetensors"
        shutil.copyfile(best, target / "clf.safetensors")
        digit(target / "digit.png")

    def prepare_disk(self, target: Path) -> None:
        """As :meth:`prepare`, with the runs in the place of the disk."""
        self.prepare(target)
        for name in ("run", "unfinished"):
            copy_of(target / name, target / "disk" / name)

    def shown(self, arguments: tuple[str, ...]) -> Any:
        """What a command shows on a disk with space."""
        if arguments not in self._shown:
            place = self.sound.folder / "sound-disk"
            place.mkdir()
            self.prepare_disk(place)
            self._shown[arguments] = _output(succeed(arguments, place))
            remove(place)
        return self._shown[arguments]

    def same(self, arguments: tuple[str, ...]) -> Judge:
        """The judge of what is shown."""

        def judge(ended: Ended) -> str:
            if wrong := _wrong_files(ended):
                return wrong
            found, sound = _output(ended), self.shown(arguments)
            return "" if found == sound else results.first_difference(found, sound)

        return judge


def _output(ended: Ended) -> Any:
    """What is shown, without the paths of files, which are null if they are not there."""
    try:
        found = results.of_json(ended)
    except ValueError:
        # The time of a step is measured, and a table is as wide as its digits.
        return [word for word in ended.stdout.split() if not re.fullmatch(r"[\d.]+|seconds|minutes|─+", word)]
    if isinstance(found, dict):
        return {key: value for key, value in found.items() if key not in ("figure", "figures", "grid")}
    return found


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """The cases; of the short form every 20th."""
    every = list(_all_cases(_Runs(folder)))
    yield from every[::20] if short else every


def _all_cases(runs: _Runs) -> Iterator[Case]:
    for name, arguments in WRITERS.items():
        for free in (*FREE, None):
            title = "read-only" if free is None else f"{free} bytes free"
            yield _case(runs, f"{title}: {name}", arguments, _mounted(free))
        for most in (12_000, 60_000):
            # Larger files than this cannot be written, as under a limit of the shell; needs no rights. The output is
            # a file too, and smaller.
            title = f"no file above {most} bytes: {name}"
            yield _case(runs, title, arguments, _limited(most), runs.prepare_disk)
    for name, arguments in READERS.items():
        codes = (4,) if name == "evaluate" else ()
        for free in (0, None):
            title = f"{'read-only' if free is None else 'full disk'}, nothing to write: {name}"
            yield _case(runs, title, arguments, _mounted(free), codes=codes)
        yield Case(
            f"standard output is full: {name}", runs.prepare_disk, arguments, _must_say, _CODES,
            may_leave=_ON_DISK, surroundings=_full_output,
        )  # fmt: skip


def _case(
    runs: _Runs,
    title: str,
    arguments: tuple[str, ...],
    surroundings: Callable[[], str | None],
    prepare: Callable[[Path], Any] | None = None,
    codes: tuple[int, ...] = _CODES,
) -> Case:
    return Case(
        title, prepare or runs.prepare, _and_look(arguments), runs.same(arguments), codes,
        _refusal(runs, arguments), may_leave=_ON_DISK, surroundings=surroundings,
    )  # fmt: skip


def _must_say(ended: Ended) -> str:
    return "exit code 0, and nothing was shown"


def _limited(most: int) -> Callable[[], str | None]:
    def limit() -> str | None:
        Path(_SEEN).write_text(json.dumps(_content(_DISK)))
        # The record of the child itself is small, and is written at the end.
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        return None

    return limit


def _full_output() -> str | None:
    if not Path("/dev/full").exists():
        return "needs /dev/full"
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    return None


def _refusal(runs: _Runs, arguments: tuple[str, ...]) -> Judge:
    """The judge of a refusal: the right path is blamed, nothing is half-written, and what was computed is shown."""

    def judge(ended: Ended) -> str:
        if wrong := _wrong_files(ended):
            return wrong
        if "disk" not in ended.error:
            return f"blames another path: {ended.error}"
        # Whoever asks for a file may be refused before anything is computed; rows of a run are shown.
        if arguments == WRITERS["evaluate"] and _output(ended) != runs.shown(arguments):
            return "what was computed is not shown"
        return ""

    return judge
