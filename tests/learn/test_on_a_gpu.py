"""What only a GPU shows of training: agreement in bfloat16, one wait per step, the memory of logits,
fused losses.
"""

import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge.anatomy import cross_entropy
from agent_forge.anatomy.cross_entropy import weighted_cross_entropy
from agent_forge.checkpoint import Workspace
from agent_forge.config import OptimConfig
from agent_forge.config.compose import default_runtime
from agent_forge.core.events import EventLog, read_events
from agent_forge.core.seeds import torch_generator
from agent_forge.learn import StepRecord, TrainRequest, lm_loss, train
from agent_forge.phases.bitnet import head_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PLAIN = default_runtime()
OPTIM = OptimConfig(
    method="muon", lr=3e-3, muon_lr=2e-2, warmup_steps=2, cooldown_share=0.4, weight_decay=0.1, beta1=0.9, beta2=0.95,
    clip_norm=1.0, average_share=0.0,
)  # fmt: skip
STEPS = 12


class Counting:
    """Rows that count up from a seeded start: learned in a few steps. The length changes once."""

    pure = True

    def batch(self, step: int) -> dict[str, Tensor]:
        start = torch.randint(500, (8, 1), generator=torch_generator(0, "start", step))
        ids = (start + torch.arange(64 if step < 6 else 48)) % 500
        return {"input_ids": ids, "labels": ids}


def trained(path: Path, device: str, **keys: Any) -> tuple[list[StepRecord], list[str]]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).to(device)  # fmt: skip
    events = EventLog(path / "events.jsonl", "test")
    records = train(
        model,
        TrainRequest(
            batches=Counting(),
            loss_fn=lm_loss,
            stage="stage",
            steps=STEPS,
            optim=OPTIM,
            events=events,
            seed=3,
            device=device,
            out=Workspace(path / "out", phase="test", seed=0, config={}),
            on_step=keys.pop("on_step", None),
            dtype=keys.pop("dtype", torch.float32),
            runtime=replace(PLAIN, **keys),
        ),
    )
    return records, [event.message for event in read_events(path / "events.jsonl") if event.message]


@pytest.mark.parametrize("compile_", ["off", "on"])
def test_bfloat16_on_the_device_learns_as_float32_on_the_processor(
    tmp_path: Path, compile_: str
) -> None:
    expected, _ = trained(tmp_path / "cpu", "cpu")
    result, said = trained(tmp_path / "gpu", "cuda", dtype=torch.bfloat16, compile=compile_)
    assert not [text for text in said if "fails" in text]
    for one, other in zip(result, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.03)


def test_a_step_waits_for_the_device_once(tmp_path: Path) -> None:
    waits: list[int] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")

        def count(*_: Any) -> None:
            waits.append(
                sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)
            )

        torch.cuda.set_sync_debug_mode("warn")
        try:
            trained(tmp_path, "cuda", dtype=torch.bfloat16, on_step=count)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    later = [b - a for a, b in pairwise(waits[2:])]
    assert later == [1] * len(later)


def test_the_losses_of_a_large_vocabulary_stay_below_a_ceiling_and_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = (
        torch.randn(16384, 64, generator=generator),
        torch.randn(49152, 64, generator=generator) * 0.1,
    )
    targets = torch.randint(49152, (16384,), generator=generator)
    weights = torch.full((16384,), 1 / 16384)
    result = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(cross_entropy.slopes, "suits", lambda *_: False)
        inputs = [hidden.cuda().requires_grad_(), head.cuda().requires_grad_()]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            total, _ = weighted_cross_entropy(inputs[0], inputs[1], targets.cuda(), weights.cuda())
        total.backward()
        # All logits at once would be 1.6 GB in bfloat16 and 3.2 GB for each float32 copy of them.
        assert torch.cuda.max_memory_allocated() - before < (2 if fused else 5) * (1 << 30)
        result.append([total.detach(), *(tensor.grad for tensor in inputs)])
    for one, other in zip(*result, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=0.02, atol=1e-4)


def test_the_fused_distillation_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, taught = (torch.randn(4096, 64, generator=generator).cuda() for _ in range(2))
    head, taught_head = (
        (torch.randn(32768, 64, generator=generator) * 0.1).cuda() for _ in range(2)
    )
    targets = torch.randint(32768, (4096,), generator=generator).cuda()
    how = head_loss.LossWeights(kl=1.0, ce=0.1, temperature=1.0)
    result = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(head_loss.fused_chunk, "suits", lambda *_: False)
        leaf = hidden.clone().requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            total, kl, ce = head_loss.head_loss(leaf, head, taught, taught_head, targets, how)
        total.backward()
        result.append([total.detach(), kl, ce, leaf.grad])
    for one, other in zip(*result, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=0.02, atol=1e-5)
