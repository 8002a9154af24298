"""Checks that a run has the devices, and if it compiles its network the compiler, that it is configured for."""

from __future__ import annotations

import re

import torch

from trilemma.config.config import Config
from trilemma.errors import ConfigError, describe
from trilemma.training.processes import nodes
from trilemma.training.start import first_stage
from trilemma.workers import most_processes


def available_device(device: str) -> str:
    """Checks that ``device`` exists.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Returns:
        ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: an unknown device, or a GPU that this machine does not have.
    """
    count = torch.cuda.device_count()
    chosen = ("cuda" if count else "cpu") if device == "auto" else device
    # Every CPU device is the same one.
    if re.fullmatch(r"cpu(:[0-9]+)?", chosen):
        return "cpu"
    if not (match := re.fullmatch(r"cuda(?::([0-9]+))?", chosen)):
        raise ConfigError(f"device {device}: unknown; use auto, cpu, cuda or cuda:N")
    if int(match.group(1) or 0) >= count:
        available = f"cuda:0 to cuda:{count - 1}" if count else "only the CPU"
        raise ConfigError(f"device {device}: not available, this machine has {available}")
    return chosen


def check_devices(config: Config, device: str) -> str:
    """Checks that ``device`` exists and is one on which ``config.devices`` processes can run.

    Args:
        config: the configuration of the run.
        device: as of :func:`available_device`.

    Returns:
        ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: as of :func:`available_device`, fewer GPUs than processes, or BatchNorm that is to be synchronised
            on the CPU.
    """
    chosen = available_device(device)
    most = most_processes()
    if config.devices // nodes(config.devices) > most:
        raise ConfigError(
            f"devices: {config.devices} processes are more than the {most} that are started on this machine; lower it"
        )
    if chosen == "cpu" and config.devices > 1 and config.training.sync_bn:
        raise ConfigError(
            "training.sync_bn: BatchNorm can be synchronised on GPUs only; set training.sync_bn=false, or use "
            "network.norm=group, which needs no batch"
        )
    gpus = torch.cuda.device_count() if chosen == "cuda" else 1
    count = config.devices // nodes(config.devices)
    if chosen != "cpu" and count > gpus:
        raise ConfigError(
            f"devices: {count} processes need as many GPUs, but {device} is {gpus}; lower devices, or use "
            "device cuda or cpu"
        )
    return chosen


def check_compiler(config: Config, device: str) -> None:
    """Checks that ``torch.compile`` works on ``device``, if a stage of the run has ``training.compile``.

    It compiles a small function, which takes seconds: what is needed (a C++ compiler, Triton, their headers) depends on
    device and version.

    Raises:
        ConfigError: it does not work.
    """
    stage: Config | None = config
    while stage is not None and not stage.training.compile:
        stage = first_stage(stage)
    if stage is None:
        return
    try:
        torch.compile(lambda values: values.sin() * 2 + 1)(torch.zeros(8, device=device))
    # Compilers raise many types of exceptions.
    except Exception as error:
        raise ConfigError(
            f"training.compile: torch.compile does not work on this machine ({describe(error)}); install a C++ "
            "compiler such as g++, for GPUs Triton too, or set training.compile=false"
        ) from error
