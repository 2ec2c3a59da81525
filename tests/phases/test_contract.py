"""One contract for every phase: reproducible, interruptible, its parent untouched, its output open
to everyone.

Each phase runs again from its parent in the shared finished run: it is interrupted once, goes on,
and must end in the checkpoint that the other process wrote.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agent_forge import checkpoint
from agent_forge.checkpoint import Workspace, record_dir
from agent_forge.config.compose import to_typed
from agent_forge.core import registry
from agent_forge.core.errors import Interrupted
from agent_forge.core.events import Event, EventLog
from agent_forge.phases import PhaseRun
from agent_forge.pipeline.catalogue import PACKAGE, phases

ORDER = list(phases())


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Compute as the worker of a phase does: one thread, deterministic kernels."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=True)


def digest(directories: list[Path]) -> str:
    result = hashlib.sha256()
    for path in sorted(
        file for directory in directories for file in directory.rglob("*") if file.is_file()
    ):
        result.update(f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return result.hexdigest()


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ORDER)
def test_an_interrupted_phase_goes_on_to_the_same_checkpoint(
    name: str, tiny_run: Path, tmp_path: Path
) -> None:
    original = tiny_run / f"{ORDER.index(name) + 1}-{name}"
    job = json.loads((record_dir(original) / "job.json").read_text())
    job["config"]["data"]["cache"] = str(tmp_path / "cache")
    config = to_typed(
        {**job["config"], "out": str(tmp_path / "again" / name)}, phases()[name].config, name
    )
    sources = checkpoint.expand(config.sources)
    before = digest([source.path for source in sources])
    run = registry.load(f"{PACKAGE}.{name}", "run", "phase module").run

    def attempt(stop: bool) -> list[str]:
        out = Workspace(config.out, phase=name, seed=config.seed, config=config, parents=sources)
        out.save_every_seconds = 0.0

        def listen(event: Event) -> None:
            if stop and event.kind == "progress":
                out.stop_signal = 15

        torch.manual_seed(config.seed)
        return list(run(PhaseRun(config, sources, out, EventLog(None, name, (listen,)))).outputs)

    with pytest.raises(Interrupted):
        attempt(stop=True)
    assert not (tmp_path / "again" / name / "forge.json").exists()
    assert not list(tmp_path.rglob(".tmp-*"))
    outputs = [checkpoint.open(path) for path in attempt(stop=False)]
    assert outputs
    for output in outputs:
        twin = original / output.path.name if len(outputs) > 1 else original
        assert output.id == checkpoint.open(twin).id
        assert output.manifest.phase == name
        assert output.manifest.seed == config.seed
        assert output.manifest.deployable_bytes > 0
        assert output.manifest.metrics
        assert output.manifest.files.keys() >= {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        }
        assert {parent["id"] for parent in output.manifest.parents} <= {
            p.id for p in [*sources, *outputs]
        }
    assert digest([source.path for source in sources]) == before
    assert not list(tmp_path.rglob(".tmp-*"))


def test_plain_transformers_opens_every_output(tiny_run: Path) -> None:
    """In a fresh process that knows of us by one import only."""
    script = (
        "import sys, agent_forge, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for path in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(path)\n"
        "    ids = AutoTokenizer.from_pretrained(path)('The state of the union', return_tensors='pt').input_ids\n"
        "    new = model.generate(ids, max_new_tokens=3, do_sample=False)\n"
        "    print(model.config.model_type, bool(torch.isfinite(model(ids).logits).all()), new.shape[1] > ids.shape[1])\n"
    )
    paths = [str(c.path) for c in checkpoint.expand([tiny_run / "1-cognate"])]
    paths += [str(tiny_run / f"{number}-{name}") for number, name in enumerate(ORDER[1:], start=2)]
    process = subprocess.run(
        [sys.executable, "-c", script, *paths], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    lines = [line.split() for line in process.stdout.splitlines()]
    assert len(lines) == 11
    assert all(line[1:] == ["True", "True"] for line in lines)
