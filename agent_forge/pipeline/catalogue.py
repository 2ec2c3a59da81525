"""The phases there are, found by folder name; nothing here imports torch."""

from agent_forge.config import Phase
from agent_forge.core import registry

PACKAGE = "agent_forge.phases"


def phases() -> dict[str, Phase]:
    """Return every phase by name, in the order in which they are meant to run."""
    found = [registry.load(PACKAGE, name, "phase").PHASE for name in registry.names(PACKAGE)]
    return {phase.name: phase for phase in sorted(found, key=lambda phase: phase.order)}


def phase_named(name: str) -> Phase:
    """Return one phase. Raises ConfigError with the nearest name."""
    phase: Phase = registry.load(PACKAGE, name, "phase").PHASE
    return phase
