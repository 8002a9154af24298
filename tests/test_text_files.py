"""Text, JSON and JSON lines of damaged files: the reason in one clause, no file that never ends, no change unseen."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from trilemma.limits import LOG_LINE, TEXT
from trilemma.text_files import (
    count_lines,
    read_json,
    read_json_lines,
    read_text,
    sealed,
    sealed_text,
    unsealed_text,
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"a": 1', "is not JSON (Expecting"),
        (bytes(20), "line 1: NUL is a control character"),
        (b"\n\xe9", "line 2 is not UTF-8 (byte 0xe9)"),
        ('{"a": 1}'.encode("utf-16"), "is UTF-16 text"),
        ('{"a": 1}'.encode("utf-16-le"), "line 1: NUL is a control character"),
        (b"[1]", "is not a JSON object"),
        (b"5", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b'{"a": ' * 100_000, "is not JSON (nested too deeply)"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "is not JSON (nested too deeply)"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON (an integer of 5000 digits)"),
        (b'{"a": 1, "a": 2}', "is not JSON ('a' is given twice)"),
        (b'{"a": 1, "digest": "crc32:00000000"}', "damaged or edited: its content does not match the digest"),
        (b'{"a": 1, "digest": [1]}', "damaged or edited: its content does not match the digest"),
    ],
)  # fmt: skip
def test_a_damaged_json_file_has_one_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}.*$"):
        read_json(file)


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, TEXT.value + 1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "is a folder, not a file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read (No such file or directory)"),
        (lambda path: path.symlink_to(path.name), "cannot be read (Too many levels of symbolic links)"),
        (lambda path: None, "cannot be read (No such file or directory)"),
        (large, "has 4.0 MB, more than the 4.0 MB that are read of a text file"),
    ],
)  # fmt: skip
@pytest.mark.skipif(os.name == "nt", reason="pipes and links")
def test_what_is_no_file_is_neither_read_nor_waited_for(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "a.json")
    # What is read line by line is limited in the length of a line only.
    readers = (read_text, read_json) if make is large else (read_text, read_json, read_json_lines)
    for read in readers:
        with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
            read(tmp_path / "a.json")


def test_a_byte_order_mark_numbers_that_are_not_finite_and_pairs_of_surrogates_are_read(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": float("inf"), "b": "\N{GRINNING FACE}"}).encode())
    assert read_json(file) == {"a": float("inf"), "b": "\N{GRINNING FACE}"}
    assert read_text(file).startswith("{")


def test_a_sealed_object_is_read_without_its_digest_and_every_flipped_bit_is_found(tmp_path: Path) -> None:
    file, content = tmp_path / "a.json", {"name": "ä", "value": 0.25, "list": (1, None), "2": {"x": True}}
    file.write_text(json.dumps(sealed(content), indent=2))
    plain = json.loads(json.dumps(content))
    assert read_json(file) == plain
    text = file.read_bytes()
    for position in range(8 * len(text)):
        changed = bytearray(text)
        changed[position // 8] ^= 1 << position % 8
        file.write_bytes(changed)
        try:
            read = read_json(file)
        except ValueError:
            continue
        # In white space, or in the name of the digest, which then is one more key.
        read.pop(next((key for key in read if key not in plain), ""), None)
        assert read == plain
    # Another order and other white space are no change.
    file.write_text(json.dumps(sealed(content), sort_keys=True))
    assert read_json(file) == plain


def test_each_line_has_its_own_digest_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    good = [json.dumps(sealed({"step": step})) for step in range(3)]
    bad = [good[0].replace('"step": 0', '"step": 7'), "\xe9", "[1]", "{", "{" * 100_000, "\0\0"]
    file.write_bytes("\n".join([good[0], *bad, "", '{"step": 5}', good[2], '{"st']).encode("latin-1"))
    lines = read_json_lines(file)
    assert lines.records == [{"step": 0}, {"step": 5}, {"step": 2}] and lines.incomplete
    assert [problem.partition(" ")[0] for problem in lines.problems] == ["line"] * len(bad)
    assert lines.problems[0] == (
        "line 2 damaged or edited: its content does not match the digest stored in it"
    )
    assert lines.problems[1] == "line 3 is not UTF-8 (byte 0xe9)"
    file.write_bytes(b'{"step": 5}')
    assert read_json_lines(file).records == [{"step": 5}] and not read_json_lines(file).incomplete

    def check(record: object) -> None:
        raise ValueError("has no name")

    file.write_bytes(b'{"step": 5}\n')
    assert read_json_lines(file, check).problems == ["line 1 has no name"]
    file.write_bytes(b"\xff\xfe{\0}\0")
    with pytest.raises(ValueError, match="is UTF-16 text"):
        read_json_lines(file)


def test_lines_are_read_one_by_one_and_some_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(f'{{"step": {step}}}' for step in range(6)))
    lines = read_json_lines(file, skip=lambda line: line.startswith(b'{"step": 4'))
    assert [line["step"] for line in lines.records] == [0, 1, 2, 3, 5] and not lines.problems
    assert count_lines(file, b'{"step": 5') == 1 and count_lines(file, b'"step"') == 6
    file.write_bytes(b"1" * (LOG_LINE.value + 1))
    with pytest.raises(ValueError, match="has more than the 1,000 kB that are read of a line"):
        read_json_lines(file)


def test_a_text_keeps_its_digest_when_it_is_cut_and_with_other_line_ends() -> None:
    text = "a: 1\nb: 2\n"
    stored = sealed_text(text)
    assert unsealed_text(stored) == unsealed_text(stored.replace("\n", "\r\n")) == unsealed_text(text) == text
    for damaged in (stored[:-3], stored.replace("1\n", "7\n"), stored + "c: 3\n"):
        with pytest.raises(ValueError, match="does not match the digest in its first line"):
            unsealed_text(damaged)
