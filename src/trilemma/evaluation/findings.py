"""``trilemma.lint``: the findings about a classifier and its images, as a list that prints itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma.attacks.arguments import AnyThreat
from trilemma.classifier.wrap import Images, Labels
from trilemma.errors import ConfigError
from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.own_attack import Attack
from trilemma.evaluation.lint.run import MAX_IMAGES
from trilemma.evaluation.lint.run import lint as lint_tensors
from trilemma.evaluation.source import Data, Source, find_run, open_images, open_source
from trilemma.tables import html_table


class Findings(list[Finding]):
    """Findings of the lint, causes before consequences; empty if there are none."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "the lint found nothing"

    def _repr_html_(self) -> str:
        rows = [
            {
                "finding": f"{one.severity}: {one.name}",
                "observation": one.seen,
                "cause": one.means,
                "remedy": one.do,
            }
            for one in self
        ]
        return html_table(rows) or "the lint found nothing"


def lint(
    source: Source,
    data: Data | Images | None = None,
    labels: Labels | None = None,
    threat: AnyThreat = None,
    *,
    norm: Any = None,
    attack: Attack | None = None,
    seed: int = 0,
    batch_size: int = 250,
    device: torch.device | str | None = None,
) -> Findings:
    """Looks for mistakes in a classifier, its images, and optionally an attack.

    At most the first 400 images are checked (128 without a threat), and the first 64 of them attacked. Cost: about 60
    passes, forward or backward, per attacked image, at most 1,200 of Square, and 5 to 10 per image for the rest.

    Args:
        source: a run folder, a classifier file, a :class:`Run`, a :class:`Classifier`, or any network from images to
            logits; its state is restored. Its current train and eval modes are checked too.
        data: as in :func:`trilemma.evaluate`, or, with ``labels``, images ``[N, C, H, W]`` as they are passed to the
            classifier. By default the test images of the data that it was trained on.
        labels: the true classes, int64 ``[N]`` or a list or array of whole numbers; only for images in memory.
        threat: norm and radius, or a radius such as ``8 / 255``; by default the threat stored with the classifier;
            without any, nothing is attacked.
        norm: norm of ``threat`` if that is a radius; ``"linf"`` by default.
        attack: the user's own attack to check, ``attack(clf, images, labels, threat)`` -> adversarial images.
        seed: seed of all random numbers.
        batch_size: images per forward pass.
        device: device to run on; by default that of a given classifier, and the CPU for everything that is loaded.

    Raises:
        ImageError: no images, images that are not ``[N, C, H, W]``, or labels that do not fit.
        ConfigError: images in memory without labels, outputs that are not ``[N, K]``, or an attack without a threat.
        DataError: data that cannot be read or have other classes.
    """
    images: Images
    if isinstance(data, Tensor | np.ndarray):
        if labels is None:
            raise ConfigError("lint: images without labels; pass lint(source, images, labels)")
        network = source if callable(source) else open_source(source, None, device)
        images = data
    else:
        network = clf = open_source(source, data, device)
        part = open_images(clf, find_run(source), data).first(MAX_IMAGES)
        images, labels = part.float_images(), part.labels
    return Findings(
        lint_tensors(
            network, images, labels, threat, norm=norm, attack=attack, seed=seed, batch_size=batch_size
        )
    )
