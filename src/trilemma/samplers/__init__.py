"""Samplers: functions that move images down an energy, the starts of their chains, and image generation."""

from trilemma.samplers.generate import generate
from trilemma.samplers.replay_buffer import ReplayBuffer
from trilemma.samplers.samplers import langevin, momentum, normalised, proximal

__all__ = ["ReplayBuffer", "generate", "langevin", "momentum", "normalised", "proximal"]
