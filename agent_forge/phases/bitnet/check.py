"""Refuse texts of bitnet that are not there, before work starts."""

from agent_forge.data import sets
from agent_forge.phases.bitnet import Config


def check(config: Config) -> None:
    """Raise DataError for train.texts that is not a whole data set."""
    if config.train.texts:
        sets.open_set(config.train.texts)
