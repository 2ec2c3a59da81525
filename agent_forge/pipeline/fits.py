"""Ask a phase whether it can handle this very model, before work starts: reads config.json of each source, no weights.

A phase room may hold `fits.py` with

    check(config, model_config) -> list[str]

model_config: config.json of a source, as a dictionary. The lines say what the phase will reach of that model; a setting
that cannot work for it raises ConfigError. `run_phase` calls this in its preflight, and a dry run prints the lines.
"""

import importlib
import importlib.util
import json
from collections.abc import Iterable

from agent_forge.checkpoint import Checkpoint
from agent_forge.config import PhaseConfig
from agent_forge.core.errors import CheckpointError


def fits(name: str, config: PhaseConfig, sources: Iterable[Checkpoint]) -> list[str]:
    """Return what phase `name` says of its sources, each line once.

    Raises ConfigError when the phase cannot handle one of them, CheckpointError when a source has no readable config.json.
    """
    module = f"agent_forge.phases.{name}.fits"
    if importlib.util.find_spec(module) is None:
        return []
    check = importlib.import_module(module).check
    lines: dict[str, None] = {}
    for source in sources:
        path = source.path / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); import the model again") from None
        lines |= dict.fromkeys(check(config, content))
    return list(lines)
