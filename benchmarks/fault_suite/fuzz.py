"""Part ``fuzz``: random inputs at every door; any outcome but a result or a refusal in one line is a failure.

Hypothesis changes sound inputs piece by piece. atheris, where it is installed, keeps the inputs that reach new code and
changes those further; the code of the library and of the readers in Python below it is instrumented for that. Each door
is fuzzed for :data:`MINUTES`, or those of the environment variable ``FAULTS_FUZZ_MINUTES``, or until its first failure,
whose input is kept.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import io
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import sys
import time
import traceback
import types
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.fault_suite.case import CONTROL, LONGEST_LINE, MEGABYTES, SECONDS, Case, Ended
from benchmarks.fault_suite.changes import changed_json
from benchmarks.fault_suite.doors import BEST, CLASSIFIER, DOORS, RUN, Door, words
from benchmarks.fault_suite.files import FINISHED, Sound

MINUTES = 10.0
_SHORT_MINUTES, _SHORT_INPUTS = 0.1, 25
# Hypothesis remembers all inputs of a run; new runs keep memory small.
_INPUTS_OF_A_RUN = 250
_FAILURE = "failure.json"
# Packages whose functions atheris instruments: the library, and the readers in Python that it calls.
_INSTRUMENTED = ("trilemma", "yaml", "zipfile", "tarfile", "numpy.lib", "PIL", "json", "csv")
# Seconds after which libFuzzer takes an input for one that never ends.
_HANGS = 30
_HOSTILE = (
    b"null", b"-1", b"1e999", b"[]", b"{}", b'"', b"\n", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J", b"9" * 40,
)  # fmt: skip


class FailureError(Exception):
    """An input with another outcome than a result or one clear line."""


def check(read: Callable[[bytes], object], content: bytes) -> str:
    """Passes an input through a door; returns the message of a refusal, empty if it was read.

    Raises:
        FailureError: an exception that is no mistake of the user's, a message that is no clear line, control characters
            in the output, or too much time or memory.
    """
    seconds, megabytes, message = _tried(read, content)
    # Another process may have taken the time; that of one of three is that of the input.
    for _ in range(2):
        if seconds > SECONDS:
            seconds = min(seconds, _tried(read, content)[0])
    if seconds > SECONDS:
        raise FailureError(f"{seconds:.1f} s")
    if megabytes > MEGABYTES:
        raise FailureError(f"{megabytes:.0f} MB")
    return message


def _tried(read: Callable[[bytes], object], content: bytes) -> tuple[float, float, str]:
    """Processor seconds, the growth of peak memory in MB, and the message of a refusal."""
    from trilemma.errors import UserError
    from trilemma.printing import print_message

    output, message = io.StringIO(), ""
    begin, peak = time.process_time(), _peak_megabytes()
    with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output):
        warnings.simplefilter("ignore")
        try:
            read(content)
        except UserError as error:
            message = str(error).strip()
            if not message:
                raise FailureError("an empty message") from None
            print_message(message)
        except MemoryError:
            raise FailureError("out of memory") from None
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}, line {place.lineno}"
            raise FailureError(f"{type(error).__name__}: {str(error)[:120]} ({where})") from None
    cost = time.process_time() - begin, _peak_megabytes() - peak
    lines = output.getvalue()
    if raw := CONTROL.search(lines):
        raise FailureError(f"control character {raw[0]!r} in the output")
    if (longest := max(map(len, lines.splitlines()), default=0)) > LONGEST_LINE:
        raise FailureError(f"a line of {longest} characters")
    return *cost, message


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Attempts:
    """Tries inputs at a door until the time is over, or one of them is a failure.

    Attributes:
        tried: number of inputs.
        read: number of those that were not refused.

    Args:
        read: the door.
        minutes: how long.
        kept: folder for the input of a failure.
        facts: what else the last line says.
    """

    def __init__(
        self,
        read: Callable[[bytes], object],
        minutes: float,
        kept: Path,
        facts: Callable[[], str] = lambda: "",
    ) -> None:
        self._read, self._kept, self._facts = read, kept, facts
        self._seconds, self._end = 60 * minutes, math.inf
        self.tried = self.read = 0

    def __call__(self, content: bytes) -> None:
        """Tries an input; ends the process when the time is over or the input is a failure."""
        if not self.tried:
            self._end = time.monotonic() + self._seconds
        if time.monotonic() > self._end:
            self.finish()
        self.tried += 1
        try:
            self.read += not check(self._read, content)
        except FailureError as failure:
            self._kept.mkdir(parents=True, exist_ok=True)
            file = self._kept / f"{zlib.crc32(content):08x}"
            file.write_bytes(content)
            Path(_FAILURE).write_text(json.dumps({"what": f"{failure}; input: {file.name}"}))
            self.finish()

    def finish(self) -> NoReturn:
        """Prints the numbers, and ends the process without what either fuzzer does at its end."""
        print(f"tried: {self.tried}, read: {self.read}{self._facts()}", file=sys.stderr, flush=True)
        os._exit(0)


def _with_hypothesis(door: Door, samples: list[bytes], minutes: float, kept: Path) -> None:
    from hypothesis import HealthCheck, Phase, given, seed, settings

    attempts, is_short = Attempts(door.read, minutes, kept), minutes < 1
    inputs = _SHORT_INPUTS if is_short else _INPUTS_OF_A_RUN
    first = 0 if is_short else random.randrange(2**32)
    for number in range(1) if is_short else itertools.count():

        @seed(first + number)
        @settings(
            max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )  # fmt: skip
        @given(_changed(samples))
        def attempt(content: bytes) -> None:
            attempts(content)

        attempt()
    attempts.finish()


@functools.cache
def _warm_up_hypothesis() -> None:
    """Makes Hypothesis read the constants of all modules now, in a second, and not again for each door."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @settings(max_examples=20, database=None, derandomize=True)
    @given(st.binary(), st.floats(0, 1), st.integers())
    def nothing(content: bytes, place: float, number: int) -> None:
        pass

    nothing()


