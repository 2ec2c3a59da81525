"""A tensor left on the CPU is noticed in every room that computes: one is planted in a hot function
of each.

evomerge and merge have none: candidates are merged on the CPU and copied, and what scores them is
evaluate's.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import codecs, models
from agent_forge.checkpoint import Workspace
from agent_forge.config.compose import compose
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import torch_generator
from agent_forge.phases import PhaseRun
from tests.pretend import pretend_accelerator

Work = Callable[[torch.device, Path], object]
IDS = [[3, 5, 7, 9, 11, 13, 17, 19]]


def small_llama(device: torch.device) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=0, bos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(device)  # type: ignore[arg-type]


def small_cognate(device: torch.device) -> Any:
    from agent_forge.models.cognate import CognateConfig, CognateForCausalLM

    torch.manual_seed(0)
    config = CognateConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, memory_slots=8, written_slots=4,
    )  # fmt: skip
    return CognateForCausalLM(config).to(device)  # type: ignore[arg-type]


def ids_on(device: torch.device) -> Tensor:
    return torch.tensor(IDS, device=device)


def code(device: torch.device, _: Path) -> object:
    return codecs.encode("waterfill", torch.randn(6, 8, device=device), {"step": 0.2})


def ternary_forward(device: torch.device, _: Path) -> object:
    from agent_forge.models.ternary import TernarySettings, ternarise

    model = small_llama(device)
    ternarise(model, TernarySettings(group_size=8, activation_bits=8, packing="two_bit", skip=[]))
    return model(input_ids=ids_on(device)).logits


def cognate_loss(device: torch.device, _: Path) -> object:
    return small_cognate(device).train().training_loss(ids_on(device), ids_on(device))


def scoring(device: torch.device, _: Path) -> object:
    from agent_forge.evaluate import row_nll

    return row_nll(small_llama(device), [(IDS[0], [False] + [True] * 7)])


def replies(device: torch.device, _: Path) -> object:
    return models.generate(small_llama(device), IDS, models.Decoding(max_new_tokens=3))


def muon_step(device: torch.device, _: Path) -> object:
    from agent_forge.learn.muon import Muon

    weight = nn.Parameter(torch.ones(4, 4, device=device))
    weight.grad = torch.eye(4, device=device)
    return Muon([weight], lr=0.1, weight_decay=0.0).step()


def compensated_layer(device: torch.device, _: Path) -> object:
    from agent_forge.phases.bitnet.compensate import Rounding, compensate

    return compensate(
        torch.randn(4, 8, device=device), torch.eye(8, device=device), 4, Rounding(0.1, sweeps=1)
    )


def sensitivities(device: torch.device, place: Path) -> object:
    from agent_forge.phases.compress import Config
    from agent_forge.phases.compress.sensitivity import Calibration, measure

    out = Workspace(str(place / "out"), phase="compress", seed=0, config={}, parents=[])
    config = compose("compress", Config, ["out=o", "sources=[s]"])
    phase = PhaseRun(config, [], out, EventLog(None, "compress"))
    return list(measure(phase, small_llama(device), Calibration(torch.tensor(IDS))))


def thinking(device: torch.device, _: Path) -> object:
    from agent_forge.phases.quietstar.objective import draw_positions, leave_one_out, policy_loss

    draw_positions(ids_on(device), 2, torch_generator(0, "test"))
    rewards = torch.rand(2, 3, device=device)
    return policy_loss(torch.rand(2, 3, 4, device=device), leave_one_out(rewards))


def exponents(device: torch.device, _: Path) -> object:
    from agent_forge.phases.train.exponents import depth_exponent

    batch = {"input_ids": ids_on(device), "labels": ids_on(device)}
    return depth_exponent(small_llama(device), batch, relative_step=1e-3, seed=0)


def lesson(device: torch.device, _: Path) -> object:
    from agent_forge.phases.bake.persona import effect

    known = {
        "ids": torch.tensor(IDS), "mask": torch.tensor([[False] * 4 + [True] * 3 + [False]]),
        "tokens": torch.zeros(1, 3, 2, dtype=torch.int64), "log_probs": torch.full((1, 3, 2), -1.0),
    }  # fmt: skip
    return effect(small_llama(device), known)


def joined_experts(device: torch.device, _: Path) -> object:
    from agent_forge.phases.adas.pool.singular import _per_layer, joined

    matrix, gains = (
        torch.rand(4, 4, device=device),
        [{"m": torch.rand(4, device=device)} for _ in range(2)],
    )
    bank: Any = SimpleNamespace(
        matrices=[SimpleNamespace(name="m", layer=1)],
        gains=gains,
        depth=2,
        spread=lambda _, gain: matrix * gain,
    )
    return joined(_per_layer)(bank, [0.5, 0.5])


def probes(device: torch.device, _: Path) -> object:
    from agent_forge.phases.cognate.probes import _items

    labels = ids_on(device)
    with torch.no_grad():
        return _items(small_cognate(device)(input_ids=labels), labels, torch.ones_like(labels))


# room -> (the function in which a tensor is planted, a function that calls it)
ROOMS: list[tuple[str, str, Work]] = [
    ("codecs", "agent_forge.codecs.waterfill:column_steps", code),
    ("models", "agent_forge.models.ternary.layer:ternary_weight", ternary_forward),
    ("models", "agent_forge.models.cognate.loss:exit_probabilities", cognate_loss),
    ("evaluate", "torch.nn.functional:cross_entropy", scoring),
    ("agent and runtime", "torch:cat", replies),
    ("learn", "agent_forge.learn.muon:orthogonalised", muon_step),
    ("bitnet", "agent_forge.phases.bitnet.compensate:best_scale", compensated_layer),
    ("bitnet", "agent_forge.phases.bitnet.refine:multiply_out", compensated_layer),
    ("compress", "agent_forge.anatomy.moments:second_moment", sensitivities),
    ("quietstar", "agent_forge.phases.quietstar.objective:leave_one_out", thinking),
    ("train", "agent_forge.phases.train.exponents:_norm", exponents),
    ("bake", "torch:log_softmax", lesson),
    ("adas", "torch:stack", joined_experts),
    ("cognate", "torch.nn.functional:cross_entropy", probes),
]


def on_cpu(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(on_cpu, value))
    return value.cpu() if isinstance(value, Tensor) else value


@pytest.mark.parametrize(("room", "where", "work"), ROOMS)
def test_pretend_accelerator_notices_a_planted_tensor(
    room: str, where: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del room
    module, _, name = where.partition(":")
    with pretend_accelerator() as device:
        work(device, tmp_path)  # without the planted tensor it works
        real = getattr(import_module(module), name)
        monkeypatch.setattr(
            import_module(module), name, lambda *args, **named: on_cpu(real(*args, **named))
        )
        with pytest.raises(RuntimeError, match="two devices"):
            work(device, tmp_path / "again")
