"""Every phase runs on the pretend accelerator: nothing that it computes with is left on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agent_forge import checkpoint
from agent_forge.checkpoint import Workspace, record_dir
from agent_forge.config.compose import to_typed
from agent_forge.core import registry
from agent_forge.core.events import EventLog
from agent_forge.phases import PhaseRun
from agent_forge.pipeline.catalogue import PACKAGE, phases
from tests.pretend import pretend_accelerator

ORDER = list(phases())
# Shorter than experiment=tiny where that costs seconds, wider where a mechanism is off there.
CHANGES: dict[str, dict[str, Any]] = {
    "cognate": {"trunk": {"steps": 2}, "branch": {"steps": 1}, "probe_items": 2},
    "evomerge": {"search": {"generations": 1, "population": 2, "children": 2}},
    "quietstar": {"steps": 1},
    "bitnet": {"train": {"steps": 1}},
    "train": {
        "steps": {"adapt_2": 0, "adapt_3": 0, "chaos_2": 0, "chaos_3": 0, "dream_2": 0},
        "chaos": {"enabled": True, "every_steps": 1},
        "dream": {"enabled": True, "windows": 2, "every_steps": 1},
        "self_model": {"weight": 0.1},
        "replay": {"share": 0.25},
        "optim": {"average_share": 1.0},
        "measure": {"tasks": ["reasoning"]},
    },
    "bake": {"training": {"steps": 1}},
    "adas": {"search": {"iterations": 1}},
}


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    nested = {
        key: changed(settings[key], value)
        for key, value in changes.items()
        if isinstance(value, dict)
    }
    return {**settings, **changes, **nested}


def run_there(
    name: str, tiny_run: Path, place: Path, more: dict[str, Any] | None = None
) -> list[str]:
    """Run a phase on the pretend accelerator, from its parent in the finished run.

    Return what it wrote. more: settings beside those of CHANGES.
    """
    job = json.loads(
        (record_dir(tiny_run / f"{ORDER.index(name) + 1}-{name}") / "job.json").read_text()
    )
    settings = changed(
        job["config"], {**CHANGES.get(name, {}), **(more or {}), "out": str(place / name)}
    )
    settings["runtime"]["device"], settings["data"]["cache"] = "auto", str(place / "cache")
    config = to_typed(settings, phases()[name].config, name)
    sources = checkpoint.expand(config.sources)
    run = registry.load(f"{PACKAGE}.{name}", "run", "phase module").run
    out = Workspace(config.out, phase=name, seed=config.seed, config=config, parents=sources)
    torch.manual_seed(config.seed)
    with pretend_accelerator():
        return list(run(PhaseRun(config, sources, out, EventLog(None, name))).outputs)


def test_pretend_accelerator_runs_the_objective_rlp(tiny_run: Path, tmp_path: Path) -> None:
    opens_elsewhere(run_there("quietstar", tiny_run, tmp_path, {"objective": "rlp"}))


@pytest.mark.parametrize("name", ORDER)
def test_pretend_accelerator_runs_the_phase(name: str, tiny_run: Path, tmp_path: Path) -> None:
    opens_elsewhere(run_there(name, tiny_run, tmp_path))


def opens_elsewhere(paths: list[str]) -> None:
    from agent_forge import models

    outputs = [checkpoint.open(path) for path in paths]
    assert outputs
    for output in outputs:
        model = models.load(output)  # The output opens without an accelerator.
        assert bool(model(input_ids=torch.arange(5)[None]).logits.isfinite().all())
        assert output.manifest.metrics
