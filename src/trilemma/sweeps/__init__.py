"""Sweeps: a run per combination of values, each in a folder of its own, and what they share."""
