"""The pool file: the state of a pool on disk, from which an interrupted evaluation resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from trilemma.attacks.ensemble.pool import MISCLASSIFIED, Pool, Work
from trilemma.classifier.classifier import Classifier
from trilemma.errors import CheckpointError, NotStoredError
from trilemma.files import TensorFormat, tensor_bytes
from trilemma.headers import Count, Header
from trilemma.printing import print_message


class WorkHeader(Header):
    """The fields of :class:`trilemma.attacks.ensemble.pool.Work`."""

    attacked: NonNegativeInt
    broken: NonNegativeInt
    unconfirmed: NonNegativeInt
    forwards: NonNegativeInt
    backwards: NonNegativeInt
    seconds: NonNegativeFloat


class PoolHeader(Header):
    """The header of a pool file: the evaluation, the running attack with the sizes of its batches, the work so far.

    Earlier versions did not store the form of the classifier.
    """

    evaluation: str
    form: str | None = None
    batch_size: Count
    running: str | None
    batches: list[Count] | None = None
    work: dict[str, WorkHeader]


FORMAT = TensorFormat(
    name="attack-state",
    version=1,
    foreign="not the state of an evaluation that this version can resume; delete it",
    damaged="cannot be read ({error})",
    remedy="delete it and start again",
    advice="an interruption will lose the verdicts so far",
    validate=PoolHeader.model_validate,
)
# Seconds between two saves; an interruption also saves, at once.
_SAVE_INTERVAL = 30.0


class PoolFile:
    """Saves a pool to a file and restores it; refuses the file of another evaluation.

    Args:
        path: a safetensors file.
        pool: the pool to save and restore.
        attacks: names of the attacks; a file saved with other attacks is refused.
    """

    def __init__(self, path: Path, pool: Pool, attacks: Sequence[str]) -> None:
        self.path, self.pool = path, pool
        self._evaluation = _fingerprint(pool, attacks)
        self._last_save = time.monotonic()
        self._unwritable = False

    def save_if_due(self) -> None:
        """Saves if the last save is more than half a minute ago."""
        if time.monotonic() - self._last_save > _SAVE_INTERVAL:
            self.save()

    def save(self) -> None:
        """Writes the pool atomically; does nothing before :meth:`Pool.check_clean`.

        If the file cannot be written, prints one warning and does not try again: the evaluation itself continues.
        """
        pool = self.pool
        if pool.broken_by is None or self._unwritable:
            return
        tensors = {"broken_by": pool.broken_by, "waiting": pool.remaining}
        if pool.broken_indices:
            tensors |= {"places": torch.cat(pool.broken_indices), "found": torch.cat(pool.adversarial_parts)}
        header = {
            "evaluation": self._evaluation,
            "form": _form(pool.clf),
            "batch_size": pool.batch_size,
            "running": pool.running,
            # So that a resumed attack has the same batches, with any number of processes.
            "batches": [len(batch) for batch in pool.batches],
            "work": {name: dataclasses.asdict(work) for name, work in pool.work.items()},
        }
        try:
            FORMAT.write(self.path, tensors, header)
        except NotStoredError as error:
            print_message(f"warning: {error}")
            self._unwritable = True
        self._last_save = time.monotonic()

    def restore(self) -> bool:
        """Restores the saved state into the pool; returns ``False`` if there is no file.

        Raises:
            CheckpointError: the file is damaged or no pool file, or it was saved with another classifier, or with other
                images, threat, seed or attacks.
        """
        if not self.path.exists():
            return False
        header, tensors = FORMAT.read(self.path)
        if header.evaluation != self._evaluation or header.form not in (None, _form(self.pool.clf)):
            raise CheckpointError(
                f"{self.path}: holds the state of another evaluation (classifier, images, threat, seed or attacks "
                "differ); delete it, or start again without resuming"
            )
        pool = self.pool
        if not _fits(tensors, header, pool):
            raise FORMAT.invalid(self.path, "its verdicts do not fit the images")
        pool.batch_size, pool.running = header.batch_size, header.running
        pool.work = {name: Work(**work.model_dump()) for name, work in header.work.items()}
        pool.broken_by, waiting = tensors["broken_by"], tensors["waiting"]
        # Earlier versions saved no batches, which had the batch size.
        sizes = pool.batch_size if header.batches is None else header.batches
        pool.batches = list(waiting.split(sizes)) if len(waiting) else []
        if "places" in tensors:
            pool.broken_indices, pool.adversarial_parts = [tensors["places"]], [tensors["found"]]
        return True


def _fits(tensors: Mapping[str, Tensor], header: PoolHeader, pool: Pool) -> bool:
    """Whether verdicts, indices and images of a pool file are of the types and shapes, and in the ranges, of a pool."""
    images = len(pool.labels)
    broken_by, indices = tensors.get("broken_by"), [tensors.get("waiting")]
    if ("places" in tensors) != ("found" in tensors) or header.running not in (None, *header.work):
        return False
    if "places" in tensors:
        places, found = tensors["places"], tensors["found"]
        if found.dtype != torch.float32 or found.shape != (*places.shape, *pool.images.shape[1:]):
            return False
        indices.append(places)
    if indices[0] is not None and header.batches is not None and sum(header.batches) != len(indices[0]):
        return False
    if broken_by is None or broken_by.dtype != torch.int64 or broken_by.shape != (images,):
        return False
    if not bool(((broken_by >= MISCLASSIFIED) & (broken_by < len(header.work))).all()):
        return False
    return all(
        index is not None
        and index.dtype == torch.int64
        and index.ndim == 1
        and bool(((index >= 0) & (index < images)).all())
        for index in indices
    )


def _form(clf: Classifier) -> str:
    """What the logits depend on beside weights and normalisation, as JSON: network, output, and how it was opened."""
    source = clf.about.get("source") or {}
    opened = {key: source.get(key) for key in ("model", "network", "size")}
    return json.dumps([clf.network_config, clf.output, opened], sort_keys=True, default=str)


def _fingerprint(pool: Pool, attacks: Sequence[str]) -> str:
    """SHA-256 of everything that a verdict depends on: classifier, images, labels, threat, seed, attacks."""
    digest = hashlib.sha256(
        json.dumps([pool.threat.norm, str(pool.threat.fraction), pool.seed, list(attacks)]).encode()
    )
    tensors = [*pool.clf.state_dict().values(), pool.clf.mean, pool.clf.std, pool.images, pool.labels]
    for tensor in tensors:
        if tensor is not None:
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
