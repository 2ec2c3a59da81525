"""Refuse combinations of bitnet's layer settings, before work starts."""

from dataclasses import asdict

from agent_forge.models.ternary import TernarySettings
from agent_forge.phases.bitnet import Config


def check(config: Config) -> None:
    """Raise ConfigError where the ternary layer cannot be made."""
    TernarySettings(**asdict(config.linear))
