from __future__ import annotations

import pytest
import torch

import trilemma
from trilemma.config.config import MethodOptions
from trilemma.config.recipe import build_config
from trilemma.config.registry import METHODS
from trilemma.errors import ConfigError, UnknownNameError
from trilemma.methods import Method, Step
from trilemma.methods.creation import create_from_config

THREAT = trilemma.Threat("linf", "8/255")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("trade",), UnknownNameError, "unknown method 'trade'. Did you mean 'trades'"),
        (("trades",), ConfigError, "trains on adversarial images and needs a norm"),
        (("trades", THREAT, {"bta": 1}), ConfigError, "unknown option 'bta'. Did you mean 'beta'"),
        (
            ("trades", THREAT, {"beta": -1}),
            ConfigError,
            "beta: Input should be greater than or equal to 0; got -1",
        ),
        (("trades", THREAT, {"attack": {"stepz": 1}}), ConfigError, "stepz"),
        (
            ("trades", THREAT, {"sampler": {"steps": 1}}),
            ConfigError,
            "has no sampler; remove the sampler keys",
        ),
        (("standard", None, {"attack": {"steps": 1}}), ConfigError, "has no attack; remove the attack keys"),
        (
            ("standard", None, {"regulariser": {"name": "der"}}),
            ConfigError,
            "'der' compares clean with adversarial energies",
        ),
    ],
)
def test_a_method_that_cannot_be_built_says_why(arguments, error, message: str) -> None:
    name, threat, options = (*arguments, None, None)[:3]
    with pytest.raises(error) as raised:
        trilemma.methods.create(name, threat, **(options or {}))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_config_and_a_call_build_the_same_method() -> None:
    config = build_config(
        {
            "network": "small-resnet",
            "threat": {"radius": 0.2},
            "method": {"name": "eb-jdat", "inner": "energy"},
            "regulariser": {"name": "der"},
            "attack": {"steps": 3},
        }
    )
    one = create_from_config(config)
    other = trilemma.methods.create(
        "eb-jdat",
        trilemma.Threat("linf", 0.2),
        inner="energy",
        attack={"steps": 3},
        sampler=config.sampler,
        regulariser={"name": "der"},
    )
    assert type(one) is type(other)
    assert (one.options, one.attack, one.sampler, one.threat) == (
        other.options,
        other.attack,
        other.sampler,
        other.threat,
    )


def test_known_pitfalls_are_warned_about() -> None:
    def warnings(steps=5, **method):
        tree = {"network": "small-resnet", "threat": {"radius": 0.2}, "attack": {"steps": steps}}
        return build_config(tree | {"method": {"name": "eb-jdat", **method}}).warnings

    assert warnings() == []
    assert "no lower bound" in warnings(inner="ce", alignment="close")[0]
    assert warnings(inner="energy", alignment="close") == []
    assert "collapse" in warnings(align=0)[0]
    assert "collapse" in warnings(steps=11)[0]


def test_a_method_of_ones_own_takes_one_class(toy, monkeypatch) -> None:
    class Options(MethodOptions):
        name: str = "squared"

    class Squared(Method):
        def terms(self, clf, points, state):
            return Step(clf.logits(points.clean).square().mean())

    Squared.Options = Options
    import sys
    import types

    module = types.ModuleType("own_method")
    module.Squared = Squared  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_method", module)
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    METHODS.add("squared", "own_method:Squared", summary="mean square of the logits")
    clf, method = toy.mlp(), trilemma.methods.create("squared")
    step = method.loss(clf, toy.batch(), method.init_state(clf, toy.image_set(), 0))
    torch.testing.assert_close(step.loss, clf(toy.batch().images).square().mean())
