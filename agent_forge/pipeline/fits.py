"""Ask a phase whether it can handle this very model, before work starts: reads config.json of each source, no weights.

A phase room may hold `fits.py` with

    check(config, model_config) -> list[str]

model_config: config.json of a source, as a dictionary. The lines say what the phase will reach of that model; a setting
that cannot work for it raises ConfigError. `run_phase` calls this in its preflight, and a dry run prints the lines.
"""

import importlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from typing import Any

from agent_forge.checkpoint import Checkpoint
from agent_forge.config import PhaseConfig
from agent_forge.core.errors import CheckpointError, ConfigError

WITH_LATENTS = "forge_ternary"  # keeps the weights that its codes are rounded from


def fits(name: str, config: PhaseConfig, sources: Iterable[Checkpoint]) -> list[str]:
    """Return what phase `name` says of its sources, each line once.

    Raises ConfigError when the phase cannot handle one of them or its weights are codes alone, CheckpointError when
    a source has no readable config.json.
    """
    module = f"agent_forge.phases.{name}.fits"
    check = importlib.import_module(module).check if importlib.util.find_spec(module) else None
    lines: dict[str, None] = {}
    for source in sources:
        path = source.path / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); import the model again") from None
        _refuse_codes(name, source, content)
        lines |= dict.fromkeys(check(config, content) if check else [])
    return list(lines)


def _refuse_codes(name: str, source: Checkpoint, model_config: Mapping[str, Any]) -> None:
    """Raise ConfigError for weights that exist as codes alone: every phase trains, merges or codes floats."""
    quantisation = model_config.get("quantization_config") or {}
    method = quantisation.get("quant_method")
    if method and (method != WITH_LATENTS or quantisation.get("packed")):
        before = next((parent["path"] for parent in source.manifest.parents if parent.get("path")), "")
        raise ConfigError(
            f"{source.path} holds codes ({method}), which {name} cannot change; give it the checkpoint before"
            f"{f': sources=[{before}]' if before else ''}"
        )
