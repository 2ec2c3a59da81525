"""Refuse tools and pairs of bake that cannot be read, before work starts."""

import itertools
from contextlib import ExitStack

from agent_forge.agent import load_tools
from agent_forge.core.errors import DataError
from agent_forge.data import preferences
from agent_forge.data.files import read_rows
from agent_forge.phases.bake import Config

CHECKED_PAIRS = 100


def check(config: Config) -> None:
    """Raise ConfigError or DataError for tools that are not there, and for files without pairs.

    A file of tools is run and servers are started, as they are when traces are made; they are left
    again.
    """
    with ExitStack() as stack:
        load_tools(config.tools, stack)
    data = config.data
    for name in config.preferences.rows:
        if name.startswith("hf:"):
            continue
        for where, row in itertools.islice(read_rows(name, data.encoding), CHECKED_PAIRS):
            try:
                preferences.pair_of(row, data.ignore_keys)
            except DataError as error:
                raise DataError(f"preferences.rows: {where}: {error}") from None
