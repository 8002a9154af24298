"""The Inception network whose features give FID, KID and IS: torch-fidelity's, converted from the original weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from trilemma.errors import CheckpointError, MissingExtraError
from trilemma.metrics.frechet import Extractor
from trilemma.metrics.library import torch_fidelity

# The features of FID and KID, and the logits without bias of IS, as in the papers' TensorFlow graph.
OUTPUTS = ("2048", "logits_unbiased")


def inception(weights: str | Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor under the names FID, KID and IS. Images are resized by its own TensorFlow-1 rule; grey is repeated.

    Args:
        weights: ``weights-inception-2015-12-05-6726825d.pth``; ``None`` fetches it into torch's hub folder once.
        device: where to run it.

    Raises:
        MissingExtraError: torch-fidelity is not installed.
        CheckpointError: the weights cannot be had, or are not this network's.
    """
    try:
        module = torch_fidelity("feature_extractor_inceptionv3")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"inception: needs {error.name}; install it with: pip install -e '.[inception]' in the clone"
        ) from None
    file = Path(weights) if weights is not None else _fetched(module.URL_INCEPTION_V3)
    try:
        torch.load(
            file, map_location="cpu", weights_only=True
        )  # refuses code before the package's own unsafe reader
        network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", list(OUTPUTS), feature_extractor_weights_path=str(file)
        )
    except Exception as error:  # a missing file, no checkpoint, or weights of another network
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file}: no weights of the Inception network ({reason}); give inception:FILE with "
            f"{Path(module.URL_INCEPTION_V3).name}"
        ) from None
    network = network.to(device).eval()

    @torch.no_grad()
    def outputs(images: Tensor) -> tuple[Tensor, Tensor]:
        levels = (images * 255).round().to(torch.uint8).to(device)
        coloured = levels.expand(-1, 3, -1, -1) if levels.shape[1] == 1 else levels
        features, logits = network(coloured)
        return features, logits

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    about = {"name": "inception", "weights": digest[:12], "file": file.name}
    return Extractor("inception", lambda images: outputs(images)[0], outputs, about, True, device)


def _fetched(url: str) -> Path:
    """Where torch's hub keeps the file, downloaded there if it is not yet.

    Raises:
        CheckpointError: no network, or no such file there.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if file.is_file():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), progress=False)
    except OSError as error:  # urllib's errors are among them
        raise CheckpointError(
            f"inception: {url} cannot be fetched ({error}); fetch it elsewhere and give inception:FILE"
        ) from None
    return file
