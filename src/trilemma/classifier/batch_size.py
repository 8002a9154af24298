"""How many images fit: the batch size ``"auto"``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.data.image_set import as_float
from trilemma.errors import ConfigError

# More at once is no faster: it leaves a processor's caches, or fills a large accelerator already.
MOST = {"cpu": 256, "cuda": 2048}
# A processor is as fast with few images of a large network, and a batch is what an interruption loses.
_BYTES_ON_CPU, _ENOUGH_ON_CPU = 2**28, 32
# Of the memory that is free; gradients on their way back and the attack's own images need room beside what is kept.
_SHARE = 0.25
_SAMPLE = 2


def resolve_batch_size(clf: Classifier, images: Tensor, batch_size: int | Literal["auto"]) -> int:
    """A batch size as a number; ``"auto"`` is fitted to the memory by one of ``images``, which may be uint8.

    Raises:
        ConfigError: below 1.
    """
    if batch_size == "auto":
        return auto_batch_size(clf, as_float(images[:1].to(clf.device))) if len(images) else 1
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size}; must be at least 1, or 'auto'")
    return batch_size


def auto_batch_size(clf: Classifier, image: Tensor) -> int:
    """As many images as are of use, but a forward and backward pass of them takes a quarter of the free memory at most.

    Args:
        clf: asked about two copies of ``image``; what it keeps for the backward pass is measured.
        image: ``[1, C, H, W]`` on the classifier's device.
    """
    per_image = kept_bytes(clf, image) + 10 * image.numel() * image.element_size()
    most = MOST.get(clf.device.type, MOST["cpu"])
    if clf.device.type == "cpu":
        most = min(most, max(_ENOUGH_ON_CPU, _BYTES_ON_CPU // per_image))
    return max(1, min(most, int(_SHARE * free_memory(clf.device) / per_image)))


def keep_freed(device: torch.device) -> None:
    """Has the C library keep the memory that one pass frees for the next, instead of giving it back to the system.

    glibc gives back blocks larger than any it has seen freed, up to 32 MiB, and the heap's end beyond double that. To
    get it anew, page by page, takes up to a third of a pass of a small network. Elsewhere this does nothing.
    """
    if device.type == "cpu":
        torch.empty(31 * 2**20, dtype=torch.uint8)


def kept_bytes(clf: Classifier, image: Tensor) -> int:
    """Bytes per image that stay between the forward and the backward pass."""
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
        here = image.expand(_SAMPLE, -1, -1, -1).contiguous().requires_grad_()
        kept = clf.logits(here)  # alive, or what it keeps would be freed and its place counted twice
    return (sum(sizes.values()) + kept.nbytes) // _SAMPLE


def free_memory(device: torch.device) -> int:
    """Bytes that could still be had on ``device``; 4 GiB where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [4 * 2**30]
    if (meminfo := Path("/proc/meminfo")).is_file():
        found = [_number(meminfo, "MemAvailable:") * 1024]
    group = Path("/sys/fs/cgroup")
    if (limit := group / "memory.max").is_file() and (most := limit.read_text().strip()).isdigit():
        used = int((group / "memory.current").read_text()) - _number(group / "memory.stat", "inactive_file")
        found.append(int(most) - used)
    return max(0, min(found))


def _number(path: Path, name: str) -> int:
    """The number that follows ``name`` at the beginning of a line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(words[1]) for words in lines if words[:1] == [name]), 0)
