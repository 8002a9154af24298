"""Samplers: plain functions that descend an energy, their starts, and image generation."""

from ebat.samplers.generate import generate
from ebat.samplers.langevin import langevin
from ebat.samplers.momentum import momentum
from ebat.samplers.normalised import normalised
from ebat.samplers.proximal import proximal
from ebat.samplers.replay_buffer import ReplayBuffer

__all__ = ["ReplayBuffer", "generate", "langevin", "momentum", "normalised", "proximal"]
