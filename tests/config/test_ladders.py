"""Remedies in a recipe: how they may be written, and that a mistake is answered before any work."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tests.training.support import tiny

from trilemma.config.config import Config
from trilemma.config.recipe import build_config, dump_config, with_options
from trilemma.config.remedies import SetAction
from trilemma.errors import ConfigError

DEFAULT = (("rollback", "scale-rate"),)


def config(remedies: Any, method: str = "n-fgsm", **sections: Any) -> Config:
    return tiny(method, monitors={"remedies": remedies}, **sections)


def test_only_divergence_has_a_remedy_by_default() -> None:
    assert tiny("n-fgsm").monitors.remedies == {"divergence": DEFAULT}
    assert config({"robust-overfitting": "stop"}).monitors.remedies == {
        "divergence": DEFAULT, "robust-overfitting": (("stop",),)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("stop", (("stop",),)),
        (["der", "stop"], (("der",), ("stop",))),
        ([["rollback", "der"], "stop"], (("rollback", "der"), ("stop",))),
        ({"set": {"attack.steps": 2}}, ((SetAction(set={"attack.steps": 2}),),)),
        ([["rollback", {"set": {"attack.steps": 2}}]], (("rollback", SetAction(set={"attack.steps": 2})),)),
        ([], ()),
    ],
)
def test_a_rung_or_an_action_may_stand_alone(written: Any, meant: Any) -> None:
    assert dict(config({"gradient-cosine": written}).monitors.remedies)["gradient-cosine"] == meant


def test_a_saved_configuration_reads_back_the_same() -> None:
    whole = config({"accuracy-gap": [["rollback", {"set": {"regulariser.name": "der"}}], "stop"]})
    assert build_config(yaml.safe_load(dump_config(whole))) == whole


@pytest.mark.parametrize(
    ("remedies", "message"),
    [
        ({"catastrofic": "stop"}, "unknown alarm 'catastrofic'. Did you mean 'catastrophic-overfitting'"),
        ({"accuracy-gap": ["rolback"]}, "monitors.remedies.accuracy-gap: unknown action 'rolback'. Did you mean"),
        ({"accuracy-gap": [{"sett": {}}]}, "unknown action {'sett': {}}"),
        ({"accuracy-gap": [[["stop"]]]}, r"unknown action \['stop'\]"),
        ({"accuracy-gap": {"set": {"attack.stepz": 2}}}, "attack.stepz: unknown key. Did you mean 'steps'"),
        ({"accuracy-gap": {"set": {"method.nose": 2}}}, "method.nose: unknown key. Did you mean 'noise'"),
        ({"accuracy-gap": {"set": {"attack.steps": "many"}}}, "accuracy-gap: attack.steps: Input should be a"),
        ({"accuracy-gap": {"set": {"training.lr": 1}}}, "'training.lr' cannot be set during a run"),
        ({"accuracy-gap": {"set": {"method.name": "trades"}}}, "'method.name' cannot be set during a run"),
        ({"accuracy-gap": {"set": {"sampler.buffer_size": 1}}}, "'sampler.buffer_size' cannot be set during a run"),
        ("stop", "monitors.remedies: Input should be a valid dictionary; got 'stop'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_any_work(remedies: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(remedies)


def test_an_action_that_the_method_has_no_use_for_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="'pgd-2' replaces a single-step attack, which 'trades' does not use here"
    ):
        config({"accuracy-gap": "pgd-2"}, "trades")
    with pytest.raises(ConfigError, match="'pgd-2' replaces a single-step attack"):
        config({"accuracy-gap": "pgd-2"}, attack={"steps": 2})
    with pytest.raises(
        ConfigError, match="'der' needs a method that trains on adversarial images, not 'standard'"
    ):
        config({"robust-overfitting": "der"}, "standard")


def test_later_rungs_may_build_on_earlier_ones() -> None:
    on, more = {"set": {"regulariser.name": "der"}}, {"set": {"regulariser.beta": 3.0}}
    config({"accuracy-gap": [on, more]})
    with pytest.raises(ConfigError, match=r"accuracy-gap: regulariser\.name: missing"):
        config({"accuracy-gap": [more, on]})


def test_changed_options_leave_the_rest_and_the_ladder_as_they_were() -> None:
    before = config({"accuracy-gap": "pgd-2"})
    after = with_options(before, {"attack.steps": 2, "attack.step_size": "0.1"})
    assert (after.attack.steps, after.attack.step_size) == (2, "0.1")
    unchanged = Config.model_fields.keys() - {"attack"}
    assert all(getattr(after, name) == getattr(before, name) for name in unchanged)
    assert with_options(before, {}) == before
