"""Refuse settings of adas that only its pool can judge, and tools that are not there, before work
starts.
"""

from contextlib import ExitStack

from agent_forge.agent import load_tools
from agent_forge.phases.adas import Config, runtime_search
from agent_forge.phases.adas.evolution import check_candidates
from agent_forge.phases.adas.tpe import load_optuna


def check(config: Config) -> None:
    """Raise ConfigError for a technique or task of the runtime search that is not known, for tools
    that cannot be read, a package that is missing, and too few candidates for CMA-ES; DataError for
    the tools' files.
    """
    if config.search.proposals == "optuna":
        load_optuna()
    if config.search.proposals == "cma":
        check_candidates(config.search)
    runtime_search.check(config)
    with ExitStack() as stack:
        load_tools(config.tools, stack)
