"""The handle of a phase: what its helpers need of their surroundings, made once, when it is first
needed.
"""

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from agent_forge.checkpoint import Checkpoint
from agent_forge.config import PhaseConfig
from agent_forge.config.compose import compose
from agent_forge.phases import PhaseRun


def handle(sources: list[Any], *overrides: str) -> PhaseRun[PhaseConfig]:
    config = compose("base", PhaseConfig, ["out=x", "runtime.device=cpu", *overrides])
    return PhaseRun(config, sources, None, None)  # type: ignore[arg-type]


def test_device_and_data_type_are_those_of_the_settings() -> None:
    phase = handle([], "runtime.dtype=bfloat16")
    assert (phase.device, phase.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert handle([], "runtime.dtype=auto").dtype == torch.float32


def test_the_tokenizer_is_the_first_sources_and_is_read_once(tiny_checkpoint: Checkpoint) -> None:
    phase = handle([tiny_checkpoint], "seed=3")
    assert phase.tokenizer is phase.tokenizer
    context = phase.eval_context
    assert (context.tokenizer, context.seed, context.data) == (
        phase.tokenizer,
        3,
        phase.config.data,
    )


def test_a_phase_without_sources_gives_its_own_tokenizer(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    phase = handle([])
    phase.tokenizer = tiny_tokenizer
    assert phase.eval_context.tokenizer is tiny_tokenizer
