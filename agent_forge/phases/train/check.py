"""Refuse texts to replay that are not there, before work starts."""

from agent_forge.data import sets
from agent_forge.phases.train import Config


def check(config: Config) -> None:
    """Raise DataError for replay.texts that is not a whole data set."""
    if config.replayed_texts():
        sets.open_set(config.replayed_texts())
