"""Keep the parent's voice: KL to the parent on its own answers to plain questions.

The lesson is the same as for a trait (`persona`) without a system prompt: the parent answers,
greedily, and its distribution at each token of its answers is what the student keeps. Measured on
questions that are not learned from, in nats per token; 0 is the parent itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data import split_of
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config, TraitConfig, persona

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "voice"
FORMS = (
    "What is the {}?", "Tell me about the {}.", "Explain the {} to a child.",
    "Why is the {} important?", "Write one sentence about the {}.", "Do you like the {}?",
)  # fmt: skip
# What people ask and tell an assistant that has no tools.
PLAIN = (
    "Who wrote Hamlet?", "Why is the sky blue?", "What is photosynthesis?", "Tell me a joke.",
    "Write a short poem about autumn.", "What is the capital of Spain?", "How are you?",
    "Give me three tips for better sleep.", "What is the difference between a fruit and a nut?",
    "Explain gravity to a child.", "Why do cats purr?", "How do I boil an egg?", "Hello!",
    "What should I read next?", "Write a birthday card for my aunt.", "Who painted Guernica?",
    "How does a battery work?", "Name five rivers in Europe.", "What is a haiku?",
    "I feel tired today.", "What makes a good leader?", "Why do leaves change colour?",
    "How long does it take to learn to swim?", "Describe a sunset in two sentences.",
    "What is the meaning of life?", "Can you help me with my homework?", "What is a black hole?",
    "Who was Marie Curie?", "How do bees make honey?", "What is the tallest mountain?",
    "Suggest a name for my dog.", "Write one sentence about trains.", "Why is exercise healthy?",
    "What can I cook with rice and eggs?", "How do I say sorry to a friend?", "Thank you!",
    "What is democracy?", "Is a tomato a vegetable?", "How do aeroplanes fly?", "Who are you?",
    "Tell me something about the moon.", "What are the primary colours?", "Good morning.",
    "How can I save water at home?", "What is the boiling point of water?", "What is a verb?",
    "Give me an idea for a story.", "Why do we dream?", "What is the largest desert?",
    "How do I start a garden?", "What causes thunder?", "Write a slogan for a bakery.",
    "What is a computer program?", "How old is the Earth?", "What language do Brazilians speak?",
    "Who invented the telephone?", "What is a good gift for a teacher?", "Why do we need sleep?",
    "What does a nurse do?", "How do I remove a coffee stain?", "What is an ecosystem?",
    "Tell me about ancient Rome.", "What is the fastest animal?", "How do magnets work?",
    "Recommend a hobby for the winter.", "What is inflation?", "Why is the sea salty?",
    "Explain what a metaphor is.", "How many continents are there?", "That was helpful, thanks.",
    "What is yoga good for?", "Write a question for a quiz.", "How do plants drink?",
    "What did you mean by that?", "Goodbye!",
)  # fmt: skip
PLAIN_SHARE = 0.7  # plain questions among all; the others are about the topics of the traits
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
            questions = plain_questions(split, seed, round(PLAIN_SHARE * count))
            questions += persona.questions(plain, count - len(questions), split, seed, NAME)
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


def plain_questions(split: str, seed: int, count: int) -> list[str]:
    """Return up to `count` of the plain questions that belong to a split."""
    inside = [text for text in PLAIN if split_of(f"voice/{text}") == split]
    order = numpy_generator(seed, "bake", "voice", split).permutation(len(inside))
    return [inside[i] for i in order[:count]]


def lesson_loss(
    model: "PreTrainedModel", lesson: Mapping[str, Tensor] | None, rows: Tensor
) -> Tensor:
    """Return the mean KL (nats per token) over some rows of the parent's answers."""
    if lesson is None:
        return torch.zeros(())
    total, count = persona.lesson_kl(model, lesson, rows)
    return total / max(count, 1)
