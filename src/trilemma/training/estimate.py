"""Checks a configuration and estimates the cost of its run, from shapes and timed forward passes, without training."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trilemma.classifier.memory_format import preferred_memory_format, set_memory_format
from trilemma.config.config import Config
from trilemma.config.registry import DATASETS
from trilemma.data.cache import cache_folder, cache_required
from trilemma.data.catalogue import RESIDENT, Dataset, find_dataset
from trilemma.data.image_set import Splits
from trilemma.errors import TrilemmaError
from trilemma.monitors.remedies import late_rollbacks
from trilemma.networks.cost import count_macs, count_parameters
from trilemma.networks.create import check_outputs, create_network
from trilemma.training import build
from trilemma.training.checks import check_run
from trilemma.training.devices import check_compiler, check_devices
from trilemma.training.record import NEWEST_STATES, OLDER_STATES
from trilemma.training.start import check_start, first_stage, load_start, provenance
from trilemma.units import byte_size

# Largest number of multiply-accumulates of a timed forward pass: one or two seconds on a small CPU.
MAX_TIMED_MACS = 40e9
BYTES_PER_VALUE = 4
# Class names in the check of the data.
CLASSES_SHOWN = 5


def estimate(config: Config, device: str = "auto") -> dict[str, Any]:
    """Checks data, device, initial weights and disk, and estimates time and memory of the whole run.

    Args:
        config: the configuration of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Returns:
        ``checks``: list of ``{"name", "ok", "message"}``. Unless the check of the data fails, also ``device``,
        ``parameters``, ``macs`` (per image and forward pass), ``forward_passes_per_image`` (see
        :func:`forward_passes`), ``steps``, ``seconds_per_step``, ``hours``, ``memory_gb`` and ``disk_gb``.
    """
    chosen, check = _check_device(config, device)
    checks = [check]
    if config.training.compile and check["ok"]:
        works = "torch.compile works"
        checks.append(_check("compiler", lambda: check_compiler(config, str(chosen)), works))
    known, splits, message = _data(config)
    checks.append({"name": "data", "ok": known is not None, "message": message})
    if known is None:
        return {"checks": checks}
    classes, shape, images = known
    if config.training.start is not None:
        checks.append(_check("start", lambda: _describe_start(config, splits)))
    if splits is not None and checks[-1]["ok"]:
        together = "network, method and batch work together"
        checks.append(_check("run", lambda: check_run(config, splits), together))
    network = create_network(config.network, classes, shape)
    # Before the shapes are propagated, where a network that cannot take them raises an exception of its own.
    check_outputs(config.network.model_dump()["name"], network, classes, shape)
    network.to(chosen)
    macs, parameters = count_macs(network, shape), count_parameters(network)
    passes = forward_passes(config)
    batch = config.training.batch_size
    steps = config.training.epochs * (images // batch) * config.method.repeats
    with build.build_convolutions(config, network):
        seconds = seconds_per_image(network, macs, shape) * passes * batch / config.devices
    resident = _resident_images(config, splits, images)
    memory = _memory_gb(config, network, shape, parameters, resident)
    disk = _disk_gb(config, parameters, shape)
    checks.append(_check_disk(disk))
    if splits is None or steps > 0:
        checks.append({"name": "steps", "ok": steps > 0, "message": f"{steps:,} steps of {batch} images"})
    return {
        "checks": checks, "device": str(chosen), "parameters": parameters, "macs": macs,
        "forward_passes_per_image": passes, "steps": steps, "seconds_per_step": seconds,
        "hours": steps * seconds / 3600, "memory_gb": memory, "disk_gb": disk,
    }  # fmt: skip


def forward_passes(config: Config) -> int:
    """Returns the cost of a training step per image, in forward passes.

    A step of an attack or chain counts 2 and an image set in the loss 3. A set forwarded without gradient counts 1.
    A set whose input gradient is differentiated counts 6: 1 for the forward pass, 1 for the gradient, and 2 each for
    the backward passes through the gradient and through the forward pass. SAM and AWP double the cost of the loss;
    AWP is counted from the first epoch on, whatever ``update.from_epoch`` is. If a method repeats each batch, the
    result is the cost of one repetition.
    """
    method = config.method
    walks = 2 * ((config.attack.steps or 0) if method.uses_attack else 0)
    walks += 2 * ((config.sampler.steps or 0) if method.uses_sampler else 0)
    sets = method.loss_sets + _sets_of_regulariser(config)
    loss = 3 * (sets + method.double_backwards) + method.detached_sets
    return walks + method.other_forwards + loss * (1 if config.update.name == "plain" else 2)


def _sets_of_regulariser(config: Config) -> int:
    """Returns the number of image sets that the regulariser forwards beside those of the method."""
    der = config.regulariser
    if der is None:
        return 0
    if der.mode == "eval":
        return 2
    return int(not config.method.forwards_clean or der.reference == "start")


def _resident_images(config: Config, splits: Splits | None, images: int) -> int:
    """Returns how many of the training images are held as pixels: all, or of a stream a choice."""
    if splits is not None:
        return len(splits.train)
    streamed = find_dataset(config.data.name).streamed
    return min(images, config.data.resident or RESIDENT) if streamed else images


def _check(name: str, check: Callable[[], str | None], message: str = "") -> dict[str, Any]:
    """Returns the outcome of ``check``: its message, or that of the error it raises."""
    try:
        return {"name": name, "ok": True, "message": check() or message}
    except TrilemmaError as error:
        return {"name": name, "ok": False, "message": str(error)}


def _data(config: Config) -> tuple[tuple[int, tuple[int, int, int], int] | None, Splits | None, str]:
    """Returns classes, image shape and number of training images, the images, and a message; downloads nothing.

    The first value is ``None`` if they are not known; the message then says why. The second is ``None`` as long as the
    images are not there.
    """
    section = config.data
    known = find_dataset(section.name) if section.name in DATASETS else None
    if known is not None and section.root is None and _is_to_come(section.name, known):
        if known.num_classes is None or known.image_shape is None or known.train_images is None:
            reason = "not downloaded yet, and its registry row does not state shape and counts"
            return None, None, f"{section.name}: {reason}"
        channels, *side = known.image_shape
        images = section.train_images or known.train_images
        if not known.num_classes <= images <= known.train_images:
            allowed = f"{known.num_classes} to {known.train_images}"
            return None, None, f"data.train_images is {images}; {section.name} needs a number from {allowed}"
        height, width = (section.size, section.size) if section.size else side
        message = (
            f"not checked: data.root is not given; estimated for the {images:,} training images of {section.name}"
            if known.streamed
            else f"{section.name} will be downloaded when training starts"
        )
        return (known.num_classes, (channels, height, width), images), None, message
    try:
        with cache_required():
            splits = build.build_data(config)
    except TrilemmaError as error:
        return None, None, str(error)
    train = splits.train
    return (train.num_classes, train.image_shape, len(splits.training)), splits, _describe_data(splits)


def _describe_data(splits: Splits) -> str:
    """Returns the name of the data, the size of every part, the first class names, and what is not counted."""
    train = splits.train
    counts = ", ".join(
        f"{len(part):,} {part.split}" for part in (splits.training, splits.held_out, splits.test)
    )
    names = ", ".join(train.class_names[:CLASSES_SHOWN])
    more = ", ..." if train.num_classes > CLASSES_SHOWN else ""
    text = f"{train.name}: {counts} images in {train.num_classes} classes ({names}{more})"
    if train.selection:
        text += f", read from shards; class statistics and starts from {train.selection}"
    return "; ".join((text, *train.remarks))


def _is_to_come(name: str, dataset: Dataset) -> bool:
    """Whether a data set without a root is not there yet, but its registry row may state what is needed."""
    if dataset.streamed:
        return dataset.train_images is not None
    folder = cache_folder() / "downloads" / name
    return not all((folder / archive.file).is_file() for archive in dataset.archives)


def _check_device(config: Config, device: str) -> tuple[torch.device, dict[str, Any]]:
    """Returns the device, the CPU if it does not exist, and the outcome of the check."""
    chosen = torch.device("cpu")

    def check() -> str:
        nonlocal chosen
        chosen = torch.device(check_devices(config, device))
        return f"{chosen}, {torch.get_num_threads()} threads" if chosen.type == "cpu" else str(chosen)

    outcome = _check("device", check)
    return chosen, outcome


def _describe_start(config: Config, splits: Splits | None) -> str:
    """Checks ``training.start`` against the training images, if they are there, and returns what it is."""
    start = str(config.training.start)
    if splits is not None:
        check_start(config, splits.train)
    stage = first_stage(config)
    if stage is not None:
        return f"{start} is trained first ({stage.training.epochs} epochs), which is not counted here"
    if splits is None:
        return f"weights of {start}, which are checked when the images are there"
    return f"weights of {start}{provenance(load_start(config, splits.train))}"


def _check_disk(needed_gb: float) -> dict[str, Any]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return {
        "name": "disk",
        "ok": free > needed_gb,
        "message": f"{byte_size(1e9 * free)} free in the current folder, about {byte_size(1e9 * needed_gb)} needed",
    }


@torch.no_grad()
def seconds_per_image(network: nn.Module, macs: int, shape: tuple[int, int, int]) -> float:
    """Returns the median time of a forward pass per image, for a batch that takes about a second."""
    batch = max(1, min(128, int(MAX_TIMED_MACS / macs)))
    device = next(network.parameters()).device
    network = network.eval()
    memory_format = preferred_memory_format(network, device)
    set_memory_format(network, memory_format)
    images = torch.rand(batch, *shape, device=device).contiguous(memory_format=memory_format)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        network(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[1] / batch


def _memory_gb(
    config: Config, network: nn.Module, shape: tuple[int, int, int], parameters: int, images: int
) -> float:
    """Returns the memory of weights, gradients, optimiser, averages, graph of the loss, replay buffer and images."""
    activations = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal activations
        activations += output.numel() if isinstance(output, torch.Tensor) else 0

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape, device=next(network.parameters()).device))
    for handle in handles:
        handle.remove()
    copies = 2 + (2 if config.optimiser.name == "adam" else 1) + (config.training.ema is not None)
    # SAM and AWP store the gradient of the first pass, the original weights and the perturbed weights.
    copies += 3 * (config.update.name != "plain")
    pixels = shape[0] * shape[1] * shape[2]
    buffer = (config.sampler.buffer_size or 0) * pixels if config.method.uses_sampler else 0
    # The graph of a gradient that is differentiated is as large as the graph of its forward pass.
    sets = config.method.loss_sets + config.method.double_backwards
    graph = activations * config.training.batch_size * sets // config.devices
    return (BYTES_PER_VALUE * (copies * parameters + graph + buffer) + images * pixels) / 1e9


def _disk_gb(config: Config, parameters: int, shape: tuple[int, int, int]) -> float:
    """Returns the disk space of the stored training states, and of two finished classifiers with their chains."""
    pixels = shape[0] * shape[1] * shape[2]
    buffer = (config.sampler.buffer_size or 0) * pixels if config.method.uses_sampler else 0
    stored = NEWEST_STATES + (OLDER_STATES if late_rollbacks(config.monitors) else 0)
    states = stored * (4 * parameters + buffer)
    # Chains have one byte per value.
    return (BYTES_PER_VALUE * (states + 2 * (parameters + 10 * 64 * pixels)) + 2 * buffer) / 1e9
