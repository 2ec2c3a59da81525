"""Refuse settings of adas that only its pool can judge, before work starts."""

from agent_forge.phases.adas import Config, runtime_search


def check(config: Config) -> None:
    """Raise ConfigError for a technique or task of the runtime search that is not known."""
    runtime_search.check(config)
