"""Networks inside the wrappers of torch.compile, DataParallel and AveragedModel, which change the names of weights."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

_WITH_MODULE = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def inside(network: Any) -> Any:
    """The network inside wrappers around the whole of it; anything else is returned as it is."""
    while _is_wrapper(network):
        network = network.module if isinstance(network, _WITH_MODULE) else network._orig_mod
    return network


def unwrapped(network: nn.Module) -> nn.Module:
    """The network without wrappers, at any depth, so that no name begins with ``module.`` or ``_orig_mod.``.

    The result shares its parameters with ``network``, which is not changed.
    """
    inner: nn.Module = inside(network)
    if not any(map(_is_wrapper, inner.modules())):
        return inner
    shallow: nn.Module = copy.copy(inner)
    shallow._modules = {
        name: None if child is None else unwrapped(child) for name, child in inner._modules.items()
    }
    return shallow


def _is_wrapper(module: Any) -> bool:
    return isinstance(module, _WITH_MODULE) or "_orig_mod" in getattr(module, "_modules", ())
