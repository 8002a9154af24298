"""Creates a network from its options, the number of classes and the image shape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from trilemma.config.plug_ins import call_registered
from trilemma.config.registry import NETWORKS
from trilemma.errors import ConfigError, describe
from trilemma.networks.wrappers import inside

# Values and tensors of the parameters of a network: 17 GB in float32, and the depth of 1,600 layers.
MOST_VALUES, MOST_TENSORS = 1 << 32, 5_000
# So many values are drawn in about the time in which a network is created without memory.
_FEW_VALUES = 1 << 20


def create_network(
    options: Any,
    num_classes: int,
    image_shape: tuple[int, int, int],
    most: tuple[int, int] = (MOST_VALUES, MOST_TENSORS),
    initialised: bool = True,
) -> nn.Module:
    """Creates the network ``options.name`` on the default device: images ``[N, C, H, W]`` to logits ``[N, K]``.

    The target of the registry row is called with ``num_classes``, ``in_channels`` and the fields of the options as
    keyword arguments; if it has a parameter ``image_shape``, it is given that and needs no ``in_channels``. Weights are
    drawn from torch's default generator; seed it for reproducible weights.

    Options come from recipes and files, which may ask for a network of any size. A built-in one is therefore created
    without memory for its weights first, and its size compared with ``most``, unless so few values are allowed that
    creating them costs less.

    Args:
        options: an instance of a class of :mod:`trilemma.networks.options`, or of a user's options class.
        num_classes: K, at least 2.
        image_shape: ``(C, H, W)``, pixels.
        most: largest number of values of all parameters, and of parameters.
        initialised: draw initial weights; otherwise they may be zeros, because all of them will be loaded.

    Raises:
        ConfigError: fewer than two classes, an image without pixels, an invalid option, or a network that is too large.
        UnknownNameError: no such network.
        MissingExtraError: the network needs a package that is not installed.
    """
    if num_classes < 2:
        raise ConfigError(f"network: a classifier needs at least 2 classes, got {num_classes}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ConfigError(
            f"network: image_shape must be (channels, height, width), each at least 1, got {tuple(image_shape)}"
        )
    function = NETWORKS.get(options.name)
    from_data = {"num_classes": num_classes, "in_channels": image_shape[0], "image_shape": image_shape}
    given = _accepted(function, from_data, NETWORKS.is_own(options.name))
    settings = {**given, **options.model_dump(exclude={"name"})}
    what = f"network {options.name!r}"
    measured = most[0] > _FEW_VALUES or not _is_of_layers(function)
    if measured and NETWORKS.row(options.name).built_in and torch.get_default_device().type != "meta":
        with _no_larger_than(what, *most):
            shapes = _create_without_memory(what, function, settings)
        if not initialised and shapes is not None and _is_its_state_dict(shapes):
            return _with_zeros(shapes)
    with _no_larger_than(what, *most):
        # No saved file may have a wrapper's prefix.
        network = inside(call_registered(what, function, **settings))
    if not NETWORKS.row(options.name).built_in:
        check_outputs(options.name, network, num_classes, image_shape)
    assert isinstance(network, nn.Module)
    return network


def _is_of_layers(function: Any) -> bool:
    """Whether all weights are those of layers of torch, which are counted before their memory is written."""
    return isinstance(function, type) and function.__module__.startswith("trilemma.networks.")


def _create_without_memory(
    what: str, function: Callable[..., Any], settings: dict[str, Any]
) -> nn.Module | None:
    """A network whose weights have no memory, measured by the hook around it; ``None`` if it computes with them."""
    # Published weights are of the second, real network.
    shapes = {name: value for name, value in settings.items() if name != "pretrained"}
    # Some networks compute with values while they are created, which tensors without memory do not have.
    with (
        torch.random.fork_rng(devices=()),
        suppress(NotImplementedError),
        torch.device("meta"),
        _WithoutDrawing(),
    ):
        network = inside(call_registered(what, function, **shapes))
        return network if isinstance(network, nn.Module) else None
    return None


class _WithoutDrawing(TorchFunctionMode):
    """Context in which tensors are not filled with random numbers, which torch does slowly if they have no memory."""

    _DRAWING = frozenset((torch.Tensor.normal_, torch.Tensor.uniform_))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in self._DRAWING else func(*args, **(kwargs or {}))


def _is_its_state_dict(network: nn.Module) -> bool:
    """Whether a network has no tensors but those of its state dict, each once, and no constants among its buffers."""
    tensors = []
    for module in network.modules():
        package = type(module).__module__
        constants = module._non_persistent_buffers_set or (
            module._buffers and not package.startswith("torch.nn.")
        )
        if (
            constants
            or not package.startswith(("torch.nn.", "trilemma.networks."))
            or any(isinstance(value, torch.Tensor) for value in vars(module).values())
        ):
            return False
        tensors += [*module._parameters.values(), *module._buffers.values()]
    numbers = [id(tensor) for tensor in tensors if tensor is not None]
    return len(set(numbers)) == len(numbers)


def _with_zeros(network: nn.Module) -> nn.Module:
    """The network with memory for its tensors, on the default device."""
    device = torch.get_default_device()

    def zeros(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)

    for module in network.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(zeros(parameter), parameter.requires_grad))
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, zeros(buffer))
    return network


@contextmanager
def _no_larger_than(what: str, most_values: int, most_tensors: int) -> Iterator[None]:
    """Context in which a network is created that may have so many values in so many parameters.

    Raises:
        ConfigError: it has more, or cannot be created in memory.
    """
    values, tensors, thread = 0, 0, threading.get_ident()

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal values, tensors
        if (
            parameter is None
            or isinstance(parameter, UninitializedParameter)
            or thread != threading.get_ident()
        ):
            return
        values, tensors = values + parameter.numel(), tensors + 1
        if values > most_values or tensors > most_tensors:
            raise ConfigError(
                f"{what}: has more than {most_values:,} weights or {most_tensors:,} tensors of weights, the most that "
                "this place allows; lower its width or depth"
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        if (
            isinstance(error, RuntimeError)
            and "memory" not in str(error)
            and "overflow" not in str(error).lower()
        ):
            raise
        raise ConfigError(f"{what}: is too large for this machine; lower its width or depth") from error
    finally:
        hook.remove()


def _accepted(function: Callable[..., Any], from_data: dict[str, Any], own: bool) -> dict[str, Any]:
    """The items of ``from_data`` that ``function`` is called with.

    Args:
        function: target of the registry row.
        from_data: ``num_classes``, ``in_channels`` and ``image_shape``.
        own: whether the function is one of the user's, ``MODULE:FUNCTION``, which is given only what it has parameters
            for. A registered one has to take ``num_classes``, and ``in_channels`` unless it takes the image shape.
    """
    parameters = signature(function).parameters
    variable = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    needed = (
        set() if own else {"num_classes"} if "image_shape" in parameters else {"num_classes", "in_channels"}
    )
    return {
        name: value
        for name, value in from_data.items()
        if name in parameters or name in needed or (variable and name != "image_shape")
    }


def check_outputs(name: str, network: object, num_classes: int, image_shape: tuple[int, int, int]) -> None:
    """Checks on two black images that a network is a module that returns one logit per class.

    Args:
        name: the network's name, for messages.
        network: what its function returned.
        num_classes: K.
        image_shape: ``(C, H, W)``.

    Raises:
        ConfigError: it is no module, fails for such images, or returns something else.
    """
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"network {name!r}: returned a {type(network).__name__}; its function returns a torch.nn.Module"
        )
    was_training = getattr(network, "training", False)
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, *image_shape))
    # Any exception: it comes from the user's code, or from a library's.
    except Exception as error:
        raise ConfigError(
            f"network {name!r}: cannot classify images of shape {image_shape}: {describe(error)}"
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        returned = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(
            f"network {name!r}: returned {returned} for 2 images and {num_classes} classes; it returns logits "
            f"[2, {num_classes}]"
        )
