"""Cognate learns recall across segments, and passes by need, from nothing at a tiny size."""

import numpy as np
import pytest
import torch
from torch import Tensor

from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
from agent_forge.models.cognate import loss as cognate_loss

pytestmark = pytest.mark.slow

# Recall: 0 padding, 1 "the code of", 2 "is", 3 ".", 4 "what is", 5 "answer", keys 10-29, digits
# 30-39, other text 40-63.
FACTS, FILLER = 3, 24
# Swaps of three cups: places 1-3, swaps 4-6, 7 "where".
SWAPS = ((0, 1), (0, 2), (1, 2))
MOST = 3


def learner(seed: int, **changes: object) -> CognateForCausalLM:
    settings: dict[str, object] = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_loops": 1, "halting_size": 16, "memory_slots": 16,
        "written_slots": 20, "initializer_range": 0.05, "surprise_weight": 0.5,
        "novelty_weight": 0.5, "memory_gate_init": 0.3,
    }  # fmt: skip
    torch.manual_seed(seed)
    return CognateForCausalLM(CognateConfig(**{**settings, **changes}))


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, step: int, steps: int) -> None:
    """Take one step of a schedule that rises for 20 steps and falls over the last three tenths."""
    optimiser.zero_grad()
    loss.backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * min(1, (step + 1) / 20, (steps - step) / (0.3 * steps))
    optimiser.step()


def facts_and_questions(
    rows: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return facts, other text, questions about all facts in any order, and labels of their
    two-digit answers.
    """
    facts, question = np.zeros((rows, FACTS * 5), int), np.zeros((rows, FACTS * 5), int)
    for row in range(rows):
        pairs = [
            (10 + key, 30 + generator.integers(10, size=2))
            for key in generator.permutation(20)[:FACTS]
        ]
        facts[row] = np.concatenate([[1, key, 2, *code] for key, code in pairs])
        question[row] = np.concatenate(
            [[4, pairs[i][0], 5, *pairs[i][1]] for i in generator.permutation(FACTS)]
        )
    labels = np.where(question >= 30, question, -100)
    filler = generator.integers(40, 64, (rows, FILLER))
    return torch.tensor(facts), torch.tensor(filler), torch.tensor(question), torch.tensor(labels)


def recalled(model: CognateForCausalLM, write: bool) -> float:
    """Return the share of codes that are right in both digits, of facts two segments before."""
    facts, filler, question, labels = facts_and_questions(128, np.random.default_rng(999))
    with torch.no_grad():
        state = model(facts, write_memory=write).memory
        state = model(filler, memory=state, write_memory=write).memory
        actual = model(question, memory=state, write_memory=False).logits.argmax(-1)[:, :-1]
    counted = labels[:, 1:] != -100
    return float((actual == labels[:, 1:])[counted].view(-1, 2).all(1).float().mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_facts_are_recalled_across_segments_with_writes_on_and_at_chance_with_writes_off(
    seed: int,
) -> None:
    model, generator, steps = learner(seed), np.random.default_rng(seed), 280
    optimiser = torch.optim.AdamW([{"params": model.parameters(), "peak": 3e-3}], weight_decay=0.01)
    for step in range(steps):
        facts, filler, question, labels = facts_and_questions(16, generator)
        context, _, memory = cognate_loss.expected_loss(model, facts, facts, write_memory=True)
        if step > 0.25 * steps:
            text, _, memory = cognate_loss.expected_loss(
                model, filler, filler, memory=memory, write_memory=True
            )
            context = (context + text) / 2
        loss, _, _ = cognate_loss.expected_loss(model, question, labels, memory=memory)
        descend(optimiser, loss + 0.3 * context, step, steps)
    model.eval()
    assert recalled(model, write=True) >= 0.9
    assert recalled(model, write=False) <= 0.05  # chance is .01


def swapped(rows: int, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, labels of the answer alone, and the number of swaps 1..MOST of each row."""
    swaps = 1 + np.arange(rows) % MOST
    ids = np.zeros((rows, MOST + 3), int)
    labels = np.full_like(ids, -100)
    for row, count in enumerate(swaps):
        place = start = int(generator.integers(3))
        picked = [int(i) for i in generator.integers(3, size=count)]
        for one, other in (SWAPS[i] for i in picked):
            place = {one: other, other: one}.get(place, place)
        ids[row, : count + 3] = [1 + start, *(4 + i for i in picked), 7, 1 + place]
        labels[row, count + 2] = 1 + place
    return torch.tensor(ids), torch.tensor(labels), torch.tensor(swaps)


def test_hard_items_use_more_passes_and_a_third_is_saved_at_equal_accuracy() -> None:
    model = learner(
        0, num_hidden_layers=1, max_loops=3, hidden_size=48, vocab_size=8, pad_token_id=0
    )
    generator = np.random.default_rng(0)
    halting = list(model.model.halting.parameters())
    others = [p for name, p in model.named_parameters() if "halting" not in name]
    for steps, ponder, entropy, scale in ((400, 0.0, 1.0, 1.0), (150, 1.0, 0.05, 10.0)):
        model.config.ponder_cost, model.config.entropy_cost = ponder, entropy
        groups = [{"params": others, "peak": 3e-3}, {"params": halting, "peak": 3e-3 * scale}]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.95))
        for step in range(steps):
            ids, labels, _ = swapped(64, generator)
            descend(optimiser, cognate_loss.expected_loss(model, ids, labels)[0], step, steps)
    model.eval()
    ids, labels, swaps = swapped(600, np.random.default_rng(999))
    counted = labels[:, 1:] != -100
    passes, right = {}, {}
    for threshold in (0.0, 0.95, 1.1):
        model.config.halting_threshold = threshold
        with torch.no_grad():
            output = model(ids)
        right[threshold] = (output.logits[:, :-1].argmax(-1) == labels[:, 1:])[counted].float()
        passes[threshold] = output.passes[:, :-1]
    real = ids[:, :-1] != 0
    at_answer = passes[0.95][counted].float()
    by_swaps = [float(at_answer[swaps == count].mean()) for count in range(1, MOST + 1)]
    assert by_swaps[0] < by_swaps[1] < by_swaps[2]
    assert float(passes[0.95][real].float().mean()) <= 0.7 * model.config.max_loops
    assert abs(float((right[0.95] - right[1.1]).mean())) <= 0.02
    assert float(right[0.95].mean()) > float(right[0.0].mean()) + 0.1
