"""Freed memory is reused inside the context, and returned to the system behind it."""

from __future__ import annotations

import os
import sys

import pytest

from trilemma import memory
from trilemma.memory import freed_memory_kept

# Above the largest size from which a block is a mapping of its own by default.
BLOCK = 36 << 20


def page_faults(times: int) -> int:
    """New pages of the process while it fills and frees one block after the other."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytearray(b"\1") * BLOCK
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture(autouse=True)
def glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32" or memory._glibc() is None:
        pytest.skip("another C library than glibc")
    for name in [name for name in os.environ if name.startswith(memory._SET_BY_USER)]:
        monkeypatch.delenv(name)


def test_blocks_after_the_first_consist_of_pages_that_the_process_has() -> None:
    first = page_faults(1)
    with freed_memory_kept():
        page_faults(1)
        assert page_faults(3) < first / 2
    assert page_faults(3) > 1.5 * first


def test_the_thresholds_are_reset_after_an_error() -> None:
    first = page_faults(1)
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
    assert page_faults(3) > 1.5 * first


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(memory, "_set", lambda *_: pytest.fail("changed"))
    with freed_memory_kept():
        pass


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    monkeypatch.setattr(memory, "_set", lambda *_: pytest.fail("changed"))
    with freed_memory_kept():
        pass
