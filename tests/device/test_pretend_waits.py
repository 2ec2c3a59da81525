"""A training step makes the host wait for an accelerator once, to read its numbers.

No loss waits before that.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agent_forge import learn
from agent_forge.checkpoint import Workspace
from agent_forge.config import OptimConfig
from agent_forge.config.compose import compose, default_runtime
from agent_forge.core.events import EventLog
from agent_forge.learn.feed import Batch
from agent_forge.models.ternary import TernarySettings, ternarise
from tests.device.test_pretend_rooms import small_cognate, small_llama
from tests.pretend import counted_waits, pretend_accelerator

STEPS = 2
PAD = 0
IDS = torch.tensor([[3, 5, 7, 9, 11, 13, 17, 19], [2, 4, 6, 8, 10, 12, PAD, PAD]])
LABELS = IDS.masked_fill(IDS == PAD, -100)
Loss = Callable[[Any, dict[str, Tensor], int], tuple[Tensor, Any]]


class Always:
    """One batch for all steps: half a row is not trained."""

    pure = True

    def batch(self, step: int) -> dict[str, Tensor]:
        del step
        return {
            "input_ids": IDS,
            "labels": LABELS,
            "neutral_ids": IDS,
            "neutral_mask": LABELS != -100,
            "persona_rows": torch.tensor([1, 0]),
        }


def cognate(device: torch.device) -> tuple[Any, Loss]:
    model = small_cognate(device)
    model.config.pad_token_id, model.config.ponder_cost = PAD, 0.1
    return model, learn.lm_loss


def recall(device: torch.device) -> tuple[Any, Loss]:
    """Three segments; the last one's answer alone is trained there."""
    from agent_forge.phases.cognate import Config
    from agent_forge.phases.cognate.segments import segment_loss

    model, _ = cognate(device)
    settings = replace(compose("cognate", Config, ["out=o"]).recall, segment_tokens=3)
    return model, lambda model, batch, _: segment_loss(
        model, batch["input_ids"], batch["labels"], settings, PAD
    )


def plain(device: torch.device) -> tuple[Any, Loss]:
    return small_llama(device), learn.lm_loss


def of_any_model(device: torch.device) -> tuple[Any, Loss]:
    """A ternary model shows its logits: there is no shorter way to its loss."""
    model = small_llama(device)
    ternarise(
        model,
        TernarySettings(
            group_size=8, activation_bits=8, packing="two_bit", skip=[], embedding_bits=8
        ),
    )
    return model, learn.lm_loss


def distillation(device: torch.device, **changes: Any) -> tuple[Any, Loss]:
    from agent_forge.phases.bitnet import Config
    from agent_forge.phases.bitnet.distill import Distillation

    model, parent = small_llama(device), small_llama(device).requires_grad_(False)
    ternarise(model, TernarySettings(group_size=8, activation_bits=8, packing="two_bit", skip=[]))
    settings = replace(
        compose("bitnet", Config, ["out=o", "sources=[s]"]).distill, ce_weight=0.5, **changes
    )
    return model, Distillation(parent, settings, pad=PAD, steps=STEPS, blend_share=0.5)


def distillation_of_layers(device: torch.device) -> tuple[Any, Loss]:
    return distillation(device, relation_weight=1.0, relation_heads=2, hidden_weight=1.0)


def distillation_of_logits(device: torch.device) -> tuple[Any, Loss]:
    model, loss = distillation(device)
    model.lm_head = torch.nn.Linear(16, 40, device=device)  # a bias, so that the head is not plain
    return model, loss


def thoughts(device: torch.device) -> tuple[Any, Loss]:
    from agent_forge.models.thought import ThoughtForCausalLM
    from agent_forge.phases.quietstar import Config
    from agent_forge.phases.quietstar.objective import QuietStarLoss

    model = ThoughtForCausalLM.wrap(
        small_llama(torch.device("cpu")), start_ids=[1], end_ids=[2], thought_length=2
    )
    model = model.to(device)  # type: ignore[arg-type]
    config = compose("quietstar", Config, ["out=o", "sources=[s]", "positions=3", "thoughts=2"])
    return model, QuietStarLoss(
        config, [list(model.base.parameters()), list(model.mixing.parameters())]
    )


def information_gain(device: torch.device) -> tuple[Any, Loss]:
    from agent_forge.models.thought import ThoughtForCausalLM
    from agent_forge.phases.quietstar import Config, rlp

    model = ThoughtForCausalLM.wrap(
        small_llama(torch.device("cpu")), start_ids=[1], end_ids=[2], thought_length=2
    )
    model = model.to(device)  # type: ignore[arg-type]
    rlp.predicts_from_thoughts_alone(model)
    rlp.remember(model, 2)
    overrides = ["out=o", "sources=[s]", "positions=3", "thoughts=2", "objective=rlp"]
    config = compose("quietstar", Config, overrides)
    return model, rlp.RlpLoss(config, [list(model.base.parameters()), [model.start, model.end]])


def baking(device: torch.device) -> tuple[Any, Loss]:
    from agent_forge.phases.bake import Config
    from agent_forge.phases.bake.lessons import joint_loss

    class Lessons:
        pairs = None
        lessons = {"short": {  # noqa: RUF012
            "ids": IDS, "mask": torch.arange(8).ge(4).expand(2, 8) & IDS.ne(PAD),
            "tokens": torch.zeros(2, 4, 2, dtype=torch.int64),
            "log_probs": torch.full((2, 4, 2), -1.0),
        }}  # fmt: skip

        def trait(self, _: int) -> str:
            return "short"

    batches: Any = Lessons()
    config = compose("bake", Config, ["out=o", "sources=[s]"])
    return small_llama(device), joint_loss(
        config, small_llama(device), batches, lambda *_: {"short": 1.0}
    )


