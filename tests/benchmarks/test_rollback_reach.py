"""The benchmark of rollbacks drives the real loop by the curves of a log."""

from __future__ import annotations

import pytest
from benchmarks.public_logs import Log
from benchmarks.rollback_reach import measure

# Healthy until epoch 11, with an unhealthy evaluation at 15 and a wide gap from 18 on.
PGD = [0.4] * 11 + [0.3] * 6 + [0.05] * 5
FGSM = [0.5] * 17 + [0.8] * 5


@pytest.mark.parametrize("averaged", [False, True])
def test_the_restored_epoch_is_the_last_healthy_evaluation_of_the_weights(averaged: bool) -> None:
    weights, average = (
        Log("log/cifar10/x", [{"epoch": float(i), "clean": 0.8, "fgsm": f, "pgd": p} for i, (f, p) in rows])
        for rows in (enumerate(zip(FGSM, PGD, strict=True)), enumerate([(0.5, 0.4)] * len(PGD)))
    )
    found = measure([(weights, average)], every=5, averaged=averaged)
    assert (found["alarms"], found["before_onset"], found["median_lag"], found["median_share"]) == (
        1,
        1,
        2,
        1,
    )
