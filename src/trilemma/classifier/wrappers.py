"""Networks inside the wrappers of torch.compile, DataParallel and AveragedModel, which change the names of weights."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

_WITH_MODULE = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network without wrappers, at any depth, so that no name begins with ``module.`` or ``_orig_mod.``.

    The result shares its parameters with ``network``, which is not changed.
    """
    inner: Any = network
    while _is_wrapper(inner):
        inner = inner.module if isinstance(inner, _WITH_MODULE) else inner._orig_mod
    if not any(map(_is_wrapper, inner.modules())):
        unchanged: nn.Module = inner
        return unchanged
    shallow: nn.Module = copy.copy(inner)
    shallow._modules = {
        name: None if child is None else unwrapped(child) for name, child in inner._modules.items()
    }
    return shallow


def _is_wrapper(module: Any) -> bool:
    return isinstance(module, _WITH_MODULE) or "_orig_mod" in getattr(module, "_modules", ())
