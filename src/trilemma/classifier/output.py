"""The boundary to a user's network: its logits in whatever it returns, and one line for whatever it raises."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from trilemma.errors import NetworkError, TrilemmaError, describe

# Sides in pixels of usual images, tried when a network refuses those given; a message may name further ones up to 1024.
USUAL_SIDES = (28, 32, 64, 96, 128, 224)
_SIDES = range(8, 1025)
# Types of exceptions that a wrong image shape causes, among many other reasons.
_SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError)


class Function(nn.Module):
    """A function from images to logits as a module.

    Args:
        function: any callable; a module that it uses keeps its own mode and device.
    """

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def as_module(network: object) -> nn.Module:
    """``network`` itself if it is a module, or a function as a :class:`Function`.

    Raises:
        NetworkError: a class, or something that cannot be called.
    """
    if isinstance(network, nn.Module):
        return network
    if isinstance(network, type) or not callable(network):
        given = (
            f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
        )
        raise NetworkError(f"classifier: the network is {given}; pass a torch.nn.Module, such as MyNetwork()")
    return Function(network)


def logits_in(output: Any, key: str | int | None) -> Tensor:
    """The logits in the output of a network.

    Args:
        output: a tensor, which is returned as it is, or a mapping, sequence, named tuple or dataclass that holds one.
        key: key, index or attribute of the logits in an output that is not a tensor.

    Raises:
        NetworkError: the output is not a tensor, and ``key`` is ``None`` or selects none.
    """
    if _is_tensor(output):
        return output
    parts = _parts(output)
    selected = parts.get(str(key)) if key is not None else None
    # A named tuple has names and indices.
    if selected is None and isinstance(output, tuple) and str(key).isdigit() and int(str(key)) < len(output):
        selected = output[int(str(key))]
    if _is_tensor(selected):
        return selected
    names = [name for name, value in parts.items() if isinstance(value, Tensor)]
    if not names:
        raise NetworkError(f"network: returned {_kind(output)}, not a tensor; return logits [N, K]")
    python = int(names[0]) if isinstance(output, Sequence) and names[0].isdigit() else names[0]
    wrong = "" if key is None else f", and no {key!r} in it"
    raise NetworkError(
        f"network: returned {_kind(output)} of {', '.join(names)}, not a tensor{wrong}; select the logits with "
        f"--output {names[0]}, in Python trilemma.Classifier(network, output={python!r})"
    )


def _kind(output: object) -> str:
    return "None" if output is None else f"a {type(output).__name__}"


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    # A tensor is a proxy while the network is traced.
    return isinstance(value, Tensor | fx.Proxy)


def _parts(output: Any) -> dict[str, Any]:
    """The named parts of an output that is not a tensor; empty if it has none."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name, None) for field in dataclasses.fields(output)}
    if isinstance(output, tuple) and (names := getattr(output, "_fields", None)):
        return dict(zip(names, output, strict=True))
    if isinstance(output, Sequence) and not isinstance(output, str | bytes):
        return {str(index): value for index, value in enumerate(output)}
    return {name: value for name, value in getattr(output, "__dict__", {}).items() if name[:1] != "_"}


def check_logits(logits: Tensor, images: Tensor, num_classes: int) -> None:
    """Checks that logits are real numbers ``[N, K]``.

    Raises:
        NetworkError: they are not.
    """
    fits = logits.shape == (len(images), num_classes)
    if fits and not logits.is_complex() and not logits.is_quantized:
        return
    if fits:
        raise NetworkError(f"network: returned {logits.dtype}; return logits as floating-point numbers")
    remedy = (
        "set num_classes to the network's number of classes"
        if logits.dim() == 2 and len(logits) == len(images)
        else "return logits [N, K], one row per image"
    )
    raise NetworkError(
        f"network: returned {list(logits.shape)} for {_counted(len(images))} and {num_classes} classes, which need "
        f"[{len(images)}, {num_classes}]; {remedy}"
    )


def check_finite(logits: Tensor, *, all_of_them: bool = True) -> None:
    """Checks that logits ``[N, K]`` are finite.

    Args:
        logits: to be checked.
        all_of_them: whether one image with other logits is an error, or only no image with finite ones.

    Raises:
        NetworkError: they are not; the message has the number of images.
    """
    wrong = int((~torch.isfinite(logits)).any(1).sum())
    if wrong and (all_of_them or wrong == len(logits)):
        raise NetworkError(
            f"this classifier returns NaN or infinite logits for {wrong} of {len(logits)} images; check its weights, "
            "its normalisation and that it is in float32"
        )


def raised(error: Exception, images: Tensor, where: str = "forward pass") -> TrilemmaError:
    """The one-line error for an exception of the network's ``where`` on ``images``; this package's own is kept."""
    if isinstance(error, TrilemmaError):
        return error
    on = f"the {where} of {_counted(len(images))} of {shape_text(images.shape[1:])} (C, H, W)"
    if _is_out_of_memory(error):
        return NetworkError(f"network: not enough memory for {on}; pass a smaller batch_size")
    return NetworkError(f"network: raised {describe(error)}, in {on}")


def _is_out_of_memory(error: BaseException | None) -> bool:
    # On a CPU, a failed allocation is a RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _counted(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def shape_text(shape: Sequence[int]) -> str:
    """An image shape in words: ``3x32x32``."""
    return "x".join(map(str, shape))


def accepted_shape(
    network: nn.Module, image: Tensor, error: BaseException | None
) -> tuple[int, int, int] | None:
    """Another image shape that a network accepts that raised ``error``; ``None`` if the shape is not the reason.

    It is found by trial, with the image resized to the sizes that the message may speak of and to usual sizes. Only a
    trial tells a wrong shape from the other reasons for an exception of the same type.

    Args:
        network: in eval mode.
        image: ``[1, C, H, W]``, as passed to the network.
        error: what it raised.
    """
    if not isinstance(error, _SHAPE_ERRORS) or _is_out_of_memory(error):
        return None
    for shape in _candidates(tuple(image.shape[1:]), str(error)):
        grey = image.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
        same_channels = image if shape[0] == image.shape[1] else grey
        try:
            with torch.no_grad():
                network(nn.functional.interpolate(same_channels, shape[1:]).contiguous())
        # The user's code may raise anything.
        except Exception:
            continue
        return shape
    return None


def _candidates(given: tuple[int, ...], message: str) -> Iterator[tuple[int, int, int]]:
    """Image shapes to try, the likeliest first and each once."""
    channels, height, width = given
    numbers = [int(digits) for digits in re.findall(r"\d{1,9}", message)]
    # A linear layer's message speaks of the number of pixel values.
    areas = [(c, math.isqrt(number // c)) for c in (channels, 4 - channels) if c > 0 for number in numbers]
    shapes = [(c, side, side) for c, side in areas if side in _SIDES and c * side**2 in numbers]
    shapes += [(c, height, width) for c in (1, 3)]
    sides = [*(number for number in numbers if number in _SIDES), *USUAL_SIDES]
    shapes += [(c, side, side) for c in (channels, 1, 3) for side in sides]
    yield from (shape for shape in dict.fromkeys(shapes) if shape != given)
