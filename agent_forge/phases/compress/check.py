"""Refuse settings of compress that only the codecs can judge, before work starts."""

from agent_forge.phases.compress import Config, offers


def check(config: Config) -> None:
    """Raise ConfigError when a candidate names no codec, or a setting or value that it does not
    have.
    """
    offers.check(config)
