"""``trilemma validate``: checks a recipe on this machine and estimates its cost, without training."""

from __future__ import annotations

from typing import Any

from trilemma.cli.common import Device, Json, Overrides, Recipe, print_error, print_json, print_table
from trilemma.config.recipe import load_config
from trilemma.errors import ConfigError

LABELS = {
    "parameters": "parameters",
    "macs": "MACs per image",
    "forward_passes_per_image": "forward passes per training image",
    "steps": "steps",
    "seconds_per_step": "seconds per step",
    "hours": "hours",
    "memory_gb": "memory, GB",
    "disk_gb": "disk, GB",
}


def validate(
    recipe: Recipe, overrides: Overrides = None, device: Device = None, as_json: Json = False
) -> None:
    """Checks a recipe and estimates its cost.

    Checks config, data, device and disk, and estimates time and memory of the whole training run without training.
    Exits with code 2 if a check fails.

    \b
    Examples:
      trilemma validate digits/eb-jdat
      trilemma validate cifar10/eb-jdat data.root=data/cifar10 training.batch_size=256
    """
    config = load_config(recipe, overrides or ())
    for warning in config.warnings:
        print_error(warning, prefix="warning: ")
    from trilemma.training.estimate import estimate

    result = estimate(config, device or "auto")
    checks = result["checks"]
    if as_json:
        print_json(result)
    else:
        print_table(
            [{"check": c["name"], "result": "ok" if c["ok"] else "FAILED", "": c["message"]} for c in checks]
        )
        print_table(estimates(result))
    failed = [check for check in checks if not check["ok"]]
    if failed:
        first = f"{failed[0]['name']}: {failed[0]['message']}"
        raise ConfigError(f"{recipe}: {len(failed)} of {len(checks)} checks failed; {first}")


def estimates(result: dict[str, Any]) -> list[dict[str, str]]:
    """Returns the values of an estimate as table rows; values that could not be estimated are left out."""
    return [
        {"estimate": label, "value": _readable(result[key])}
        for key, label in LABELS.items()
        if result.get(key) is not None
    ]


def _readable(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
