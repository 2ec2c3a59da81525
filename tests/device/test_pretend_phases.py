"""Every phase runs on the pretend accelerator: nothing that it computes with is left on the CPU.

So do the ways through a phase that its defaults do not take.
"""

import contextlib
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


def run_on(
    kind: str, name: str, tiny_run: Path, place: Path, changes: dict[str, Any]
) -> list[checkpoint.Checkpoint]:
    """Run a phase on "cpu" or "pretend" from its parent in the finished run; return its outputs."""
    job = json.loads(
        (record_dir(tiny_run / f"{ORDER.index(name) + 1}-{name}") / "job.json").read_text()
    )
    settings = changed(job["config"], {**changes, "out": str(place / kind / name)})
    settings["runtime"]["device"], settings["data"]["cache"] = "auto", str(place / "cache")
    config = to_typed(settings, phases()[name].config, name)
    sources = checkpoint.expand(config.sources)
    run = registry.load(f"{PACKAGE}.{name}", "run", "phase module").run
    out = Workspace(config.out, phase=name, seed=config.seed, config=config, parents=sources)
    torch.manual_seed(config.seed)
    with pretend_accelerator() if kind == "pretend" else contextlib.nullcontext():
        outputs = run(PhaseRun(config, sources, out, EventLog(None, name))).outputs
    assert outputs
    return [checkpoint.open(path) for path in outputs]


def opens_elsewhere(outputs: list[checkpoint.Checkpoint]) -> None:
    from agent_forge import models

    for output in outputs:
        model = models.load(output)  # The output opens without an accelerator.
        assert bool(model(input_ids=torch.arange(5)[None]).logits.isfinite().all())
        assert output.manifest.metrics


def test_pretend_accelerator_runs_the_objective_rlp(tiny_run: Path, tmp_path: Path) -> None:
    changes = {**CHANGES["quietstar"], "objective": "rlp"}
    opens_elsewhere(run_on("pretend", "quietstar", tiny_run, tmp_path, changes))


@pytest.mark.parametrize("name", ORDER)
def test_pretend_accelerator_runs_the_phase(name: str, tiny_run: Path, tmp_path: Path) -> None:
    opens_elsewhere(run_on("pretend", name, tiny_run, tmp_path, CHANGES.get(name, {})))


ADAPTERS = {"lora_rank": 2, "lora_alpha": 4.0, "steps": 2}
# phase, what its defaults leave out, and the metrics that must be the CPU's
WAYS: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "quietstar",
        {
            "objective": "task_thoughts", "batch_rows": 2, "length_tokens": 96,
            "task": {
                "rows": 8, "steps": 2, "reinforce_steps": 2, "items": 2, "samples": 2,
                "max_new_tokens": 8, "measure_items": 4, "low": 0.0, "high": 1.0,
            },
        },
        ["right_rationales", "right_reinforced", "kl_last_steps_nats"],
    ),
    ("bake", {"training": ADAPTERS, "preferences": {"pairs": 2}}, ["chosen answer likelier"]),
    ("bake", {"voice": {"prompts": 4, "heldout": 3, "reply_tokens": 4}, "training": {"steps": 2}},
     ["voice change (nats per token)"]),
    (
        "compress",
        {"recover": {"block_steps": 2, "block_windows": 2, "steps": 2, "rows": 2, "length_tokens": 48}},
        ["quality"],
    ),
    ("bitnet", {"linear": {"embedding_bits": 4, "embedding_group": 16}, "train": {"steps": 2}},
     ["kept"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "metrics"),
    WAYS,
    ids=["task_thoughts", "adapters and pairs", "voice", "recovery", "embeddings"],
)
def test_pretend_accelerator_takes_the_ways_that_defaults_leave_out(
    name: str, changes: dict[str, Any], metrics: list[str], tiny_run: Path, tmp_path: Path
) -> None:
    if "preferences" in changes:
        pytest.importorskip("peft")
        pairs = tmp_path / "pairs.jsonl"
        row = '{{"prompt": "Is {0} big?", "chosen": "yes", "rejected": "river"}}'
        pairs.write_text("\n".join(row.format(i) for i in range(40)))
        changes = changed(
            changes, {"preferences": {**changes["preferences"], "rows": [str(pairs)]}}
        )
    (there,), (here,) = (
        run_on(kind, name, tiny_run, tmp_path, changes) for kind in ("pretend", "cpu")
    )
    for metric in metrics:
        ours, theirs = (one.manifest.metrics[metric] for one in (there, here))
        figures = [one["value"] if isinstance(one, dict) else one for one in (ours, theirs)]
        # compress chooses between codings that are nearly as good; sums in another order may choose
        # another one, so that 16 of 71,000 bytes and the quality of a few windows differ.
        relative = 1e-2 if metric == "quality" else 1e-3
        assert figures[0] == pytest.approx(figures[1], rel=relative, abs=1e-5), metric
