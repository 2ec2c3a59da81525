"""Refuse settings of compress that only the codecs can judge, and texts that are not there, before work starts."""

from agent_forge.data import sets
from agent_forge.phases.compress import Config, offers


def check(config: Config) -> None:
    """Raise ConfigError when a candidate names no codec, or a setting or value that it does not
    have, and DataError for calibration.texts that is not a whole data set.
    """
    offers.check(config)
    if config.calibration.texts:
        sets.open_set(config.calibration.texts)
