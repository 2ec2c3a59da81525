"""The pool of techniques, by family. Each really changes the weights, or what the agent does.

sources.py, operators.py, singular.py: compositions, (bank, strengths) -> what is added to the
weights. architecture.py, activation.py: edits, subject -> new weights. runtime.py: settings of the
agent. Parameter grids do not count.
"""

from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.phases.adas.pool import (
    activation,
    architecture,
    operators,
    runtime,
    singular,
    sources,
)
from agent_forge.phases.adas.pool.technique import Composition, Edit, RunTime, Subject

COMPOSITIONS: dict[str, Composition] = {
    technique.name: technique
    for family in (sources, operators, singular)
    for technique in family.TECHNIQUES
}
EDITS: dict[str, Edit] = {
    technique.name: technique
    for family in (architecture, activation)
    for technique in family.TECHNIQUES
}
RUNTIME: dict[str, RunTime] = {technique.name: technique for technique in runtime.TECHNIQUES}

__all__ = [
    "COMPOSITIONS",
    "EDITS",
    "RUNTIME",
    "Composition",
    "Edit",
    "RunTime",
    "Subject",
    "listing",
    "runtime_named",
]


def listing() -> list[dict[str, str]]:
    """Return every technique by kind: its name, family, what it does, and where it is from."""
    kinds = {
        "composition of experts": COMPOSITIONS,
        "edit of weights": EDITS,
        "setting of the agent": RUNTIME,
    }
    return [
        {
            "name": technique.name,
            "family": technique.family,
            "kind": kind,
            "text": technique.summary,
            "source": technique.source,
        }
        for kind, techniques in kinds.items()
        for technique in techniques.values()  # type: ignore[attr-defined]
    ]


def runtime_named(name: str) -> RunTime:
    """Return a runtime technique. Raises ConfigError naming the nearest known one."""
    if name not in RUNTIME:
        hint = did_you_mean(name, RUNTIME)
        raise ConfigError(
            f"runtime_search.techniques: no technique '{name}'{hint}; known: {', '.join(RUNTIME)}"
        )
    return RUNTIME[name]
