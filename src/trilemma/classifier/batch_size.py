"""The batch size ``"auto"``: chosen from the memory that a pass needs per image and the memory that is free."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.data.image_set import as_float
from trilemma.errors import ConfigError
from trilemma.units import MOST

# Largest batch per device type. Larger batches are no faster: they exceed the caches of a CPU, and a GPU is fully used.
MAX_BATCH = {"cpu": 256, "cuda": 2048}
# On a CPU a batch beyond 256 MiB is no faster, provided that it has 32 images, and an interruption loses a whole batch.
_CPU_BATCH_BYTES, _CPU_MIN_BATCH = 2**28, 32
# Fraction of the free memory to use; the rest is for gradients and for the buffers of the attack.
_MEMORY_FRACTION = 0.25
# Images of the forward pass in which the memory per image is measured.
_SAMPLE = 2


def resolve_batch_size(clf: Classifier, images: Tensor, batch_size: int | Literal["auto"]) -> int:
    """Returns the batch size as an integer; ``"auto"`` is replaced by :func:`auto_batch_size` of the first image.

    Args:
        clf: the classifier that the batches are for.
        images: ``[N, C, H, W]``, uint8 or float in [0, 1].
        batch_size: at least 1, or ``"auto"``.

    Raises:
        ConfigError: ``batch_size`` is not ``"auto"`` or a whole number above 0.
    """
    if isinstance(batch_size, str) and batch_size == "auto":
        return auto_batch_size(clf, as_float(images[:1].to(clf.device))) if len(images) else 1
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or not 1 <= batch_size <= MOST:
        shown = "a larger number" if isinstance(batch_size, int) and batch_size > MOST else repr(batch_size)
        raise ConfigError(f"batch_size: {shown}; must be at least 1 and at most {MOST:,}, or 'auto'")
    return int(batch_size)


def auto_batch_size(clf: Classifier, image: Tensor) -> int:
    """The largest batch size that is useful and needs at most a quarter of the free memory; at least 1.

    Args:
        clf: does one forward pass of two copies of ``image``, in which the memory per image is measured.
        image: ``[1, C, H, W]`` on the classifier's device.
    """
    per_image = saved_bytes(clf, image) + 10 * image.numel() * image.element_size()
    limit = MAX_BATCH.get(clf.device.type, MAX_BATCH["cpu"])
    if clf.device.type == "cpu":
        limit = min(limit, max(_CPU_MIN_BATCH, _CPU_BATCH_BYTES // per_image))
    return max(1, min(limit, int(_MEMORY_FRACTION * free_memory(clf.device) / per_image)))


def retain_freed_memory(device: torch.device) -> None:
    """Makes glibc keep freed memory for the next pass instead of returning it to the operating system.

    glibc returns a freed block at once if it is larger than any block freed before (up to 32 MiB), and the top of the
    heap beyond twice that size. Page faults on new memory take up to a third of the time of a pass of a small network.
    Allocating and freeing one block of 31 MiB raises both limits. Does nothing on devices other than the CPU.
    """
    if device.type == "cpu":
        torch.empty(31 * 2**20, dtype=torch.uint8)


def saved_bytes(clf: Classifier, image: Tensor) -> int:
    """Bytes per image that autograd saves in the forward pass for the backward pass.

    Args:
        clf: does one forward pass in eval mode; left unchanged.
        image: ``[1, C, H, W]`` on the classifier's device.
    """
    sizes: dict[int, int] = {}
    weights = {value.untyped_storage().data_ptr() for value in (*clf.parameters(), *clf.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.enable_grad(),
        inner_loop(clf, "eval"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved),
    ):
        batch = image.expand(_SAMPLE, -1, -1, -1).contiguous().requires_grad_()
        # The logits keep the graph alive. Otherwise saved tensors could be freed and their addresses counted again.
        logits = clf.logits(batch)
    return (sum(sizes.values()) + logits.nbytes) // _SAMPLE


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``; 4 GiB if the system does not report it.

    On a CPU the smaller of the available memory and what the cgroup's limit leaves.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    candidates = [4 * 2**30]
    if (meminfo := Path("/proc/meminfo")).is_file():
        candidates = [_number(meminfo, "MemAvailable:") * 1024]
    group = Path("/sys/fs/cgroup")
    if (limit_file := group / "memory.max").is_file() and (limit := limit_file.read_text().strip()).isdigit():
        used = int((group / "memory.current").read_text()) - _number(group / "memory.stat", "inactive_file")
        candidates.append(int(limit) - used)
    return max(0, min(candidates))


def _number(path: Path, name: str) -> int:
    """The number that follows ``name`` at the beginning of a line of the file; 0 if there is no such line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(words[1]) for words in lines if words[:1] == [name]), 0)
