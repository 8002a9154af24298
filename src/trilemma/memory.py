"""Reuse of freed memory by the next tensors: up to a third of the time of a training step or an attack on a CPU.

A step frees and allocates up to hundreds of tensors of megabytes. By default the C library of Linux gives the end of
its heap back to the system whenever enough of it is free, so that most of the next tensors consist of new pages, which
the system has to map and to fill with zeros. Inside :func:`freed_memory_kept` the process keeps them.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Parameters of mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# Setting a parameter ends glibc's own adaptation of the thresholds. These are the values at which it ends at the latest
# (mallopt(3): DEFAULT_MMAP_THRESHOLD_MAX on 64 bits, twice that for trimming) and its default number of mappings.
_DEFAULTS = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
# Never trim, and no mapping of its own for a large block, which would be returned when the block is freed.
_KEEP = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
# What a user sets for the C library is not changed.
_SET_BY_USER = ("MALLOC_", "GLIBC_TUNABLES")
# With fewer gradients, one per image and step, returning the memory costs more than keeping it saves.
_FEW_GRADIENTS = 500

# Open contexts of the process, in all threads.
_open = 0
_lock = Lock()


@contextmanager
def freed_memory_kept(device: torch.device, gradients: float = math.inf) -> Iterator[None]:
    """The process keeps freed memory for its next tensors, and returns it to the system when the last context ends.

    No results change. The context has no effect for another device than a CPU, whose tensors are not on the heap, with
    another C library than glibc, or if the environment sets parameters of malloc (``MALLOC_...``, ``GLIBC_TUNABLES``).

    Args:
        device: where the tensors are.
        gradients: how many there will be, one per image and step; for few of them the context has no effect.
    """
    set_by_user = any(name.startswith(_SET_BY_USER) for name in os.environ)
    worth = device.type == "cpu" and gradients >= _FEW_GRADIENTS
    library = _glibc() if worth and not set_by_user else None
    if library is None:
        yield
        return
    _count(1, library)
    try:
        yield
    finally:
        _count(-1, library)


def _count(change: int, library: Any) -> None:
    """Counts the open contexts; the first one keeps the memory, the end of the last one returns it."""
    global _open
    with _lock:
        _open += change
        if change == 1 == _open:
            _set(library, _KEEP)
        elif not _open:
            _set(library, _DEFAULTS)
            library.malloc_trim(0)


def _set(library: Any, parameters: dict[int, int]) -> None:
    for parameter, value in parameters.items():
        library.mallopt(parameter, value)


def _glibc() -> Any:
    """The C library of the process if it is glibc, else ``None``."""
    try:
        library = ctypes.CDLL(None)
    # Windows has no library without a name.
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None
