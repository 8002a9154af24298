"""The fuzzers of the fault suite: changed inputs with right checksums, and failures that are found and kept."""

from __future__ import annotations

import importlib.util
import io
import json
import random
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.fault_suite import fuzz, seals
from benchmarks.fault_suite.case import GOOD, Ended
from benchmarks.fault_suite.changes import changed_json
from benchmarks.fault_suite.doors import DOORS, Door, words
from benchmarks.fault_suite.files import FINISHED
from benchmarks.fault_suite.process import import_all, outcome, run

from trilemma.classifier.classifier import Classifier
from trilemma.errors import CheckpointError, DataError
from trilemma.text_files import read_json

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cases run in forked processes")
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="pip install --group fuzz"
)


def test_a_changed_png_is_decoded_once_it_is_sealed() -> None:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(target, "png")
    changed = bytearray(target.getvalue())
    # The width in the header.
    changed[19] = 4
    with pytest.raises((OSError, SyntaxError)):
        Image.open(io.BytesIO(changed)).load()
    assert Image.open(io.BytesIO(seals.sealed_png(bytes(changed)))).size == (4, 8)
    assert seals.sealed_png(b"\x89PNG\r\n\x1a\n\xff\xff\xff\xff") == b"\x89PNG\r\n\x1a\n\xff\xff\xff\xff"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_member_of_a_zip_is_read_once_it_is_sealed(save: Callable[..., None]) -> None:
    target = io.BytesIO()
    save(target, x=np.zeros(40, np.uint8))
    content = target.getvalue()
    body = zipfile.ZipFile(target).read("x.npy")
    # The checksum of other content takes the place of that of the content.
    for changed in (content.replace(zlib.crc32(body).to_bytes(4, "little"), b"abcd"), content):
        assert zipfile.ZipFile(io.BytesIO(seals.sealed_zip(changed))).read("x.npy") == body
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(content.replace(zlib.crc32(body).to_bytes(4, "little"), b"abcd"))).read(
            "x.npy"
        )


