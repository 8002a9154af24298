"""Checks that a run has the devices that it is configured for."""

from __future__ import annotations

import re

import torch

from trilemma.config.config import Config
from trilemma.errors import ConfigError


def check_devices(config: Config, device: str) -> str:
    """Checks that ``device`` exists and is one on which ``config.devices`` processes can run.

    Args:
        config: the configuration of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Returns:
        ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: an unknown device, a GPU that this machine does not have, or too few of them.
    """
    count = torch.cuda.device_count()
    chosen = ("cuda" if count else "cpu") if device == "auto" else device
    if re.fullmatch(r"cpu(:[0-9]+)?", chosen):
        return "cpu"
    if not (match := re.fullmatch(r"cuda(?::([0-9]+))?", chosen)):
        raise ConfigError(f"device {device}: unknown; use auto, cpu, cuda or cuda:N")
    index = match.group(1)
    if int(index or 0) >= count:
        available = f"cuda:0 to cuda:{count - 1}" if count else "only the CPU"
        raise ConfigError(f"device {device}: not available, this machine has {available}")
    if config.devices > (1 if index else count):
        raise ConfigError(
            f"devices: {config.devices} processes need as many GPUs, but {device} is {1 if index else count}; lower "
            "devices, or use device cuda or cpu"
        )
    return chosen
