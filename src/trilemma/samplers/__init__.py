"""Samplers: plain functions that descend an energy, their starts, and image generation."""

from trilemma.samplers.generate import generate
from trilemma.samplers.replay_buffer import ReplayBuffer
from trilemma.samplers.samplers import langevin, momentum, normalised, proximal

__all__ = ["ReplayBuffer", "generate", "langevin", "momentum", "normalised", "proximal"]
