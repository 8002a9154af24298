"""The protocol ``autoattack-rand``: expected accuracy under attack of a network with random forward passes."""

from __future__ import annotations

from collections import Counter

from trilemma.attacks.autoattack_rand import FORWARDS
from trilemma.attacks.autoattack_rand import autoattack_rand as attack
from trilemma.config.presets import EXPECTATION
from trilemma.evaluation.protocol import Measurement, Request, protocol
from trilemma.metrics.accuracy import wilson_interval


@protocol(version=1, needs_threat=True)
def autoattack_rand(request: Request) -> Measurement:
    """Mean over the images of the share of correct forward passes, under :func:`trilemma.attacks.autoattack_rand`."""
    count = len(request.labels)
    result = attack(
        request.clf, request.images, request.labels, request.required_threat,
        request.batch_size, request.seed, advance=request.advance,
    )  # fmt: skip
    clean, robust = (float(shares.double().mean()) for shares in (result.clean, result.robust))
    found = Counter(result.broken_by)
    return Measurement(
        robust,
        count,
        wilson_interval(robust * count, count),
        facts={
            "note": f"expected accuracy over {FORWARDS} forward passes of each image; without attack {clean:.1%}",
            "clean": clean,
            "forwards": FORWARDS,
            "expectation": EXPECTATION,
            "batch_size": request.batch_size,
            "attacks": {
                name: {"attacked": attacked, "strongest": found[name]}
                for name, attacked in result.attacked.items()
            },
        },
    )
