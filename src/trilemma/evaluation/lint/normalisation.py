"""Check for normalisation applied twice or not at all: at the first layer, and by accuracy on rescaled images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from trilemma import noise
from trilemma.classifier.classifier import Classifier
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.probe import Probe, clearly_more

Rescale = Callable[[Tensor], Tensor]
Constants = tuple[Tensor, Tensor]

# Above this accuracy, clean images alone show hardly any difference. Noisy copies are used too, if the classifier is
# robust enough to the noise.
CEILING, NOISE_STD, NOISE_ROBUST = 0.9, 0.2, 0.8
# Number of correctly classified and of misclassified images that a rescaling is tried on first.
FIRST = 24
# Net number of images that a rescaling must gain, and the significance level of the gain.
AT_LEAST, CHANCE = 3, 1e-3
# Required accuracy after rescaling, as a share of the way from always predicting the most frequent class to all
# correct. An untrained network changes its predictions for whole classes, so its images are not independent samples.
REQUIRED_SHARE = 0.2


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
    inputs, input_labels, input_correct = images, labels, correct
    if float(correct.float().mean()) >= CEILING:
        noisy = images + NOISE_STD * noise.normal(seeds, 0, images.shape[1:]).to(images)
        noisy = noisy.clamp(float(images.min()), float(images.max()))
        noisy_correct = probe.is_correct(noisy, labels)
        if float(noisy_correct.float().mean()) >= NOISE_ROBUST:
            inputs, input_labels = torch.cat([images, noisy]), torch.cat([labels, labels])
            input_correct = torch.cat([correct, noisy_correct])
    best: tuple[int, int, str] | None = None
    for name, rescale in _rescalings(clf, images):
        gained, lost = _compare(probe, rescale, inputs, input_labels, input_correct)
        needed = AT_LEAST if best is None else best[0] - best[1] + 1
        if clearly_more(gained, lost, needed, chance=CHANCE) and _is_trained(
            int(input_correct.sum()) + gained - lost, input_labels
        ):
            best = gained, lost, name
    if best is None:
        return []
    gained, lost, name = best
    kind = "images" if len(inputs) == len(images) else "images and noisy copies"
    observation = (
        f"{name}, {gained} misclassified {kind} are classified correctly, and {lost} the other way round"
    )
    return [Finding.from_catalogue("normalisation", observation, gained - lost, len(inputs))]


def _is_trained(correct: int, labels: Tensor) -> bool:
    """Whether ``correct`` images are clearly more than always predicting the most frequent class would give."""
    most_frequent = int(labels.bincount().max())
    return correct - most_frequent >= REQUIRED_SHARE * (len(labels) - most_frequent)


def _compare(
    probe: Probe, rescale: Rescale, images: Tensor, labels: Tensor, correct: Tensor
) -> tuple[int, int]:
    """How many images become correct by rescaling, and how many wrong; (0, 0) if the first few show no gain."""

    def changed(index: Tensor) -> Tensor:
        return probe.is_correct(rescale(images[index]), labels[index]) != correct[index]

    wrong_index, correct_index = (~correct).nonzero().squeeze(1), correct.nonzero().squeeze(1)
    expected_gain = 0.0
    for index, sign in ((wrong_index, 1), (correct_index, -1)):
        if len(index):
            expected_gain += sign * float(changed(index[:FIRST]).float().mean()) * len(index)
    if expected_gain < AT_LEAST:
        return 0, 0
    gained = int(changed(wrong_index).sum())
    return gained, int(changed(correct_index).sum()) if len(correct_index) else 0


def _rescalings(clf: Classifier, images: Tensor) -> Iterator[tuple[str, Rescale]]:
    """Rescalings that undo or repeat a likely normalisation, each with its description."""
    constants = {"mean and std 0.5": (torch.full_like(images[:1, :, :1, :1], 0.5),) * 2}
    if clf.mean is not None and clf.std is not None:
        constants["the Classifier's mean and std"] = (clf.mean.float(), clf.std.float())
    constants["mean and std of these images"] = (
        images.mean((0, 2, 3), True),
        images.std((0, 2, 3), keepdim=True).clamp_min(1e-6),
    )
    previous: list[Tensor] = []
    for name, (mean, std) in constants.items():
        both = torch.cat([mean.expand(1, images.shape[1], 1, 1), std.expand(1, images.shape[1], 1, 1)])
        if any(torch.allclose(both, other, atol=0.02) for other in previous):
            continue
        previous.append(both)
        yield f"normalised once more by {name}", partial(_normalise, constants=(mean, std))
        yield f"with normalisation by {name} undone", partial(_undo, constants=(mean, std))
    yield "multiplied by 255", lambda x: x * 255
    yield "divided by 255", lambda x: x / 255


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
    first_input: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if not first_input and inputs and isinstance(inputs[0], Tensor):
            # A copy, as a layer may write on its input.
            first_input.append(inputs[0].detach().to(torch.float32, copy=True))

    # TorchScript calls its layers without hooks.
    layers = [
        m
        for m in probe.oracle.clf.network.modules()
        if not isinstance(m, torch.jit.ScriptModule) and next(m.parameters(recurse=False), None) is not None
    ]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        probe.oracle.logits(images)
    finally:
        for handle in handles:
            handle.remove()
    return first_input[0] if first_input else None
