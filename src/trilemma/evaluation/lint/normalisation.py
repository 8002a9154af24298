"""Check for normalisation applied twice or not at all: at the first layer, and by accuracy on rescaled images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from math import inf

import torch
from torch import Tensor, nn

from trilemma import noise
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import BatchNorm
from trilemma.energies import cross_entropy
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.gains import Change, best_gain
from trilemma.evaluation.lint.probe import Probe

Constants = tuple[Tensor, Tensor]

# Above this accuracy, clean images alone show hardly any difference. Noisy copies are used too, if the classifier is
# robust enough to the noise.
CEILING, NOISE_STD, NOISE_ROBUST = 0.9, 0.2, 0.8
# What rescaling must reach (see :class:`trilemma.evaluation.lint.gains.Change`): a higher contrast alone raises the
# accuracy of many badly trained networks, so the rescaled images must be classified well.
REACH = ((2.75, 2 / 3), (1.5, 0.9))
# The same with BatchNorm, whose running statistics tell how the images of training were scaled: images that fit them
# (below FITS, in units of :func:`_mismatch`; of 40 networks all that were trained for two epochs were below 0.3) are
# not rescaled, and rescaled ones must fit them better, by the factor FITS_BETTER or with a larger gain.
FITS, FITS_BETTER = 0.45, 2.0
REACH_FITTING, REACH_OF_BATCH_NORM = ((1.2, 0.2),), ((2.0, 1 / 3),)
# Below this part of the loss, that of rescaled clean images is clearly lower.
CLEARLY_LOWER = 0.8
# Number of images that are compared with the running statistics.
MATCHED = 32


def normalisation_findings(
    probe: Probe, images: Tensor, labels: Tensor, correct: Tensor, seeds: Tensor
) -> list[Finding]:
    """A finding for two normalisers in a row, or for a rescaling that clearly raises the accuracy; else an empty list.

    Args:
        images: ``[N, C, H, W]``, not necessarily in [0, 1].
        correct: bool ``[N]``, the images that are classified correctly without rescaling.
    """
    clf = probe.oracle.clf
    if observation := _twice_in_a_row(probe, images[:2]):
        return [Finding.from_catalogue("normalisation", observation, len(images), len(images))]
    changes = [*_rescalings(clf, images)]
    if batch_norm := _first_batch_norm(clf):
        changes = _fitting(probe, batch_norm, images[:MATCHED], changes)
    if not changes:
        return []
    inputs, input_labels, input_correct = images, labels, correct
    if float(correct.float().mean()) >= CEILING:
        noisy = images + NOISE_STD * noise.normal(seeds, 0, images.shape[1:]).to(images)
        noisy = noisy.clamp(float(images.min()), float(images.max()))
        noisy_correct = probe.is_correct(noisy, labels)
        if float(noisy_correct.float().mean()) >= NOISE_ROBUST:
            inputs, input_labels = torch.cat([images, noisy]), torch.cat([labels, labels])
            input_correct = torch.cat([correct, noisy_correct])
    with_noise = len(inputs) > len(images)
    best = best_gain(probe, changes, inputs, input_labels, input_correct)
    if best is None or (with_noise and not _lowers_loss(probe, best.change, images, labels)):
        return []
    kind = "images and noisy copies" if with_noise else "images"
    observation = (
        f"{best.change.text}, {best.gained} misclassified {kind} are classified correctly, and {best.lost} the other "
        "way round"
    )
    return [Finding.from_catalogue("normalisation", observation, best.gained - best.lost, len(inputs))]


def _lowers_loss(probe: Probe, change: Change, images: Tensor, labels: Tensor) -> bool:
    """Whether the mean loss clearly falls: a higher contrast alone can remove noise, and leaves clean images alone."""
    before, after = (cross_entropy(probe.logits(x), labels).mean() for x in (images, change.apply(images)))
    return bool(after < CLEARLY_LOWER * before)


def _rescalings(clf: Classifier, images: Tensor) -> Iterator[Change]:
    """Rescalings that undo or repeat a likely normalisation."""
    constants = {"mean and std 0.5": (torch.full_like(images[:1, :, :1, :1], 0.5),) * 2}
    if clf.mean is not None and clf.std is not None:
        constants["the Classifier's mean and std"] = (clf.mean.float(), clf.std.float())
    constants["mean and std of these images"] = (
        images.mean((0, 2, 3), True),
        images.std((0, 2, 3), keepdim=True).clamp_min(1e-6),
    )

    def change(text: str, apply: Callable[[Tensor], Tensor]) -> Change:
        return Change("normalisation", text, apply, REACH)

    previous: list[Tensor] = []
    for name, (mean, std) in constants.items():
        both = torch.cat([mean.expand(1, images.shape[1], 1, 1), std.expand(1, images.shape[1], 1, 1)])
        if any(torch.allclose(both, other, atol=0.02) for other in previous):
            continue
        previous.append(both)
        yield change(f"normalised once more by {name}", partial(_normalise, constants=(mean, std)))
        yield change(f"with normalisation by {name} undone", partial(_undo, constants=(mean, std)))
    yield change("multiplied by 255", lambda x: x * 255)
    yield change("divided by 255", lambda x: x / 255)


def _first_batch_norm(clf: Classifier) -> BatchNorm | None:
    """The first BatchNorm with running statistics, in the order of the modules; ``None`` if there is none."""
    layers = (module for module in clf.network.modules() if isinstance(module, BatchNorm))
    return next((layer for layer in layers if layer.running_mean is not None), None)


def _fitting(probe: Probe, layer: BatchNorm, images: Tensor, changes: Sequence[Change]) -> list[Change]:
    """The changes after which the images fit the running statistics of ``layer`` better, with what they must reach."""
    given, fitting = _mismatch(probe, layer, images), []
    for change in changes if given >= FITS else ():
        better = given / _mismatch(probe, layer, change.apply(images))
        if better > 1:
            fitting.append(
                replace(change, reach=REACH_FITTING if better >= FITS_BETTER else REACH_OF_BATCH_NORM)
            )
    return fitting


def _mismatch(probe: Probe, layer: BatchNorm, images: Tensor) -> float:
    """The distance of the input of ``layer`` from its running statistics; infinite if the layer is not called.

    It is that of the means, in standard deviations, plus that of log std, each the root mean square over channels.
    """
    values = _input_of(probe, [layer], images)
    mean, variance = layer.running_mean, layer.running_var
    if values is None or mean is None or variance is None:
        return inf
    flat = values.transpose(0, 1).flatten(1)
    variance = variance.float() + layer.eps
    shift = (flat.mean(1) - mean.float()).square() / variance
    ratio = ((flat.var(1) + layer.eps) / variance).log() / 2
    return float(shift.mean().sqrt() + ratio.square().mean().sqrt())


def _twice_in_a_row(probe: Probe, images: Tensor) -> str:
    """A sentence that names two normalisers that both act before the first layer with weights; else ``""``."""
    normalisers = {
        type(module).__name__: constants
        for module in probe.oracle.clf.modules()
        if (constants := _constants(module)) and not _alike(_normalise(images, constants), images)
    }
    first = _first_layer_input(probe, images)
    if first is None or first.shape != images.shape:
        return ""
    for inner, outer in product(normalisers, repeat=2):
        if _alike(first, _normalise(_normalise(images, normalisers[inner]), normalisers[outer])):
            return f"the input of the first layer was normalised by both {inner} and {outer}"
    return ""


def _alike(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def _normalise(images: Tensor, constants: Constants) -> Tensor:
    # A module may hold them as plain numbers, on another device.
    mean, std = (value.to(images) for value in constants)
    return (images - mean) / std


def _undo(images: Tensor, constants: Constants) -> Tensor:
    return images * constants[1] + constants[0]


def _constants(module: nn.Module) -> Constants | None:
    """``mean`` and ``std`` per channel of a module with attributes of these usual names; else ``None``."""
    constants = []
    for name in ("mean", "std"):
        value = getattr(module, name, None)
        if not isinstance(value, Tensor | Sequence | float) or isinstance(value, str):
            return None
        try:
            constants.append(torch.as_tensor(value, dtype=torch.float32).detach().view(1, -1, 1, 1))
        except (TypeError, ValueError, RuntimeError):
            return None
    mean, std = constants
    return (mean, std) if mean.shape == std.shape and bool((std > 0).all()) else None


def _first_layer_input(probe: Probe, images: Tensor) -> Tensor | None:
    """The input of the first layer with weights of its own, float32; ``None`` if no such layer is called."""
    modules = probe.oracle.clf.network.modules()
    return _input_of(
        probe, [m for m in modules if next(m.parameters(recurse=False), None) is not None], images
    )


def _input_of(probe: Probe, layers: Sequence[nn.Module], images: Tensor) -> Tensor | None:
    """The input of the one of these layers that is called first, float32; ``None`` if none is called."""
    first_input: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if not first_input and inputs and isinstance(inputs[0], Tensor):
            # A copy, as a layer may write on its input.
            first_input.append(inputs[0].detach().to(torch.float32, copy=True))

    # TorchScript calls its layers without hooks.
    eager = (layer for layer in layers if not isinstance(layer, torch.jit.ScriptModule))
    handles = [layer.register_forward_pre_hook(hook) for layer in eager]
    try:
        probe.oracle.logits(images)
    finally:
        for handle in handles:
            handle.remove()
    return first_input[0] if first_input else None
