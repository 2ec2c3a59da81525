"""Keep the parent's voice: KL to the parent on its own answers to plain questions.

The lesson is the same as for a trait (`persona`) without a system prompt: the parent answers,
greedily, and its distribution at each token of its answers is what the student keeps. Measured on
questions of other topics, in nats per token; 0 is the parent itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent_forge.core.seeds import seed_for
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config, TraitConfig, persona

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "voice"
FORMS = (
    "What is the {}?", "Tell me about the {}.", "Explain the {} to a child.",
    "Why is the {} important?", "Write one sentence about the {}.", "Do you like the {}?",
)  # fmt: skip
TOP_K = 20


@dataclass(slots=True)
class _Drawing:
    """How the parent answers."""

    reply_tokens: int
    temperature: float = 0.0
    top_k: int = TOP_K


class Voice:
    """The parent's answers: to learn from, and to measure on; empty where the voice is off."""

    def __init__(self, phase: PhaseRun[Config], parent: "PreTrainedModel") -> None:
        settings = phase.config.voice
        self.lesson: dict[str, Tensor] | None = None
        self.heldout: dict[str, Tensor] | None = None
        if settings.prompts == 0:
            return
        plain = TraitConfig(system="", strength=1.0, questions=list(FORMS))
        drawing = _Drawing(settings.reply_tokens)
        seed = phase.config.seed

        def lesson(split: str, count: int) -> dict[str, Tensor]:
            questions = persona.questions(plain, count, split, seed, NAME)
            return phase.out.remember_tensors(
                f"voice-{split}",
                lambda: persona.teach(
                    parent, phase.tokenizer, plain, questions, drawing, seed_for(seed, "bake", NAME)
                ),
            )

        self.lesson = lesson("train", settings.prompts)
        self.heldout = lesson("validation", settings.heldout)

    def measure(self, model: "PreTrainedModel") -> float | None:
        """Return KL(parent ‖ model) in nats per token on held-out questions; None where off."""
        return None if self.heldout is None else persona.effect(model, self.heldout)


def lesson_loss(
    model: "PreTrainedModel", lesson: Mapping[str, Tensor] | None, rows: Tensor
) -> Tensor:
    """Return the mean KL (nats per token) over some rows of the parent's answers."""
    if lesson is None:
        return torch.zeros(())
    total, count = persona.lesson_kl(model, lesson, rows)
    return total / max(count, 1)
