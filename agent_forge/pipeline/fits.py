"""Ask a phase before work starts whether it can handle its sources, from their config.json.

A phase may have a `fits.py` with

    check(config, model_config) -> list[str]

model_config: config.json of a source, as a dictionary. The lines state which part of the model the
phase will reach; a setting that cannot work for the model raises ConfigError. `run_phase` calls
this before it starts a worker, and a dry run prints the lines.
"""

import importlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from typing import Any

from agent_forge.checkpoint import Checkpoint
from agent_forge.config import PhaseConfig
from agent_forge.core.errors import CheckpointError, ConfigError

WITH_LATENTS = "forge_ternary"  # this method keeps the weights that its codes are rounded from


def fits(name: str, config: PhaseConfig, sources: Iterable[Checkpoint]) -> list[str]:
    """Return the lines of phase `name` about its sources, each line once.

    Raises ConfigError when the phase cannot handle one of them or its weights are only codes,
    CheckpointError when a source has no readable config.json.
    """
    module = f"agent_forge.phases.{name}.fits"
    check = importlib.import_module(module).check if importlib.util.find_spec(module) else None
    lines: dict[str, None] = {}
    for source in sources:
        path = source.path / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); import the model again"
            ) from None
        _refuse_codes(name, source, content)
        lines |= dict.fromkeys(check(config, content) if check else [])
    return list(lines)


def _refuse_codes(name: str, source: Checkpoint, model_config: Mapping[str, Any]) -> None:
    """Raise ConfigError for weights that exist only as codes, because phases work on floats."""
    quantisation = model_config.get("quantization_config") or {}
    method = quantisation.get("quant_method")
    if method and (method != WITH_LATENTS or quantisation.get("packed")):
        before = next(
            (parent["path"] for parent in source.manifest.parents if parent.get("path")), ""
        )
        raise ConfigError(
            f"{source.path} holds codes ({method}), which {name} cannot change; give it "
            "the checkpoint before"
            f"{f': sources=[{before}]' if before else ''}"
        )
