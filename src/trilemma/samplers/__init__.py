"""Samplers: plain functions that descend an energy, their starts, and image generation."""

from trilemma.samplers.generate import generate
from trilemma.samplers.langevin import langevin
from trilemma.samplers.momentum import momentum
from trilemma.samplers.normalised import normalised
from trilemma.samplers.proximal import proximal
from trilemma.samplers.replay_buffer import ReplayBuffer

__all__ = ["ReplayBuffer", "generate", "langevin", "momentum", "normalised", "proximal"]
