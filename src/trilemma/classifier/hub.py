"""Classifiers on the Hugging Face hub, ``hub:OWNER/NAME[@REVISION]``; needs the extra ``hub``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from trilemma.classifier import file as classifier_file
from trilemma.classifier.classifier import Classifier
from trilemma.classifier.foreign_weights import load_weights, read_weights
from trilemma.errors import CheckpointError, ConfigError, MissingExtraError, describe
from trilemma.files import CLASSIFIER, file_sha256, parse_json
from trilemma.headers import HubHeader, problem
from trilemma.threat import Threat

# A trilemma classifier file; or weights and the description of their network.
CLASSIFIER_FILE, WEIGHTS_FILE, CONFIG_FILE = "classifier.safetensors", "model.safetensors", "config.json"


def hub_classifier(name: str) -> Classifier:
    """Downloads a classifier of the hub into the hub's own cache, and loads it.

    The repository holds ``classifier.safetensors``, a file of :meth:`Classifier.save`; or ``model.safetensors`` (also
    such a file, or a state dict) and ``config.json`` with the keys ``network`` (registry name and options),
    ``num_classes``, ``image_shape``, and optionally ``class_names``, ``mean``, ``std`` and ``threat``, at the top or
    under ``trilemma``.

    Args:
        name: ``OWNER/NAME``, or ``OWNER/NAME@REVISION`` with a branch, tag or commit.

    Raises:
        MissingExtraError: huggingface_hub cannot be imported.
        CheckpointError: no connection, no such repository or revision, or no such files in it.
        ConfigError: a name of another form.
    """
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")) or (not revision and name.endswith("@")):
        raise ConfigError(f"hub:{name}: write hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtraError(
            f"hub:{name} needs huggingface_hub, which cannot be imported ({error}); pip install -e '.[hub]' in the "
            "clone"
        ) from error
    path = _download(hub, name, repository, revision, CLASSIFIER_FILE)
    if path is None and (path := _download(hub, name, repository, revision, WEIGHTS_FILE)) is None:
        raise CheckpointError(
            f"hub:{name}: the repository holds neither {CLASSIFIER_FILE} nor {WEIGHTS_FILE}; a classifier of trilemma "
            "has one of them"
        )
    if CLASSIFIER.matches(path):
        clf = Classifier.load(path)
    else:
        config = _download(hub, name, repository, revision, CONFIG_FILE)
        clf = _with_config(path, _header(config, name), name)
    clf.about |= {"revision": revision or None, "sha256": file_sha256(path)}
    return clf


def _download(hub: ModuleType, name: str, repository: str, revision: str, file: str) -> Path | None:
    """The local path of a file of a repository; ``None`` if the repository has no such file."""
    errors: Any = import_module("huggingface_hub.errors")
    try:
        return Path(hub.hf_hub_download(repository, file, revision=revision or None))
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"hub:{name}: cannot be downloaded, and is not in the hub's cache on this machine; connect to the internet"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"hub:{name}: its owner gives access on request only; ask for it on the hub, then log in"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"hub:{name}: no such repository, or a private one; check the name, or log in"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"hub:{name}: the repository has no revision {revision!r}") from error
    # The package raises errors of its HTTP library too, which depends on its version.
    except Exception as error:
        raise CheckpointError(f"hub:{name}: cannot be downloaded ({describe(error)})") from error


def _header(config: Path | None, name: str) -> HubHeader:
    """The description of the network in ``config.json``.

    Raises:
        CheckpointError: no such file, or one that describes no network of the registry.
    """
    try:
        content = {} if config is None else parse_json(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"hub:{name}: its {CONFIG_FILE} is not JSON ({error})") from error
    header = content.get("trilemma", content) if isinstance(content, dict) else {}
    if isinstance(header, dict) and {"network", "num_classes", "image_shape"} <= header.keys():
        try:
            return HubHeader.model_validate(header)
        except ValidationError as error:
            raise CheckpointError(f"hub:{name}: its {CONFIG_FILE} is invalid: {problem(error)}") from None
    if isinstance(header, dict) and "architecture" in header:
        raise CheckpointError(f"hub:{name}: a network of timm; use timm:hf-hub:{name.partition('@')[0]}")
    raise CheckpointError(
        f"hub:{name}: its {CONFIG_FILE} does not describe a network of trilemma (network, num_classes, image_shape); "
        f"download {WEIGHTS_FILE} and add --model MODULE:FUNCTION"
    )


def _with_config(weights: Path, header: HubHeader, name: str) -> Classifier:
    """The classifier of a state dict and the description of its network."""
    stored, threat = read_weights(weights), header.threat
    network = classifier_file.rebuild_network(header, f"hub:{name}", stored.tensors)
    mean, std = load_weights(network, stored) or (header.mean, header.std)
    assert header.network is not None
    return Classifier(
        network, header.num_classes, mean, std, class_names=header.class_names, image_shape=header.shape,
        threat=None if threat is None else Threat(threat.norm, threat.radius),
        network_config=header.network.options(),
    ).eval()  # fmt: skip
