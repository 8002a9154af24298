"""Every row of every registry can be listed, is documented, and is accepted by a recipe where recipes have its kind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from trilemma import noise
from trilemma.cli.list import KINDS
from trilemma.cli.main import app
from trilemma.config import registry
from trilemma.config.recipe import build_config
from trilemma.config.registry import DATASETS, NETWORKS, PROTOCOLS, SAMPLERS, STARTS, Registry
from trilemma.data.catalogue import Dataset, find_dataset
from trilemma.errors import ConfigError, MissingExtraError
from trilemma.evaluation.protocol import Protocol
from trilemma.networks.create import create_network
from trilemma.samplers.starts import make_start

DOCS = Path(__file__).parents[2] / "docs"
TABLES = {table.kind + "s": table for table in vars(registry).values() if isinstance(table, Registry)}
ROWS = [(kind, name) for kind, table in TABLES.items() for name in table.names()]
# where a reader looks a name up, and the entry there as a regular expression
PAGES = {
    "methods": ("methods/index.md", r"`{}`"),
    "networks": ("config.md", r"\b{}\b"),
    "attacks": ("protocols.md", r"(?m)^\| `{}` \|"),
    "samplers": ("generation.md", r"(?m)^\| `{}` \|"),
    "starts": ("generation.md", r"(?m)^\| `{}` \|"),
    "datasets": ("data.md", r"`{}`"),
    "protocols": ("protocols.md", r"(?m)^\| `{}` \|"),
}


def test_every_kind_is_a_list_and_a_table_here() -> None:
    assert set(TABLES) == set(PAGES) and set(TABLES) < set(KINDS)


@pytest.mark.parametrize("kind", TABLES)
def test_every_row_is_listed(kind: str) -> None:
    result = CliRunner().invoke(app, ["list", kind, "--json"])
    assert result.exit_code == 0, result.output
    assert [row["name"].partition(":")[0] for row in json.loads(result.stdout)] == TABLES[kind].names()


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_every_row_has_an_entry_in_the_docs(kind: str, name: str) -> None:
    page, entry = PAGES[kind]
    assert re.search(entry.format(re.escape(name)), (DOCS / page).read_text())


def recipe(**sections: Any) -> dict[str, Any]:
    return {"data": {"name": "digits"}, "network": "small-resnet", "method": "standard", **sections}


@pytest.mark.parametrize("name", NETWORKS.names())
def test_a_network_is_accepted_by_a_recipe_and_classifies(name: str) -> None:
    options: dict[str, Any] = {"model": "resnet18"} if name == "timm" else {}
    config = build_config(recipe(network={"name": name, **options}))
    try:
        network = create_network(config.network, 3, (1, 8, 8)).eval()
    except MissingExtraError as error:
        pytest.skip(str(error))
    with torch.no_grad():
        assert network(torch.rand(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_sampler_is_accepted_by_a_recipe(name: str) -> None:
    config = build_config(recipe(method="jem", sampler={"name": name}))
    assert config.sampler.name == name


@pytest.mark.parametrize("name", STARTS.names())
def test_a_start_is_accepted_by_a_recipe_and_draws_images_one_by_one(name: str, toy) -> None:
    """Each image is drawn from its own label and seed, so batches may be cut anywhere."""
    if name == "replay-buffer":
        # Chains of a finished run: training has its own.
        with pytest.raises(ConfigError, match="are chains of a finished run"):
            build_config(recipe(method="jem", sampler={"start": name}))
    else:
        assert build_config(recipe(method="jem", sampler={"start": name})).sampler.start == name
    data = toy.image_set(per_class=8)
    labels, seeds = toy.labels(), noise.image_seeds(6, torch.Generator().manual_seed(0))
    images = make_start(name, labels, seeds, toy.shape, data, None, data)
    assert images.shape == (6, *toy.shape) and images.min() >= 0 and images.max() <= 1
    one_by_one = [
        make_start(name, labels[k : k + 1], seeds[k : k + 1], toy.shape, data, None, data) for k in range(6)
    ]
    torch.testing.assert_close(torch.cat(one_by_one), images, atol=1e-5, rtol=0)
    assert not torch.equal(images, make_start(name, labels, seeds + 1, toy.shape, data, None, data))


@pytest.mark.parametrize("name", DATASETS.names())
def test_a_data_set_is_accepted_by_a_recipe_and_known(name: str) -> None:
    root = {} if name == "digits" else {"root": "photos"}
    assert build_config(recipe(data={"name": name, **root})).data.name == name
    known = find_dataset(name)
    assert isinstance(known, Dataset)
    if known.class_names is not None:
        assert len(known.class_names) == known.num_classes


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_a_protocol_is_created_with_a_version(name: str) -> None:
    example = {"ood": "ood:uniform-noise", "attack": "attack:fgsm", "top": "top:5"}.get(name, name)
    protocol = PROTOCOLS.get(example)
    assert isinstance(protocol, Protocol) and protocol.version >= 1
