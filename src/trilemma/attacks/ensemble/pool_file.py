"""A pool on disk: what an interrupted evaluation goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from trilemma.attacks.ensemble.pool import Pool, Work
from trilemma.errors import CheckpointError
from trilemma.files import TensorFormat

FORMAT = TensorFormat(
    name="attack-state",
    version=1,
    foreign="not the state of an evaluation that this version can resume; delete it",
    damaged="cannot be read ({error}); delete it and start anew",
    advice="an interruption will lose what is found",
)
# Seconds between two savings while all goes well; an interruption saves at once.
_EVERY = 30.0


class PoolFile:
    """Where a pool is saved, and of which evaluation.

    Args:
        path: a safetensors file.
        pool: saved and restored by this object.
        attacks: names of the attacks, which belong to what is evaluated.
    """

    def __init__(self, path: Path, pool: Pool, attacks: Sequence[str]) -> None:
        self.path, self.pool = path, pool
        self._what = _fingerprint(pool, attacks)
        self._saved = time.monotonic()
        self._given_up = False

    def save_if_due(self) -> None:
        if time.monotonic() - self._saved > _EVERY:
            self.save()

    def save(self) -> None:
        """Writes the pool atomically; nothing before its first look at the images.

        A file that cannot be written is a warning, once: the evaluation itself need not suffer.
        """
        pool = self.pool
        if pool.broken_by is None or self._given_up:
            return
        tensors = {"broken_by": pool.broken_by, "waiting": pool.waiting}
        if pool.places:
            tensors |= {"places": torch.cat(pool.places), "found": torch.cat(pool.found)}
        header = {
            "evaluation": self._what,
            "batch_size": pool.batch_size,
            "running": pool.running,
            "work": {name: dataclasses.asdict(work) for name, work in pool.work.items()},
        }
        try:
            FORMAT.write(self.path, tensors, header)
        except CheckpointError as error:
            print(f"warning: {error}", file=sys.stderr)
            self._given_up = True
        self._saved = time.monotonic()

    def restore(self) -> bool:
        """Puts the pool where it was when it was saved; ``False`` where nothing was.

        Raises:
            CheckpointError: not such a file, or of another classifier, other images, threat, seed or attacks.
        """
        if not self.path.is_file():
            return False
        header, tensors = FORMAT.read(self.path)
        if header["evaluation"] != self._what:
            raise CheckpointError(
                f"{self.path}: holds the state of another evaluation (classifier, images, threat, seed or attacks "
                "differ); delete it, or start anew without resuming"
            )
        pool = self.pool
        pool.batch_size, pool.running = header["batch_size"], header["running"]
        pool.work = {name: Work(**work) for name, work in header["work"].items()}
        pool.broken_by, pool.waiting = tensors["broken_by"], tensors["waiting"]
        if "places" in tensors:
            pool.places, pool.found = [tensors["places"]], [tensors["found"]]
        return True


def _fingerprint(pool: Pool, attacks: Sequence[str]) -> str:
    """A hash of everything that a verdict depends on."""
    found = hashlib.sha256(
        json.dumps([pool.threat.norm, str(pool.threat.fraction), pool.seed, list(attacks)]).encode()
    )
    tensors = [*pool.clf.state_dict().values(), pool.clf.mean, pool.clf.std, pool.images, pool.labels]
    for tensor in tensors:
        if tensor is not None:
            found.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