def test_a_changed_object_is_read_once_it_is_sealed(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(b'{"a": 2, "digest": "crc32:00000000"}')
    with pytest.raises(ValueError, match="does not match the digest"):
        read_json(file)
    file.write_bytes(seals.sealed_object(file.read_bytes()))
    assert read_json(file) == {"a": 2}
    assert seals.sealed_objects(b'[]\n{"a": NaN') == b'[]\n{"a": NaN'


def test_a_changed_header_of_a_classifier_reaches_its_validation(finished_run: Path, tmp_path: Path) -> None:
    source = finished_run / "checkpoints" / "best" / "classifier.safetensors"
    copy = tmp_path / "x.safetensors"
    for header in seals.unpacked_headers(source):
        copy.write_bytes(seals.with_header(header, source))
        assert Classifier.load(copy).num_classes == 10
        copy.write_bytes(
            seals.with_header(header.replace(b'"num_classes": 10', b'"num_classes": "x"'), source)
        )
        with pytest.raises(CheckpointError, match="num_classes = 'x': must be a valid integer"):
            Classifier.load(copy)


def test_changes_of_json_are_json_and_reach_every_place() -> None:
    sound = b'{"a": {"b": [1, "x"]}, "c": null}'
    changed = {changed_json(sound, random.Random(number)) or b"" for number in range(2000)}
    values = [json.loads(one) for one in changed]
    assert len(changed) > 300
    assert any("c" not in one for one in values if isinstance(one, dict))
    assert {"a": {"b": [1]}, "c": None} in values and {"a": {"b": [-1, "x"]}, "c": None} in values
    assert changed_json(b"no json", random.Random(0)) is None
    first, second = (changed_json(b'{"a": 1}\n{"b": 2}\n', random.Random(3)) or b"").splitlines()
    assert (first == b'{"a": 1}') != (second == b'{"b": 2}')
    assert words([b"key: 1\nother-key: x", b"key"]) == [b"key", b"other-key"]


def _fail(content: bytes) -> None:
    if b"9" in content:
        raise KeyError("nine")


def _slow(content: bytes) -> None:
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass


def _hostile(content: bytes) -> None:
    print("\x1b[2J")


def _refuse(content: bytes) -> None:
    raise DataError("no such file")


@pytest.mark.parametrize(
    ("read", "what"),
    [(_fail, "KeyError: 'nine' .test_fuzz.py"), (_slow, "0.3 s"), (_hostile, "control character")],
)
def test_every_outcome_but_a_result_or_a_clear_line_is_a_failure(
    read: Callable[[bytes], None], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    with pytest.raises(fuzz.FailureError, match=what):
        fuzz.check(read, b"9")
    assert fuzz.check(_refuse, b"9") == "no such file" and fuzz.check(lambda content: None, b"9") == ""


def _behind_a_gate(content: bytes) -> None:
    """Fails for texts that begin with three bytes, which nobody guesses at once, but byte by byte."""
    if content[:1] == b"\xf3" and content[1:2] == b"\x9a" and content[2:3] == b"\x17":
        raise KeyError("reached")


def tried(fuzzer: str, read: Callable[[bytes], None], folder: Path, minutes: float) -> Ended:
    """What a fuzzer leaves that is given a function and ``sound``."""
    door = Door(read, lambda: [b"sound"])
    ended = run(lambda: fuzz.FUZZERS[fuzzer](door, [b"sound"], minutes, folder / "kept"), folder)
    assert isinstance(ended, Ended)
    return ended


@pytest.mark.parametrize("fuzzer", [pytest.param("atheris", marks=needs_atheris), "Hypothesis"])
def test_an_input_that_fails_ends_the_fuzzing_and_is_kept(
    fuzzer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "_INSTRUMENTED", (__name__,))
    ended = tried(fuzzer, _behind_a_gate if fuzzer == "atheris" else _fail, tmp_path, 1.0)
    verdict = fuzz.judge(ended)
    name = verdict.rpartition("input: ")[2]
    assert ended.code == 0 and verdict.startswith("KeyError"), ended.stderr
    content = (tmp_path / "kept" / name).read_bytes()
    assert content.startswith(b"\xf3\x9a\x17") if fuzzer == "atheris" else b"9" in content


@pytest.mark.parametrize("fuzzer", [pytest.param("atheris", marks=needs_atheris), "Hypothesis"])
def test_fuzzing_ends_in_time_and_says_how_much_it_tried(
    fuzzer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "_INSTRUMENTED", (__name__,))
    ended = tried(fuzzer, lambda content: None, tmp_path, 0.02)
    assert ended.code == 0 and fuzz.judge(ended) == "" and ended.seconds < 5
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("tried: ") and int(last.split()[1].strip(",")) > 0
    assert ("edges: " in last) == (fuzzer == "atheris")


def test_a_fuzzer_that_ends_early_is_a_failure(tmp_path: Path) -> None:
    assert fuzz.judge(Ended(tmp_path, 0, "", "", 1.0, 1.0, False, ())) == "ended before its time"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, complete_run: Any) -> Path:
    """A folder of sound inputs with the run of other tests."""
    import_all()

    folder = tmp_path_factory.mktemp("sound")
    shutil.copytree(complete_run.path, folder / FINISHED)
    (folder / "done").touch()
    return folder


def test_the_short_form_of_every_door_is_good(sound: Path, tmp_path: Path) -> None:
    cases = list(fuzz.cases(sound, True))
    assert [case.name.rpartition(", ")[0] for case in cases] == list(DOORS)
    rows = [outcome(case, tmp_path / "case") for case in cases]
    assert [row for row in rows if row["verdict"] not in GOOD] == []
    assert all(int(row["line"].split()[1].strip(",")) > 0 for row in rows)
