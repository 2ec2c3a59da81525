# ruff: noqa: ARG001 - callbacks have the signature of the contract
"""A trainer in a process of its own, for tests that kill it: FOLDER PAUSE_SECONDS WORKERS. Also run
by torchrun.

Prints "step N" after each step and the losses as a JSON list of hex floats at the end; exits like
the phase worker.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge.checkpoint import Workspace
from agent_forge.config import OptimConfig
from agent_forge.config.compose import default_runtime
from agent_forge.core.errors import ForgeError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import torch_generator
from agent_forge.learn import TrainRequest, lm_loss, state, train
from agent_forge.learn.distribution import leave

STEPS = 8


class Tokens:
    """Seeded random tokens, with fewer labels in the later rows."""

    pure = True

    def batch(self, step: int) -> dict[str, Tensor]:
        ids = torch.randint(64, (4, 12), generator=torch_generator(0, "child", step))
        labels = ids.clone()
        for row in range(4):
            labels[row, : 2 * row] = -100
        return {"input_ids": ids, "labels": labels}


def main(folder: str, pause: str, workers: str, method: str = "adamw", shard: str = "") -> int:
    """Train and print; return the exit code."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        )
    )  # fmt: skip
    optim = OptimConfig(
        method=method, lr=3e-3, muon_lr=2e-2, warmup_steps=2, cooldown_share=0.4, weight_decay=0.1, beta1=0.9,
        beta2=0.95, clip_norm=1.0, average_share=0.5,
    )  # fmt: skip
    out = Workspace(Path(folder) / "out", phase="child", seed=0, config={})
    out.save_every_seconds = 0.0 if os.environ.get("SAVE_ALWAYS") else 1e9
    out.listen_for_signals()

    def tell(record: Any, model: Any) -> None:
        print(f"step {record.step}", flush=True)
        time.sleep(float(pause))
        if os.environ.get("DIE_AT") == f"{os.environ.get('RANK', '0')}:{record.step}":
            os._exit(9)

    def forbidden(*_: Any) -> None:
        raise AssertionError("only rank 0 may write or delete")

    if os.environ.get("RANK", "0") != "0":
        state.write = forbidden
    runtime = replace(default_runtime(), workers=int(workers), shard=bool(shard))
    try:
        records = train(
            model,
            TrainRequest(
                batches=Tokens(),
                loss_fn=lm_loss,
                stage="stage",
                steps=STEPS,
                optim=optim,
                out=out,
                events=EventLog(None, "child"),
                seed=7,
                on_step=tell,
                runtime=runtime,
            ),
        )
    except ForgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    finally:
        leave()  # As a phase's worker does: a group that is still there can abort Python at its end.
    total = float(sum(value.detach().double().abs().sum() for value in model.parameters()))
    result = {"losses": [record.loss.hex() for record in records], "weights": total.hex()}
    if os.environ.get("RANK", "0") == "0":
        (Path(folder) / "result.json").write_text(json.dumps(result))
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
