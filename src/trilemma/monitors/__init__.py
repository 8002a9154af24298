"""Monitors turn the metrics of training steps into alarms; remedies say how the training loop answers them.

:func:`replay` passes the log of any program through the same monitors.
"""

from trilemma.monitors.verdict import LogAlarm, Verdict, judge, replay

__all__ = ["LogAlarm", "Verdict", "judge", "replay"]
