"""The share of this process in training that several processes do together, and the exchange of tensors between them.

Everything that a training step draws or keeps is defined for the whole batch: every process draws the random numbers of
the whole batch from the same generator and takes those of its own images. The number of processes therefore changes a
result by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.errors import ProcessLostError, describe


@dataclass(frozen=True)
class Share:
    """The rank of this process among ``count`` processes, each of which has an equal part of every batch.

    The methods that exchange tensors have to be called by all processes, in the same order and with tensors of the same
    shape. With one process they return their argument.
    """

    rank: int = 0
    count: int = 1

    def part(self, whole: Tensor) -> Tensor:
        """This process's part of a tensor with one row per image of the whole batch, ``[n / count, ...]``."""
        return whole if self.count == 1 else whole.tensor_split(self.count)[self.rank]

    def whole(self, part: Tensor) -> Tensor:
        """The tensor of the whole batch, ``[n * count, ...]``, from the parts ``[n, ...]`` of all processes."""
        if self.count == 1:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.count)]
        with _exchange():
            torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes; ``values`` itself is overwritten if it is contiguous."""
        return self._reduced(values, "SUM")

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, of floating-point values that may be overwritten."""
        return self.sum(values) if self.count == 1 else self.sum(values).div_(self.count)

    def any(self, *flags: bool, device: torch.device) -> tuple[bool, ...]:
        """Returns for each flag whether it is true in any process, so that all processes take the same branch."""
        if self.count == 1:
            return flags
        return tuple(
            flag > 0 for flag in self._reduced(torch.tensor(flags, device=device).int(), "MAX").tolist()
        )

    def wait(self, device: torch.device) -> None:
        """Returns when all processes have called it."""
        self.any(False, device=device)

    def _reduced(self, values: Tensor, operation: str) -> Tensor:
        if self.count == 1:
            return values
        values = values.detach().contiguous()
        with _exchange():
            torch.distributed.all_reduce(values, getattr(torch.distributed.ReduceOp, operation))
        return values


@contextmanager
def _exchange() -> Iterator[None]:
    """Context of an exchange.

    Raises:
        ProcessLostError: another process has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            f"another process of this run ended, or does not answer ({describe(error)})"
        ) from error


ALONE = Share()
_shares = [ALONE]


def current() -> Share:
    """The share of this process in the running training; that of a single process elsewhere."""
    return _shares[-1]


@contextmanager
def among(rank: int, count: int) -> Iterator[Share]:
    """Context in which this process is number ``rank`` of ``count``; the process group of torch must exist."""
    _shares.append(Share(rank, count))
    try:
        yield _shares[-1]
    finally:
        _shares.pop()
