"""Peak memory and time of a training step of Cognate at its full size: 25,083,528 parameters, batch
4 x 256.

    python -m scripts.bench run step_memory [--threads 2]

Two steps of learn.train as `forge cognate model=25m` takes them (Muon, all passes), in float32 and
with runtime.dtype=auto, each in a process of its own; the limit is LIMIT_BYTES in all.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scripts.bench.result import ROOT, Figure, Result, here

if TYPE_CHECKING:
    from agent_forge.config import OptimConfig

CLAIM = "A training step of Cognate at 25 M parameters fits small machines"
BAR = "at most 3 GB in all, batch 4 x 256"
LIMIT_BYTES = 3e9
ROWS, TOKENS = 4, 256
CONF = ROOT / "conf" / "model" / "25m.yaml"


def run(arguments: Sequence[str] = ()) -> Result:
    """Print the peak of each way, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="step_memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    threads = parser.parse_args(arguments).threads
    peaks = [peak_of(dtype, threads) for dtype in ("float32", "auto")]
    highest = max(peaks, key=lambda peak: peak.figure or 0.0)
    return Result(
        claim=CLAIM, topic="Training", bar=BAR, figure=highest.figure, unit="GB",
        n="two steps per dtype", met=all(peak.met for peak in peaks), figures=peaks,
        **here("step_memory", arguments),
    )  # fmt: skip


def peak_of(dtype: str, threads: int) -> Figure:
    """Return the peak memory of two steps in a dtype; leave when they fail."""
    command = [sys.executable, "-m", "scripts.bench.step_memory", dtype, str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{dtype} failed:\n{done.stderr[-2000:]}")
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"Cognate {values['parameters']:,} parameters, batch {ROWS} x {TOKENS}, dtype {dtype}: "
        f"{values['peak_bytes'] / 1e9:.2f} GB peak in all, "
        f"{values['above_bytes'] / 1e9:.2f} GB above the model; second step "
        f"{values['seconds']:.2f} s, {values['cpu_seconds']:.2f} CPU-s; {values['note']}"
    )
    return Figure(
        claim=f"peak in all, dtype {dtype}, second step {values['seconds']:.2f} s",
        figure=round(values["peak_bytes"] / 1e9, 2), unit="GB", bar="at most 3 GB",
        met=values["peak_bytes"] < LIMIT_BYTES,
    )  # fmt: skip


def muon() -> "OptimConfig":
    """Return the optimiser of Cognate's trunk at a constant rate."""
    from agent_forge.config import OptimConfig

    return OptimConfig(
        method="muon",
        lr=3e-3,
        muon_lr=0.02,
        warmup_steps=1,
        cooldown_share=0.0,
        weight_decay=0.05,
        beta1=0.9,
        beta2=0.95,
        clip_norm=1.0,
        average_share=0.0,
    )


def step(dtype: str, threads: int) -> dict[str, object]:
    """Train two steps and return what they took."""
    import torch
    import yaml

    from agent_forge.checkpoint import Workspace
    from agent_forge.config.compose import default_runtime
    from agent_forge.core import device
    from agent_forge.core.events import EventLog
    from agent_forge.learn import TrainRequest, lm_loss, train
    from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
    from scripts.process_memory import held_bytes, memory_bytes

    device.set_threads(threads)
    shape = yaml.safe_load(CONF.read_text())
    shape.pop("kind")
    torch.manual_seed(0)
    model = CognateForCausalLM(CognateConfig(**shape))
    ids = torch.randint(32000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))

    class Same:
        """One batch for ever."""

        def batch(self, number: int) -> dict[str, torch.Tensor]:
            del number
            return {"input_ids": ids, "labels": ids}

    stamps: list[tuple[float, float]] = []
    notes: list[str] = []
    before = held_bytes("cpu")
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            TrainRequest(
                batches=Same(),
                loss_fn=lm_loss,
                stage="s",
                steps=2,
                optim=muon(),
                seed=0,
                events=EventLog(
                    None, "bench", (lambda e: notes.append(e.message) if e.message else None,)
                ),
                out=Workspace(pathlib.Path(folder) / "out", phase="bench", seed=0, config={}),
                on_step=lambda *_: stamps.append((time.perf_counter(), time.process_time())),
                runtime=replace(default_runtime(), dtype=dtype),
            ),
        )
    peak = memory_bytes("VmHWM")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_bytes": peak,
        "above_bytes": peak - before,
        "seconds": stamps[1][0] - stamps[0][0],
        "cpu_seconds": stamps[1][1] - stamps[0][1],
        "note": "; ".join(notes),
    }


if __name__ == "__main__":
    print(json.dumps(step(sys.argv[1], int(sys.argv[2]))))
