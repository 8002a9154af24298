"""Freed memory is reused inside the context, and returned to the system behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent

import pytest
import torch

import trilemma
from trilemma import memory
from trilemma.attacks import pgd
from trilemma.memory import freed_memory_kept

CPU = torch.device("cpu")
# In a process of its own, whose heap no other test has changed. A block is above the largest size from which it is a
# mapping of its own by default.
COUNTING = """
import resource
from types import SimpleNamespace

from trilemma.memory import freed_memory_kept

CPU = SimpleNamespace(type="cpu")


def page_faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytearray(b"\\1") * (36 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


first = page_faults(1)
"""


def count_pages(script: str) -> None:
    """Runs a script that begins with :data:`COUNTING`; ``first`` is the number of new pages of a block."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(memory._SET_BY_USER)
    }
    code = COUNTING + dedent(script)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(autouse=True)
def glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32" or memory._glibc() is None:
        pytest.skip("another C library than glibc")
    for name in [name for name in os.environ if name.startswith(memory._SET_BY_USER)]:
        monkeypatch.delenv(name)


def test_blocks_after_the_first_consist_of_pages_that_the_process_has() -> None:
    count_pages(
        """
        with freed_memory_kept(CPU):
            page_faults(1)
            assert page_faults(3) < first / 2
        assert page_faults(3) > 1.5 * first
        """
    )


def test_the_thresholds_are_reset_after_an_error() -> None:
    count_pages(
        """
        try:
            with freed_memory_kept(CPU):
                raise KeyError
        except KeyError:
            assert page_faults(3) > 1.5 * first
        """
    )


def test_nested_contexts_keep_until_the_last_one_ends() -> None:
    count_pages(
        """
        with freed_memory_kept(CPU):
            with freed_memory_kept(CPU):
                page_faults(1)
            assert page_faults(3) < first / 2
        assert page_faults(3) > 1.5 * first
        """
    )


def test_the_tensors_of_another_device_are_not_on_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_set", lambda *_: pytest.fail("changed"))
    with freed_memory_kept(torch.device("meta")):
        pass


def test_attacks_generation_and_evaluation_keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    monkeypatch.setattr(memory, "_set", lambda *_: None)

    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            opened.append(memory._open)
            return images.flatten(1)[:, :2]

    clf = trilemma.Classifier(Network(), 2, image_shape=(1, 4, 4))
    images, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    for run in (
        lambda: pgd(clf, images, labels, 0.1, steps=150),
        lambda: trilemma.attacks.autoattack(clf, images, labels, 0.1, attacks=["apgd-ce"], progress=False),
        lambda: trilemma.samplers.generate(clf, labels, images, "langevin", "joint", 150),
        lambda: trilemma.evaluate(clf, (images, labels), ["clean"], lint=False),
    ):
        opened.clear()
        run()
        assert opened[-1] >= 1
        assert not memory._open


def test_a_few_gradients_do_not_pay_for_returning_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_set", lambda *_: pytest.fail("changed"))
    clf = trilemma.Classifier(torch.nn.Flatten(), 16, image_shape=(1, 4, 4))
    pgd(clf, torch.rand(4, 1, 4, 4), torch.arange(4), 0.1, steps=1)


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(memory, "_set", lambda *_: pytest.fail("changed"))
    with freed_memory_kept(CPU):
        pass


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    monkeypatch.setattr(memory, "_set", lambda *_: pytest.fail("changed"))
    with freed_memory_kept(CPU):
        pass
