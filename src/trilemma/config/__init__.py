"""Configuration: sections, recipes, remedies and the registries. Importing this package does not import torch."""

from trilemma.config.config import Config, MethodOptions
from trilemma.config.recipe import load_config
from trilemma.config.section import Section
from trilemma.config.sections import AttackConfig, SamplerConfig

__all__ = ["AttackConfig", "Config", "MethodOptions", "SamplerConfig", "Section", "load_config"]
