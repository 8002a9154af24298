from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from trilemma.config.registry import NETWORKS
from trilemma.errors import ConfigError
from trilemma.networks.options import (
    PreActResNetOptions,
    SmallCNNOptions,
    SmallResNetOptions,
    TimmOptions,
    WideResNetOptions,
)

OWN = ["small-resnet", "small-cnn", "preact-resnet", "wide-resnet"]


@pytest.mark.parametrize("name", OWN)
def test_options_and_constructor_have_the_same_fields_and_defaults(name: str) -> None:
    arguments = inspect.signature(NETWORKS.get(name)).parameters
    from_data = ("num_classes", "in_channels", "image_shape")
    own = {key: value.default for key, value in arguments.items() if key not in from_data}
    assert NETWORKS.options(name)().model_dump(exclude={"name"}) == own


@pytest.mark.parametrize("name", NETWORKS.names())
def test_registry_rows_name_the_options_of_their_own_name(name: str) -> None:
    assert NETWORKS.options(name).model_fields["name"].default == name


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (SmallResNetOptions, {"widht": 16}),
        (SmallResNetOptions, {"width": 0}),
        (SmallResNetOptions, {"norm": "layer"}),
        (SmallResNetOptions, {"name": "wide-resnet"}),
        (SmallCNNOptions, {"hidden": 0}),
        (SmallCNNOptions, {"activation": "tanh"}),
        (PreActResNetOptions, {"depth": 34}),
        (WideResNetOptions, {"stride_conv": 3}),
        (WideResNetOptions, {"dropout": 1.0}),
        (TimmOptions, {}),
        (TimmOptions, {"model": ""}),
    ],
)
def test_impossible_values_are_refused(options: type[BaseModel], values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        options.model_validate(values)


@pytest.mark.parametrize(("options", "depth"), [(SmallResNetOptions, 9), (WideResNetOptions, 4)])
def test_an_impossible_depth_names_those_that_exist(options: type[BaseModel], depth: int) -> None:
    with pytest.raises(ConfigError, match=rf"network\.depth: .* got {depth}; try \d+ or \d+"):
        options.model_validate({"depth": depth})


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        SmallResNetOptions().width = 32  # type: ignore[misc]


def test_options_need_no_torch() -> None:
    code = "import sys; import trilemma.networks, trilemma.networks.options; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
