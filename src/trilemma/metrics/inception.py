"""The Inception network of FID, KID and IS: torch-fidelity's, with weights converted from the original ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from trilemma.errors import CheckpointError, MissingExtraError
from trilemma.metrics.frechet import Extractor
from trilemma.metrics.library import torch_fidelity

# The outputs for FID and KID (features) and for IS (logits without bias), as in the papers' TensorFlow graph.
OUTPUTS = ("2048", "logits_unbiased")


def inception(weights: str | Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The Inception network as an extractor. It resizes images as TensorFlow 1 did; grey images are converted to RGB.

    Args:
        weights: path of ``weights-inception-2015-12-05-6726825d.pth``; ``None`` to download it into torch's hub folder
            on first use.
        device: device of the computation.

    Raises:
        MissingExtraError: torch-fidelity is not installed.
        CheckpointError: the weights cannot be downloaded or read, or belong to another network.
    """
    try:
        module = torch_fidelity("feature_extractor_inceptionv3")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"inception: needs {error.name}; pip install -e '.[inception]' in the clone, then "
            "pip install --no-deps torch-fidelity"
        ) from None
    file = Path(weights) if weights is not None else _download(module.URL_INCEPTION_V3)
    try:
        # Raises an error if the file contains code. torch-fidelity itself loads it without this check.
        torch.load(file, map_location="cpu", weights_only=True)
        network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", list(OUTPUTS), feature_extractor_weights_path=str(file)
        )
    # Many kinds of exceptions: a missing file, a file that is no checkpoint, or weights of another network.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file}: no weights of the Inception network ({reason}); give inception:FILE with "
            f"{Path(module.URL_INCEPTION_V3).name}"
        ) from None
    network = network.to(device).eval()

    @torch.no_grad()
    def outputs(images: Tensor) -> tuple[Tensor, Tensor]:
        levels = (images * 255).round().to(torch.uint8).to(device)
        rgb = levels.expand(-1, 3, -1, -1) if levels.shape[1] == 1 else levels
        features, logits = network(rgb)
        return features, logits

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    about = {"name": "inception", "weights": digest[:12], "file": file.name}
    return Extractor("inception", lambda images: outputs(images)[0], outputs, about, True, device)


def _download(url: str) -> Path:
    """Downloads a file into torch's hub folder unless it exists there; returns its path.

    Raises:
        CheckpointError: the download failed.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if file.is_file():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), progress=False)
    # The errors of urllib are subclasses of OSError.
    except OSError as error:
        raise CheckpointError(
            f"inception: {url} cannot be fetched ({error}); download it on another machine and give inception:FILE"
        ) from None
    return file
