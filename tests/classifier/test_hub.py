"""``hub:OWNER/NAME`` through a stand-in for huggingface_hub, whose repositories are folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

import trilemma
from trilemma.errors import CheckpointError, ConfigError, MissingExtraError, UserError
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallResNetOptions

OPTIONS = SmallResNetOptions(width=4, norm="none")


class EntryNotFoundError(Exception):
    pass


class LocalEntryNotFoundError(EntryNotFoundError):
    pass


class RepositoryNotFoundError(Exception):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class RevisionNotFoundError(Exception):
    pass


ERRORS = (
    EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError,
)  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ``someone/net``, whose only revisions are main and v1."""
    folder = tmp_path / "someone" / "net"
    folder.mkdir(parents=True)

    def download(repo_id: str, filename: str, *, revision: str | None = None) -> str:
        if repo_id == "someone/offline":
            raise LocalEntryNotFoundError("no connection\nand not cached")
        if repo_id == "someone/broken":
            raise OSError("connection reset")
        if repo_id == "someone/gated":
            raise GatedRepoError("403")
        if not (tmp_path / repo_id).is_dir():
            raise RepositoryNotFoundError("404")
        if revision not in (None, "main", "v1"):
            raise RevisionNotFoundError("404")
        if not (tmp_path / repo_id / filename).is_file():
            raise EntryNotFoundError("404")
        return str(tmp_path / repo_id / filename)

    hub = ModuleType("huggingface_hub")
    hub.hf_hub_download = download  # type: ignore[attr-defined]
    errors = ModuleType("huggingface_hub.errors")
    for error in ERRORS:
        setattr(errors, error.__name__, error)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return folder


def classifier() -> trilemma.Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_network(OPTIONS, 3, (1, 8, 8))
    return trilemma.Classifier(
        network, 3, [0.5], [0.25], class_names=("ant", "bee", "cat"), image_shape=(1, 8, 8),
        threat=trilemma.Threat("linf", "8/255"), network_config=OPTIONS.model_dump(mode="json"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("form", ["classifier", "model", "config", "nested config"])
def test_every_form_of_a_repository_gives_the_same_classifier(form: str, repository: Path) -> None:
    clf = classifier()
    if form in ("classifier", "model"):
        clf.save(repository / f"{form}.safetensors")
    else:
        save_file(clf.network.state_dict(), repository / "model.safetensors")
        config = {
            "network": clf.network_config, "num_classes": 3, "image_shape": [1, 8, 8],
            "class_names": ["ant", "bee", "cat"], "mean": [0.5], "std": [0.25],
            "threat": {"norm": "linf", "radius": "8/255"},
        }  # fmt: skip
        text = json.dumps(config if form == "config" else {"trilemma": config})
        (repository / "config.json").write_text(text)
    loaded = trilemma.load("hub:someone/net@v1")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(images), clf(images))
    assert loaded.class_names == clf.class_names and loaded.threat == clf.threat
    source = loaded.about["source"]
    assert (
        source["source"] == "hub:someone/net@v1"
        and source["revision"] == "v1"
        and len(source["sha256"]) == 64
    )


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("someone", ConfigError, "write hub:OWNER/NAME or hub:OWNER/NAME@REVISION"),
        ("someone/net@", ConfigError, "write hub:OWNER/NAME"),
        ("someone/other", CheckpointError, "no such repository, or a private one; check the name, or log in"),
        ("someone/net@v2", CheckpointError, "the repository has no revision 'v2'"),
        ("someone/net", CheckpointError, "holds neither classifier.safetensors nor model.safetensors"),
        (
            "someone/offline",
            CheckpointError,
            "not in the hub's cache on this machine; connect",
        ),
        ("someone/broken", CheckpointError, "cannot be downloaded (OSError: connection reset"),
        ("someone/gated", CheckpointError, "gives access on request only"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    name: str, kind: type[UserError], message: str, repository: Path
) -> None:
    with pytest.raises(kind) as caught:
        trilemma.load(f"hub:{name}")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_others_say_what_to_do(repository: Path) -> None:
    save_file({"weight": torch.zeros(1)}, repository / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not describe a network of trilemma"):
        trilemma.load("hub:someone/net")
    (repository / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 10}))
    with pytest.raises(CheckpointError, match="a network of timm; use timm:hf-hub:someone/net"):
        trilemma.load("hub:someone/net")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[hub\]'"):
        trilemma.load("hub:someone/net")
