"""A pool on disk: what an interrupted evaluation goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trilemma.attacks.pool import Pool, Work
from trilemma.errors import CheckpointError

FORMAT = "trilemma-attack-state"
# Until version 0.1.0 the project was called ebat.
FORMATS = (FORMAT, "ebat-attack-state")
VERSION = 1
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
        metadata = {"format": FORMAT, "version": str(VERSION), "header": json.dumps(header)}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
            os.replace(temporary, self.path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            print(
                f"warning: {self.path}: cannot be written ({reason}); an interruption will lose what is found",
                file=sys.stderr,
            )
            self._given_up = True
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def restore(self) -> bool:
        """Puts the pool where it was when it was saved; ``False`` where nothing was.

        Raises:
            CheckpointError: not such a file, or of another classifier, other images, threat, seed or attacks.
        """
        if not self.path.is_file():
            return False
        header, tensors = self._read()
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

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") not in FORMATS or int(metadata["version"]) != VERSION:
                    raise CheckpointError(
                        f"{self.path}: not the state of an evaluation that this version can resume; delete it"
                    )
                return json.loads(metadata["header"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.path}: cannot be read ({error}); delete it and start anew"
            ) from None


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
