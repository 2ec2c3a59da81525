"""All phases, listed by the names of their folders, without importing torch."""

import sys
from functools import cache

from agent_forge.config import Phase
from agent_forge.core import registry
from agent_forge.core.errors import ConfigError

PACKAGE = "agent_forge.phases"


def phases() -> dict[str, Phase]:
    """Return every phase by name, in the order in which they are meant to run.

    A phase whose file does not import is named once on stderr and left out, because the other
    phases do not need it.
    """
    known = []
    for name in registry.names(PACKAGE):
        try:
            known.append(phase_named(name))
        except ConfigError as error:
            _warn_once(str(error))
    return {phase.name: phase for phase in sorted(known, key=lambda phase: phase.order)}


def phase_named(name: str) -> Phase:
    """Return one phase.

    Raises ConfigError with the nearest name, or with the file and line that does not import.
    """
    module = registry.load(PACKAGE, name, "phase")
    phase = getattr(module, "PHASE", None)
    if not isinstance(phase, Phase):
        raise ConfigError(f"phase '{name}' has no PHASE = Phase(...) in {module.__file__}")
    return phase


@cache
def _warn_once(message: str) -> None:
    print(f"forge: {message}", file=sys.stderr)
