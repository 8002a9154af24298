"""Looks up the remedies for an alarm: one rung of the alarm's ladder in the configuration."""

from __future__ import annotations

from trilemma.config.config import Config
from trilemma.config.remedies import Action, SetAction
from trilemma.config.sections import DER_BETAS, MonitorConfig, RegulariserConfig
from trilemma.monitors.monitor import Alarm, Remedy, Rollback, ScaleRate, SetOption, Stop
from trilemma.units import parse_fraction


def remedies(alarm: Alarm, config: Config, earlier_alarms: int, rollbacks: int) -> list[Remedy]:
    """Returns the remedies for an alarm, in the order in which to apply them.

    The n-th alarm of a name gets the n-th rung of its ladder, later ones the last rung. An alarm without a ladder
    gets no remedy. A divergence without a ladder, and a rung whose rollback would exceed
    ``monitors.max_rollbacks``, give a failed stop.

    Args:
        config: current configuration of the run, including changes by earlier remedies.
        earlier_alarms: number of earlier alarms of the same name.
        rollbacks: number of rollbacks so far.
    """
    monitors, diverged = config.monitors, alarm.name == "divergence"
    ladder = dict(monitors.remedies).get(alarm.name, ())  # type: ignore[call-overload]
    if diverged and not (ladder and monitors.divergence):
        return [Stop(failed=True)]
    if not ladder:
        return []
    rung = ladder[min(earlier_alarms, len(ladder) - 1)]
    if "rollback" in rung and rollbacks >= monitors.max_rollbacks:
        return [Stop(failed=True)]
    return [remedy for action in rung for remedy in _expand(action, config, diverged)]


def late_rollbacks(monitors: MonitorConfig) -> bool:
    """Whether a ladder has a rollback for an alarm that rings after its onset, which are all but ``divergence``."""
    ladders = [ladder for name, ladder in monitors.remedies.items() if name != "divergence"]
    return any("rollback" in rung for ladder in ladders for rung in ladder)


def _expand(action: Action | SetAction, config: Config, diverged: bool) -> list[Remedy]:
    """Returns the remedies that one configured action stands for."""
    if isinstance(action, SetAction):
        return [SetOption("set", key, value) for key, value in action.set.items()]
    if action == "rollback":
        return [Rollback()]
    if action == "scale-rate":
        return [ScaleRate(config.monitors.rate_factor)]
    if action == "der":
        der = config.regulariser
        new = config.monitors.der_beta or _default_beta(config)
        beta = 2 * der.beta if der is not None and der.beta else new
        switch = [SetOption("der", "regulariser.name", "der")] if der is None else []
        return [*switch, SetOption("der", "regulariser.beta", beta)]
    if action == "pgd-2":
        # single-step methods always have a threat model
        assert config.threat is not None
        half = str(parse_fraction(config.threat.radius) / 2)
        return [SetOption("pgd-2", "attack.steps", 2), SetOption("pgd-2", "attack.step_size", half)]
    # Ending early is a normal end, except for a diverged run.
    return [Stop(failed=diverged)]


def _default_beta(config: Config) -> float:
    der = config.regulariser or RegulariserConfig(name="der")
    return DER_BETAS[der.abnormal_only(config.method.single_step)]
