"""Normalisation applied twice or not at all: seen at the first layer, and by accuracy on rescaled copies."""

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

# Near 100 % clean images alone tell little: noisy copies count too, where noise costs the classifier little.
CEILING, NOISE_STD, NOISE_ROBUST = 0.9, 0.2, 0.8
FIRST = 24  # right and wrong images that a rescaling is tried on first
AT_LEAST, CHANCE = 3, 1e-3  # images that a rescaling must win, and how likely it does so by luck
# Share of the way from the commonest class to all images right that a rescaling must reach. A network that has learnt
# nothing changes its predictions class by class, where many images are no more than one throw of a coin.
KNOWS = 0.2


def normalisation_findings(
    probe: Probe, images: Tensor, labels: Tensor, right: Tensor, seeds: Tensor
) -> list[Finding]:
    """Two normalisers in a row, else the rescaling that is clearly better than none.

    Args:
        images: ``[N, C, H, W]``; also ones that are not in [0, 1].
        right: which are classified correctly as they are.
    """
    clf = probe.oracle.clf
    if seen := _twice_in_a_row(probe, images[:2]):
        return [Finding.known("normalisation", seen, len(images), len(images))]
    inputs, truth, verdicts = images, labels, right
    if float(right.float().mean()) >= CEILING:
        noisy = images + NOISE_STD * noise.normal(seeds, 0, images.shape[1:]).to(images)
        noisy = noisy.clamp(float(images.min()), float(images.max()))
        right_noisy = probe.right(noisy, labels)
        if float(right_noisy.float().mean()) >= NOISE_ROBUST:
            inputs, truth = torch.cat([images, noisy]), torch.cat([labels, labels])
            verdicts = torch.cat([right, right_noisy])
    best: tuple[int, int, str] | None = None
    for name, rescale in _rescalings(clf, images):
        gained, lost = _compare(probe, rescale, inputs, truth, verdicts)
        needed = AT_LEAST if best is None else best[0] - best[1] + 1
        if clearly_more(gained, lost, needed, chance=CHANCE) and _knows(
            int(verdicts.sum()) + gained - lost, truth
        ):
            best = gained, lost, name
    if best is None:
        return []
    gained, lost, name = best
    copies = "images" if len(inputs) == len(images) else "images and noisy copies"
    seen = f"{name}, the classifier gets {gained} {copies} right that it gets wrong now, and loses {lost}"
    return [Finding.known("normalisation", seen, gained - lost, len(inputs))]


def _knows(right: int, labels: Tensor) -> bool:
    """Whether ``right`` of the images is clearly more than always saying the commonest class would get."""
    commonest = int(labels.bincount().max())
    return right - commonest >= KNOWS * (len(labels) - commonest)


def _compare(
    probe: Probe, rescale: Rescale, images: Tensor, labels: Tensor, right: Tensor
) -> tuple[int, int]:
    """How many rescaled images become right and how many wrong; (0, 0) where the first few promise no gain."""

    def changed(rows: Tensor) -> Tensor:
        return probe.right(rescale(images[rows]), labels[rows]) != right[rows]

    wrong_rows, right_rows = (~right).nonzero().squeeze(1), right.nonzero().squeeze(1)
    expected = 0.0
    for rows, sign in ((wrong_rows, 1), (right_rows, -1)):
        if len(rows):
            expected += sign * float(changed(rows[:FIRST]).float().mean()) * len(rows)
    if expected < AT_LEAST:
        return 0, 0
    return int(changed(wrong_rows).sum()), int(changed(right_rows).sum()) if len(right_rows) else 0


def _rescalings(clf: Classifier, images: Tensor) -> Iterator[tuple[str, Rescale]]:
    """What may have been forgotten, or done once too often, and how to say it."""
    constants = {"mean and std 0.5": (torch.full_like(images[:1, :, :1, :1], 0.5),) * 2}
    if clf.mean is not None and clf.std is not None:
        constants["the Classifier's mean and std"] = (clf.mean.float(), clf.std.float())
    constants["mean and std of these images"] = (
        images.mean((0, 2, 3), True),
        images.std((0, 2, 3), keepdim=True).clamp_min(1e-6),
    )
    tried: list[Tensor] = []
    for name, (mean, std) in constants.items():
        both = torch.cat([mean.expand(1, images.shape[1], 1, 1), std.expand(1, images.shape[1], 1, 1)])
        if any(torch.allclose(both, other, atol=0.02) for other in tried):
            continue
        tried.append(both)
        yield f"normalised once more by {name}", partial(_normalise, constants=(mean, std))
        yield f"with normalisation by {name} undone", partial(_undo, constants=(mean, std))
    yield "multiplied by 255", lambda x: x * 255
    yield "divided by 255", lambda x: x / 255


def _twice_in_a_row(probe: Probe, images: Tensor) -> str:
    """Names two normalisers that both act before the first layer with weights; empty if there are none."""
    normalisers = {
        type(module).__name__: found
        for module in probe.oracle.clf.modules()
        if (found := _constants(module)) and not _alike(_normalise(images, found), images)
    }
    first = _first_layer_input(probe, images)
    if first is None or first.shape != images.shape:
        return ""
    for inner, outer in product(normalisers, repeat=2):
        if _alike(first, _normalise(_normalise(images, normalisers[inner]), normalisers[outer])):
            return f"the first layer gets images that {inner} and {outer} both normalised"
    return ""


def _alike(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def _normalise(images: Tensor, constants: Constants) -> Tensor:
    mean, std = (value.to(images) for value in constants)  # a module may hold them as plain numbers
    return (images - mean) / std


def _undo(images: Tensor, constants: Constants) -> Tensor:
    return images * constants[1] + constants[0]


def _constants(module: nn.Module) -> Constants | None:
    """``mean`` and ``std`` per channel of a module that normalises, by the names that nearly all give them."""
    found = []
    for name in ("mean", "std"):
        value = getattr(module, name, None)
        if not isinstance(value, Tensor | Sequence | float) or isinstance(value, str):
            return None
        try:
            found.append(torch.as_tensor(value, dtype=torch.float32).detach().view(1, -1, 1, 1))
        except (TypeError, ValueError, RuntimeError):
            return None
    mean, std = found
    return (mean, std) if mean.shape == std.shape and bool((std > 0).all()) else None


def _first_layer_input(probe: Probe, images: Tensor) -> Tensor | None:
    """What the first layer with weights of its own is given, float32; ``None`` if none is called."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if not seen and inputs and isinstance(inputs[0], Tensor):
            seen.append(inputs[0].detach().float())

    layers = [
        m for m in probe.oracle.clf.network.modules() if next(m.parameters(recurse=False), None) is not None
    ]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        probe.oracle.logits(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0] if seen else None
