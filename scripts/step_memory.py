"""Peak memory and time of a training step of Cognate at its full size: 25,083,528 parameters, batch 4 x 256.

Called by `bench_train.py --step-memory`. Two steps of learn.train as `forge cognate model=25m` takes them (Muon, all
passes), in float32 and with runtime.dtype=auto, each in a process of its own; the limit is LIMIT_BYTES in all.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

LIMIT_BYTES = 3e9
ROWS, TOKENS = 4, 256
CONF = Path(__file__).parents[1] / "conf" / "model" / "25m.yaml"


def measure(threads: int) -> None:
    """Print the peak of each way, and leave with 1 when one is above the limit."""
    above = 0
    for dtype in ("float32", "auto"):
        command = [sys.executable, __file__, dtype, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{dtype} failed:\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"Cognate {found['parameters']:,} parameters, batch {ROWS} x {TOKENS}, dtype {dtype}: "
            f"{found['peak_bytes'] / 1e9:.2f} GB peak in all, {found['above_bytes'] / 1e9:.2f} GB above the model; "
            f"second step {found['seconds']:.2f} s, {found['cpu_seconds']:.2f} CPU-s; {found['note']}"
        )
        above += found["peak_bytes"] >= LIMIT_BYTES
    print(f"limit {LIMIT_BYTES / 1e9:g} GB: {'missed' if above else 'met'}")
    sys.exit(1 if above else 0)


def step(dtype: str, threads: int) -> dict[str, object]:
    """Train two steps and return what they took."""
    import torch
    import yaml
    from process_memory import held_bytes, memory_bytes

    from agent_forge.checkpoint import Workspace
    from agent_forge.config import OptimConfig
    from agent_forge.core import device
    from agent_forge.core.events import EventLog
    from agent_forge.learn import lm_loss, train
    from agent_forge.learn.loop import PLAIN
    from agent_forge.models.cognate import CognateConfig, CognateForCausalLM

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
    optim = OptimConfig(
        method="muon", lr=3e-3, muon_lr=0.02, warmup_steps=1, cooldown_share=0.0, weight_decay=0.05, beta1=0.9,
        beta2=0.95, clip_norm=1.0, average_share=0.0,
    )  # fmt: skip
    before = held_bytes("cpu")
    with tempfile.TemporaryDirectory() as folder:
        train(
            model, Same(), lm_loss, stage="s", steps=2, optim=optim, seed=0,
            events=EventLog(None, "bench", (lambda e: notes.append(e.message) if e.message else None,)),
            out=Workspace(Path(folder) / "out", phase="bench", seed=0, config={}),
            on_step=lambda *_: stamps.append((time.perf_counter(), time.process_time())),
            runtime=replace(PLAIN, dtype=dtype),
        )  # fmt: skip
    peak = memory_bytes("VmHWM")
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "peak_bytes": peak, "above_bytes": peak - before,
        "seconds": stamps[1][0] - stamps[0][0], "cpu_seconds": stamps[1][1] - stamps[0][1], "note": "; ".join(notes),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(step(sys.argv[1], int(sys.argv[2]))))
