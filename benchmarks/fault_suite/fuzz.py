"""Part ``fuzz``: random inputs at every door; any outcome but a result or a refusal in one line is a failure.

Hypothesis changes sound inputs piece by piece. Where atheris is installed, it is used for the doors that take bytes,
guided by the code that is reached. Each door runs for :data:`MINUTES`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.fault_suite.case import Case, Ended
from benchmarks.fault_suite.files import FINISHED, Sound

MINUTES = 10.0
_SHORT_MINUTES = 0.02
# Time of one input.
_SECONDS = 2.0
_FAILURE = "failure.json"


def _recipe(content: bytes) -> None:
    from trilemma.config.recipe import load_config

    Path("x.yaml").write_bytes(content)
    load_config("x.yaml")


def _override(content: bytes) -> None:
    from trilemma.config.recipe import load_config

    load_config("digits/pgd-at", content.decode("utf-8", "surrogateescape").split("\n"))


def _archive(content: bytes) -> None:
    from trilemma.data.sources import load_images

    Path("x.zip").write_bytes(content)
    load_images("x.zip")


def _arrays(content: bytes) -> None:
    from trilemma.data.sources import load_images

    Path("x.npz").write_bytes(content)
    load_images("x.npz")


def _image(content: bytes) -> None:
    from trilemma.evaluation.predict import predict

    Path("x.png").write_bytes(content)
    predict(_loaded("clf.safetensors"), [Path("x.png")])


def _classifier(content: bytes) -> None:
    from trilemma.classifier.classifier import Classifier

    Path("x.safetensors").write_bytes(content)
    Classifier.load("x.safetensors")


def _row(content: bytes) -> None:
    from trilemma.runs.read import read_contents

    Path("run/evaluation").mkdir(parents=True, exist_ok=True)
    Path("run/evaluation/clean.json").write_bytes(content)
    read_contents("run")


def _log(content: bytes) -> None:
    from trilemma.monitors.log import read_log

    Path("x.csv").write_bytes(content)
    read_log(Path("x.csv"))


_cache: dict[str, Any] = {}


def _loaded(name: str) -> Any:
    from trilemma.classifier.load import load

    if name not in _cache:
        _cache[name] = load(name)
    return _cache[name]


def _zip_of_images(folder: Path) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for number in range(6):
            picture = io.BytesIO()
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(picture, "png")
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", picture.getvalue())
    return target.getvalue()


def _npz(folder: Path) -> bytes:
    target = io.BytesIO()
    np.savez(target, images=np.zeros((6, 8, 8), np.uint8), labels=np.arange(6) % 2)
    return target.getvalue()


def _png(folder: Path) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(target, "png")
    return target.getvalue()


_BEST = "checkpoints/best/classifier.safetensors"
# The doors: the function that takes the input, and a sound input.
DOORS: dict[str, tuple[Callable[[bytes], None], Callable[[Path], bytes]]] = {
    "recipe": (_recipe, lambda run: (run / "config.yaml").read_bytes()),
    "overrides": (_override, lambda run: b"training.lr=0.1\nthreat.radius=8/255\nattack.steps=3"),
    "archive": (_archive, _zip_of_images),
    "image": (_image, _png),
    "classifier file": (_classifier, lambda run: (run / _BEST).read_bytes()),
    "npz": (_arrays, _npz),
    "row": (_row, lambda run: (run / "evaluation" / "clean.json").read_bytes()),
    "log": (_log, lambda run: b"epoch,clean,pgd\n1,0.9,0.5\n2,0.91,0.45\n"),
}


class FailureError(Exception):
    """An input with another outcome than a result or one clear line."""


def check(door: Callable[[bytes], None], content: bytes) -> None:
    """Passes an input through a door.

    Raises:
        FailureError: an exception that is no mistake of the user's, a message that is no line, or too much time.
    """
    from trilemma.errors import UserError

    begin = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            door(content)
    except UserError as error:
        if not str(error).strip():
            raise FailureError("an empty message") from None
    except MemoryError:
        raise FailureError("out of memory") from None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = (
            f"{type(error).__name__}: {str(error)[:120]} ({Path(place.filename).name}, line {place.lineno})"
        )
        raise FailureError(what) from None
    if time.process_time() - begin > _SECONDS:
        raise FailureError(f"{time.process_time() - begin:.1f} s")


def _changed(sound: bytes) -> Any:
    """A Hypothesis strategy: the sound input with a few pieces changed, or any bytes."""
    from hypothesis import strategies as st

    pieces = st.one_of(
        st.binary(max_size=8),
        st.sampled_from(
            [b"", b"null", b"-1", b"1e999", b"[]", b"{}", b'"', b"\n", b"\0", b"\xff\xfe", b"9" * 40]
        ),
    )
    place = st.integers(0, max(0, len(sound) - 1))
    edits = st.lists(st.tuples(place, st.integers(0, 16), pieces), min_size=1, max_size=4)

    def edited(changes: list[tuple[int, int, bytes]]) -> bytes:
        content = sound
        for start, length, piece in changes:
            content = content[:start] + piece + content[start + length :]
        return content

    return st.one_of(edits.map(edited), st.binary(max_size=200))


def _with_hypothesis(name: str, sound: bytes, minutes: float) -> None:
    from hypothesis import HealthCheck, Phase, given, settings

    door, _ = DOORS[name]
    end, tried = time.monotonic() + 60 * minutes, 0

    @settings(
        max_examples=10**9 if minutes > 1 else 200, deadline=None, database=None, derandomize=minutes < 1,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate], report_multiple_bugs=False,
    )  # fmt: skip
    @given(_changed(sound))
    def attempt(content: bytes) -> None:
        nonlocal tried
        if time.monotonic() > end:
            raise _Over
        tried += 1
        check(door, content)

    try:
        attempt()
    except _Over:
        pass
    except FailureError as failure:
        Path(_FAILURE).write_text(json.dumps({"what": str(failure)}))
    print(json.dumps({"tried": tried}))


class _Over(BaseException):
    """The time is over; no exception that Hypothesis keeps as a failure."""


def _with_atheris(name: str, sound: bytes, minutes: float) -> None:
    import atheris

    door, _ = DOORS[name]
    Path("corpus").mkdir(exist_ok=True)
    Path("corpus/sound").write_bytes(sound)

    def attempt(content: bytes) -> None:
        try:
            check(door, content)
        except FailureError as failure:
            Path(_FAILURE).write_text(json.dumps({"what": str(failure)}))
            os._exit(0)

    atheris.Setup([sys.argv[0], "corpus", f"-max_total_time={int(60 * minutes)}", "-verbosity=0"], attempt)
    atheris.Fuzz()


def _judge(ended: Ended) -> str:
    file = ended.folder / _FAILURE
    return str(json.loads(file.read_text())["what"]) if file.exists() else ""


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """One case per door and fuzzer; of the short form for a second, with Hypothesis."""
    sound = Sound(folder)
    minutes = _SHORT_MINUTES if short else float(os.environ.get("FAULTS_FUZZ_MINUTES", MINUTES))

    def prepare(target: Path) -> None:
        import shutil

        shutil.copytree(sound.folder / FINISHED, target / "run")
        shutil.copyfile(target / "run" / _BEST, target / "clf.safetensors")

    for name, (_, make) in DOORS.items():
        for fuzzer, run in (("Hypothesis", _with_hypothesis), ("atheris", _with_atheris)):
            if short and fuzzer == "atheris":
                continue

            def action(name: str = name, make: Any = make, run: Any = run) -> None:
                run(name, make(Path("run")), minutes)

            def surroundings(fuzzer: str = fuzzer) -> str | None:
                missing = importlib.util.find_spec(fuzzer.lower()) is None
                return f"{fuzzer} is not installed" if missing else None

            yield Case(f"{name}, {minutes:g} minutes of {fuzzer}", prepare, action, _judge, refusals=(),
                       megabytes=400, timeout=90 * minutes + 60, surroundings=surroundings)  # fmt: skip
