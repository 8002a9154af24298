"""All monitors of a run together: what a checkpoint stores of them."""

from __future__ import annotations

from tests.training.support import tiny

from trilemma.monitors.watch import Watch


def test_the_keys_of_the_saved_state_stay_the_same() -> None:
    """Checkpoints of earlier versions are loaded by these names."""
    once = {"present": {}, "quiet_until": 0}
    assert Watch(tiny("n-fgsm"), steps_per_epoch=30).state_dict() == {
        "divergence": {"apart": 0, "saturated": 0},
        "cosine": {"count": 0, "mean": 0.0, "height": 0.0, "once": once},
        "overfitting": {
            "fast": {}, "slow": {}, "count": 0, "last": None, "highest": None, "jumped": False, "lowest": 1.0,
            "rested": 0, "once": once,
        },
        "gap": {"doubled": 0, "healthy": 0, "present": False, "quiet_until": 0},
        "decline": {
            "since": [], "best": 0.0, "best_step": 0, "best_level": 0.0, "present": False, "quiet_until": 0,
        },
    }  # fmt: skip
