"""Refuse settings of adas that only its pool can judge, and tools that are not there, before work
starts.
"""

from contextlib import ExitStack

from agent_forge.agent import load_tools
from agent_forge.phases.adas import Config, runtime_search


def check(config: Config) -> None:
    """Raise ConfigError for a technique or task of the runtime search that is not known, and for
    tools that cannot be read, DataError for their files.
    """
    runtime_search.check(config)
    with ExitStack() as stack:
        load_tools(config.tools, stack)
