"""Saves the images of an attack beside its verdicts: ``trilemma evaluate --save-adversarial FILE.npz``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trilemma.attacks.preset import count_outside
from trilemma.classifier.correctness import evaluation_logits
from trilemma.data.image_set import as_float
from trilemma.errors import ConfigError, NotStoredError, RunError
from trilemma.evaluation.protocol import ACCURACY, Protocol, Request, Verdicts
from trilemma.files import replacing
from trilemma.printing import print_message
from trilemma.storing import go_on_without, writable_file

OPTION = "--save-adversarial"


def check_adversarial_file(
    path: str | Path, definitions: Mapping[str, Protocol], threats: Sequence[object]
) -> Path:
    """Returns the file to save to, before an evaluation that may take hours.

    Raises:
        ConfigError: the evaluation does not have one protocol that attacks with one threat and gives a verdict per
            image, or the file does not end in ``.npz``.
        RunError: the file exists, or its path cannot be a file.
        NotStoredError: its folder cannot be written.
    """
    file = Path(path)
    if file.suffix != ".npz":
        raise ConfigError(f"{OPTION} {path}: must end in .npz")
    if file.exists():
        raise RunError(f"{OPTION} {path}: already exists; refusing to overwrite")
    attacks = [
        name
        for name, definition in definitions.items()
        if definition.needs_threat and definition.quantity == ACCURACY
    ]
    if len(attacks) != 1 or len(threats) != 1:
        given = (
            f"{', '.join(attacks) or 'none'} with {len(threats)} radii"
            if len(threats) != 1
            else ", ".join(attacks)
        )
        raise ConfigError(
            f"{OPTION}: needs one protocol that attacks and gives a verdict per image, with one radius; got "
            f"{given or 'none'}; add --protocol NAME, such as pgd-20"
        )
    return writable_file(file, f"choose another {OPTION}")


def save_adversarial(file: Path, request: Request, verdicts: Verdicts, about: Mapping[str, Any]) -> None:
    """Writes the images of an attack, their verdicts, and what they are of, as arrays of an ``.npz`` file.

    Arrays: ``images`` float32 ``[N, C, H, W]`` in [0, 1] (where the attack succeeded, the adversarial image), ``clean``
    (the images as stored in the data set), ``labels`` int64 ``[N]``, ``predictions`` int64 ``[N]`` of ``images``,
    ``correct`` bool ``[N]`` (the verdicts), ``protocol``, ``norm``, ``radius`` (texts) and ``about`` (JSON).

    The images are checked as written: inside the ball and [0, 1], and the prediction of each gives its verdict. Images
    at the decision boundary can give another one with another batch size; they are counted on standard error.

    If the file cannot be written, the evaluation goes on without it.

    Raises:
        RuntimeError: images outside the ball or [0, 1].
    """
    assert verdicts.adversarial is not None
    clf, threat = request.clf, request.required_threat
    images = verdicts.adversarial.detach().to("cpu", torch.float32)
    predictions = []
    for index in torch.arange(len(images)).split(request.batch_size):
        batch = images[index].to(clf.device)
        clean = as_float(request.images[index].to(clf.device))
        if outside := count_outside(threat, batch, clean):
            raise RuntimeError(
                f"{about['protocol']}: {outside} saved images lie outside {threat} or [0, 1]; a bug"
            )
        predictions.append(evaluation_logits(clf, batch).argmax(1).cpu())
    predicted = torch.cat(predictions)
    differing = int(((predicted == request.labels) != verdicts.correct).sum())
    if differing:
        print_message(
            f"note: {file}: {differing} of {len(images)} images are at the decision boundary and give another verdict "
            "when they are classified again"
        )
    arrays: dict[str, Any] = {
        "images": images.numpy(), "clean": request.images.cpu().numpy(), "labels": request.labels.numpy(),
        "predictions": predicted.numpy(), "correct": verdicts.correct.numpy(), "protocol": np.array(about["protocol"]),
        "norm": np.array(threat.norm), "radius": np.array(str(threat.radius)), "about": np.array(json.dumps(about)),
    }  # fmt: skip
    try:
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)
    except NotStoredError as error:
        go_on_without(error)