def recovery(device: torch.device) -> tuple[Any, Loss]:
    from agent_forge.phases.compress.recover import AsParent

    return small_llama(device), AsParent(small_llama(device))


def self_model(device: torch.device) -> tuple[Any, Loss]:
    from agent_forge.phases.train.self_model import SelfModel

    model = small_llama(device)
    return model, SelfModel(model, weight=0.1, targets=1, seed=0).loss


def expert(device: torch.device) -> tuple[Any, Loss]:
    """A domain's singular gains, held to the base."""
    from agent_forge.anatomy.stack import matrices
    from agent_forge.phases.adas import Config
    from agent_forge.phases.adas.experts import Adapted, anchored_loss, empty_bank

    model = small_llama(torch.device("cpu")).requires_grad_(False)
    bank = empty_bank(model, matrices(model), compose("adas", Config, ["out=o", "sources=[s]"]))
    for name, parts in bank.factors.items():
        bank.factors[name] = tuple(part.to(device) for part in parts)  # type: ignore[assignment]
        bank.base[name] = bank.base[name].to(device)
    model = model.to(device)  # type: ignore[arg-type]
    return Adapted(model, bank, "svf").to(device), anchored_loss(0.5)


def pairs(device: torch.device) -> tuple[Any, Loss]:
    """Two answers of which the first is preferred."""
    from agent_forge.phases.bake.preferences import lesson_loss

    lesson = {"ids": IDS, "labels": LABELS, "reference": torch.tensor([-9.0, -8.0])}

    def loss(model: Any, *_: Any) -> tuple[Tensor, Any]:
        dpo, margin = lesson_loss(model, lesson, torch.tensor([0]), 0.1)
        return dpo, {"margin": margin}

    return small_llama(device), loss


KINDS = [
    cognate, recall, plain, of_any_model, distillation, distillation_of_layers,
    distillation_of_logits, thoughts, information_gain, baking, recovery, self_model, pairs,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_pretend_accelerator_is_waited_for_once_a_step(
    kind: Callable[..., Any], tmp_path: Path
) -> None:
    """`train` on it: what a step reads comes in one list (learn.gradients.numbers), and nothing
    else is read.
    """
    with pretend_accelerator() as device:
        model, loss = kind(device)
        out = Workspace(str(tmp_path / "out"), phase="test", seed=0, config={}, parents=[])
        optim = OptimConfig(
            method="muon", lr=1e-3, muon_lr=1e-3, warmup_steps=0, cooldown_share=0.5,
            weight_decay=0.1, beta1=0.9, beta2=0.95, clip_norm=1.0, average_share=0.5,
        )  # fmt: skip
        taken: list[int] = []

        def watched(model: Any, batch: Any, step: int) -> Any:
            taken.append(len(waits))
            return loss(model, batch, step)

        watched.teachers = getattr(loss, "teachers", ())  # type: ignore[attr-defined]
        with counted_waits() as waits:
            request = learn.TrainRequest(
                batches=Always(), loss_fn=watched, stage="steps", steps=STEPS + 1, optim=optim,
                out=out, events=EventLog(None, "test"), seed=0, device=device,
                runtime=default_runtime(),
            )  # fmt: skip
            records = learn.train(model, request)
    # From the start of the second step, for the first may test the model, to the last one's start.
    assert len(taken) == STEPS + 1
    assert waits[taken[1] : taken[-1]] == []
    assert all(torch.tensor([record.loss for record in records]).isfinite())


@pytest.mark.parametrize(
    "kind",
    [cognate, recall, of_any_model, distillation_of_layers, distillation_of_logits, expert, pairs],
)
def test_pretend_accelerator_weighs_tokens_as_the_cpu_picks_them(kind: Callable[..., Any]) -> None:
    """Nothing is picked out on an accelerator, and the loss and its gradient are the CPU's."""
    batch = Always().batch(0)
    expected = _loss_and_gradient(*kind(torch.device("cpu")), batch)
    with pretend_accelerator() as device:
        there = Batch({name: value.to(device) for name, value in batch.items()}, batch)
        actual = _loss_and_gradient(*kind(device), there)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name].cpu(), value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def _loss_and_gradient(model: Any, loss_fn: Loss, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    loss, metrics = loss_fn(model.train(), batch, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: value.grad for name, value in model.named_parameters() if value.grad is not None
    }
    return {"loss": loss.detach(), **{f"metric {k}": v for k, v in metrics.items()}, **gradients}


def test_pretend_accelerator_counts_what_cuda_waits_for() -> None:
    with pretend_accelerator() as device, counted_waits() as waits:
        x = torch.tensor([1.0, 2.0, 3.0], device=device)
        free = [
            x + x,
            x[torch.tensor([0, 1])],
            x.sum(),
            x.topk(2),
            x.to(torch.float64),
            torch.zeros(3).to(device),
        ]
        x[x > 2] = 0.0
        assert waits == []
        for wait in (float, bool, lambda t: t[0].item()):
            wait(x[:1])
        x.cpu(), x[x > 1], (x > 1).nonzero(), torch.bincount(x.long()), torch.zeros(3).copy_(x)
        x[x > 0] = torch.ones(2, device=device)
        assert len(waits) == 9
        assert free
