"""From an alarm to what is done about it: the rung of its ladder in the configuration, as data."""

from __future__ import annotations

from trilemma.config.config import Config
from trilemma.config.remedies import Action, SetAction
from trilemma.monitors.monitor import Alarm, Remedy, Rollback, ScaleRate, SetOption, Stop
from trilemma.units import parse_fraction


def remedies(alarm: Alarm, config: Config, sounded: int, rollbacks: int) -> list[Remedy]:
    """What to do about an alarm.

    Args:
        config: of the run as it is now, with what earlier remedies changed.
        sounded: how often the same alarm has sounded before.
        rollbacks: how often the run has gone back already.

    Returns:
        The actions of its rung in their order; nothing for an alarm without a ladder. A divergence without
        one, and any rung that would go back once more than allowed, is a failed stop.
    """
    monitors, diverged = config.monitors, alarm.name == "divergence"
    ladder = dict(monitors.remedies).get(alarm.name, ())  # type: ignore[call-overload]
    if diverged and not (ladder and monitors.divergence):
        return [Stop(failed=True)]
    if not ladder:
        return []
    rung = ladder[min(sounded, len(ladder) - 1)]
    if "rollback" in rung and rollbacks >= monitors.max_rollbacks:
        return [Stop(failed=True)]
    return [remedy for action in rung for remedy in _meaning(action, config, diverged)]


def _meaning(action: Action | SetAction, config: Config, diverged: bool) -> list[Remedy]:
    if isinstance(action, SetAction):
        return [SetOption("set", key, value) for key, value in action.set.items()]
    if action == "rollback":
        return [Rollback()]
    if action == "scale-rate":
        return [ScaleRate(config.monitors.rate_factor)]
    if action == "der":
        der = config.regulariser
        beta = 2 * der.beta if der is not None and der.beta else config.monitors.der_beta
        switch = [SetOption("der", "regulariser.name", "der")] if der is None else []
        return [*switch, SetOption("der", "regulariser.beta", beta)]
    if action == "pgd-2":
        assert config.threat is not None  # single-step methods have one
        half = str(parse_fraction(config.threat.radius) / 2)
        return [SetOption("pgd-2", "attack.steps", 2), SetOption("pgd-2", "attack.step_size", half)]
    return [Stop(failed=diverged)]  # a diverged run has no good order to end in