def _changed(samples: list[bytes]) -> Any:
    """A Hypothesis strategy: a sound input with a few pieces changed, or any bytes."""
    from hypothesis import strategies as st

    pieces = st.one_of(st.binary(max_size=8), st.sampled_from([b"", *_HOSTILE, *words(samples)]))
    edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 16), pieces), min_size=1, max_size=4)

    def edited(sound: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
        content = sound
        for place, length, piece in changes:
            start = int(place * len(content))
            content = content[:start] + piece + content[start + length :]
        return content

    def restructured(sound: bytes, number: int) -> bytes:
        return changed_json(sound, random.Random(number)) or sound

    sound = st.sampled_from(samples)
    kinds = [st.builds(edited, sound, edits), st.binary(max_size=200)]
    objects = [sample for sample in samples if sample.startswith(b"{")]
    if objects:
        kinds.append(st.builds(restructured, st.sampled_from(objects), st.integers(0, 2**32)))
    return st.one_of(kinds)


def _with_atheris(door: Door, samples: list[bytes], minutes: float, kept: Path) -> None:
    import atheris

    for sample in samples:
        # Imports what is imported late, too.
        if refusal := check(door.read, sample):
            raise RuntimeError(f"a sound input is refused: {refusal}")
    functions = _instrument()
    Path("corpus").mkdir()
    for number, sample in enumerate(samples):
        Path(f"corpus/{number}").write_bytes(sample)
    Path("words").write_text("".join(f'"{_escaped(word)}"\n' for word in (*_HOSTILE, *words(samples))))
    kept.mkdir(parents=True, exist_ok=True)

    def mutate(content: bytes, longest: int, number: int) -> bytes:
        chance = random.Random(number)
        structured = changed_json(content, chance) if chance.random() < 0.5 else None
        if structured is not None and len(structured) <= longest:
            return structured
        return bytes(atheris.Mutate(content, longest))

    attempts = Attempts(
        door.read, minutes, kept, lambda: f", {functions} functions instrumented{_coverage()}"
    )
    arguments = (
        "corpus", "-dict=words", f"-max_len={2 * max(map(len, samples)) + 64}", f"-timeout={_HANGS}",
        "-rss_limit_mb=0", "-malloc_limit_mb=0", "-error_exitcode=1", "-timeout_exitcode=1",
        f"-artifact_prefix={kept}/", f"-max_total_time={int(60 * minutes) + 2 * _HANGS}", "-verbosity=1",
    )  # fmt: skip
    atheris.Setup([sys.argv[0], *arguments], attempts, custom_mutator=mutate)
    atheris.Fuzz()


def _instrument() -> int:
    """Instruments the functions of some packages that exist; returns their number."""
    import atheris

    # Frozen objects are not listed.
    gc.unfreeze()
    functions = [
        one
        for one in gc.get_objects()
        if type(one) is types.FunctionType and _is_instrumented(str(one.__module__))
    ]
    for function in functions:
        atheris.instrument_func(function)
    gc.collect()
    gc.freeze()
    return len(functions)


def _is_instrumented(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in _INSTRUMENTED)


def _escaped(word: bytes) -> str:
    """A word as libFuzzer reads it in a dictionary."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def _coverage() -> str:
    """What libFuzzer has said of the code reached at its beginning and at its end."""
    said = re.findall(
        r"cov: (\d+) ft: (\d+) corp: (\d+)", Path("/proc/self/fd/2").read_text(errors="replace")
    )
    if not said:
        return ", no coverage"
    names = ("edges", "features", "corpus")
    return "".join(
        f", {name}: {one} to {other}" for name, one, other in zip(names, said[0], said[-1], strict=True)
    )


def judge(ended: Ended) -> str:
    """The judge of a fuzzer that has ended: the failure that it has found."""
    file = ended.folder / _FAILURE
    if file.exists():
        return str(json.loads(file.read_text())["what"])
    return "" if "tried: " in ended.stderr else "ended before its time"


FUZZERS = {"Hypothesis": _with_hypothesis, "atheris": _with_atheris}


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """One case per door and fuzzer; of the short form some inputs of Hypothesis."""
    sound = Sound(folder)
    minutes = _SHORT_MINUTES if short else float(os.environ.get("FAULTS_FUZZ_MINUTES", MINUTES))

    def prepare(target: Path) -> None:
        if importlib.util.find_spec("hypothesis") is not None:
            os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(folder.absolute() / "hypothesis"))
            _warm_up_hypothesis()
        shutil.copytree(sound.folder / FINISHED, target / RUN)
        shutil.copyfile(target / RUN / BEST, target / CLASSIFIER)

    for name, door in DOORS.items():
        for fuzzer, run in FUZZERS.items():
            if short and fuzzer == "atheris":
                continue

            def action(door: Door = door, run: Any = run, title: str = f"{name}, {fuzzer}") -> None:
                run(door, door.sound(), minutes, folder.absolute() / "failures" / title)

            def surroundings(fuzzer: str = fuzzer) -> str | None:
                missing = importlib.util.find_spec(fuzzer.lower()) is None
                return f"{fuzzer} is not installed" if missing else None

            yield Case(f"{name}, {minutes:g} minutes of {fuzzer}", prepare, action, judge, refusals=(),
                       megabytes=400, timeout=180 * minutes + 600, surroundings=surroundings)  # fmt: skip
