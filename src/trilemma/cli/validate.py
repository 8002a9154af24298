"""``trilemma validate``: checks a recipe on this machine and estimates its cost, without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trilemma.cli.common import Device, Json, Overrides, Recipe, print_error, print_json, print_table
from trilemma.config.recipe import load_config
from trilemma.errors import ConfigError
from trilemma.units import byte_size, duration

# Keys of an estimate, with the words for them and for their values.
LABELS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters", lambda count: f"{count:,}"),
    "macs": ("MACs per image", lambda count: _in_millions(count)),
    "forward_passes_per_image": ("forward passes per training image", lambda count: f"{count:g}"),
    "steps": ("steps", lambda count: f"{count:,}"),
    "seconds_per_step": ("time per step", duration),
    "hours": ("time in all, on this {device}", lambda hours: duration(3600 * hours)),
    "memory_gb": ("memory", lambda size: byte_size(1e9 * size)),
    "disk_gb": ("disk", lambda size: byte_size(1e9 * size)),
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
    device = "GPU" if str(result.get("device")).startswith("cuda") else "CPU"
    return [
        {"estimate": label.format(device=device), "value": words(result[key])}
        for key, (label, words) in LABELS.items()
        if result.get(key) is not None
    ]


def _in_millions(count: int) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if count >= limit:
            return f"{count / limit:.4g} {unit}"
    return f"{count:,}"
