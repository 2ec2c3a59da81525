"""Objective rlp on a task of three steps, against its controls at equal FLOPs.

A question is a state and three permutations of five states; the answer is where the state ends. One
layer cannot apply three permutations at once, but can apply one to the word before: two words of
thought, the states on the way, make the answer easy. The models are warm-started on text in which
half of the thoughts are right and half are random states. A fifth of all questions are held out
from every training, and all figures are of those.
"""

import copy
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge.config.compose import compose
from agent_forge.models.thought import ThoughtForCausalLM
from agent_forge.phases.quietstar import Config, rlp

SEEDS = range(2)  # seconds each; docs/log.md has five
STATES, PERMUTATIONS, STEPS = 5, 5, 3
START, END, PAUSE = (STATES + PERMUTATIONS + i for i in range(3))
ROWS, IGNORE = 64, -100
CONFIG = compose(
    "quietstar", Config,
    ["out=o", "sources=[s]", "objective=rlp", "baseline=false", "positions=1", "thoughts=4",
     "lookahead=1", f"thought_length={STEPS - 1}", "rlp.updates=2", f"batch_rows={ROWS}",
     f"length_tokens={STEPS + 2}", "steps=60"],
)  # fmt: skip


def every_question() -> tuple[Tensor, Tensor, Tensor]:
    """Return all questions (n, 4), the states after each step (n, 3), and which are held out."""
    generator = torch.Generator().manual_seed(7)
    table = torch.stack([torch.randperm(STATES, generator=generator) for _ in range(PERMUTATIONS)])
    whole = torch.cartesian_prod(torch.arange(STATES), *[torch.arange(PERMUTATIONS)] * STEPS)
    states = [whole[:, 0]]
    for step in range(STEPS):
        states.append(table[whole[:, 1 + step], states[-1]])
    held_out = torch.rand(len(whole), generator=generator) < 0.2
    questions = torch.cat([whole[:, :1], whole[:, 1:] + STATES], 1)
    return questions, torch.stack(states[1:], 1), held_out


QUESTIONS, ON_THE_WAY, HELD_OUT = every_question()
Rows = Callable[[torch.Generator], tuple[Tensor, Tensor]]


def drawn(generator: torch.Generator, count: int) -> Tensor:
    """Return the numbers of questions that training may see."""
    seen = (~HELD_OUT).nonzero().flatten()
    return seen[torch.randint(len(seen), (count,), generator=generator)]


def row(which: Tensor, *between: Tensor | int) -> Tensor:
    """Return questions, what stands between, and answers as rows of tokens."""
    one = torch.ones_like(which)[:, None]
    parts = [part if isinstance(part, Tensor) else part * one for part in between]
    return torch.cat([QUESTIONS[which], *parts, ON_THE_WAY[which, -1:]], 1)


def answers_alone(ids: Tensor) -> Tensor:
    """Return labels of which only the last counts."""
    labels = torch.full_like(ids, IGNORE)
    labels[:, -1] = ids[:, -1]
    return labels


def mixed_text(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return rows with thoughts, half of them random, and labels of thoughts and answers."""
    which = drawn(generator, 2 * ROWS)
    words = ON_THE_WAY[which, :-1].clone()
    words[ROWS:] = torch.randint(STATES, words[ROWS:].shape, generator=generator)
    ids = row(which, START, words, END)
    labels = ids.clone()
    labels[:, : STEPS + 2] = labels[:, -2] = IGNORE
    return ids, labels


def trained(
    model: LlamaForCausalLM, seed: int, steps: int, lr: float, rows: Rows
) -> LlamaForCausalLM:
    """Return the model, trained plainly with a rate that falls to zero at the end."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (steps - step) / (0.3 * steps))
        ids, labels = rows(generator)
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    return model.eval()


def warm_started(seed: int) -> LlamaForCausalLM:
    """Return a model of one layer that writes thoughts and answers."""
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=PAUSE + 1, hidden_size=48, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=32, initializer_range=0.05,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return trained(LlamaForCausalLM(shape), seed, 400, 6e-3, mixed_text)


def thinking(base: LlamaForCausalLM) -> ThoughtForCausalLM:
    """Return a copy that predicts from its thoughts alone."""
    model = ThoughtForCausalLM.wrap(
        copy.deepcopy(base), start_ids=[START], end_ids=[END], thought_length=STEPS - 1,
        thoughts=1, temperature=1.0,
    ).eval()  # fmt: skip
    rlp.predicts_from_thoughts_alone(model)
    return model


def reinforced(base: LlamaForCausalLM, seed: int) -> ThoughtForCausalLM:
    """Return the model after the objective as published: only the words of thoughts learn."""
    model = thinking(base)
    rlp.remember(model, CONFIG.rlp.updates)
    groups = [list(model.base.parameters()), [model.start, model.end]]
    config = dataclasses.replace(CONFIG, seed=seed)
    loss, follow = rlp.RlpLoss(config, groups), rlp.Follow(config)
    optimiser = torch.optim.AdamW([one for group in groups for one in group], lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(config.steps):
        if step % config.rlp.updates == 0:
            ids = row(drawn(generator, ROWS))
        optimiser.zero_grad()
        batch = {"input_ids": ids, "labels": answers_alone(ids)}
        loss(model, batch, step)[0].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        follow(SimpleNamespace(step=step), model)  # type: ignore[arg-type]
    return model


@torch.no_grad()
def after_thoughts(model: ThoughtForCausalLM, words: Tensor | None = None) -> tuple[float, Tensor]:
    """Return the mean chance of the right answer after thoughts, and their words.

    words: (questions, 4, 2) in the place of the model's own.
    """
    which = HELD_OUT.nonzero().flatten()
    place = torch.full_like(which, STEPS)[:, None]
    own = {"seed": 5, "thoughts": 4} if words is None else {"tokens": words[:, None]}
    thoughts = model.think(row(which), positions=place, temperature=1.0, **own)  # type: ignore[arg-type]
    chances = thoughts.thought_logits[:, 0, :, 0].softmax(-1)
    right = ON_THE_WAY[which, -1][:, None, None].expand(-1, 4, 1)
    return float(chances.gather(-1, right).mean()), thoughts.tokens[:, 0]


@torch.no_grad()
def without_thoughts(model: LlamaForCausalLM, *between: int) -> float:
    """Return the mean chance of the right answer after the question and some tokens."""
    ids = row(HELD_OUT.nonzero().flatten(), *between)
    chances = model(input_ids=ids[:, :-1]).logits[:, -1].softmax(-1)
    return float(chances.gather(1, ids[:, -1:]).mean())


def compared(seed: int) -> dict[str, float]:
    """Return the chance of the right answer of the objective and of every control."""
    base = warm_started(seed)
    model = reinforced(base, seed)
    own, words = after_thoughts(model)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randint(STATES, words.shape, generator=generator)
    others = words[torch.randperm(len(words), generator=generator)]
    figures = {
        "reinforced": own,
        "not reinforced": after_thoughts(thinking(base))[0],
        "random thoughts": after_thoughts(model, random)[0],
        "shuffled thoughts": after_thoughts(model, others)[0],
    }
    budget = CONFIG.work_tokens() - dataclasses.replace(CONFIG, steps=0).work_tokens()
    for name, between in {"no thought": (), "pauses": (START, PAUSE, PAUSE, END)}.items():

        def rows(
            generator: torch.Generator, between: tuple[int, ...] = between
        ) -> tuple[Tensor, Tensor]:
            ids = row(drawn(generator, ROWS), *between)
            return ids, answers_alone(ids)

        steps = round(budget / (ROWS * (STEPS + 2 + len(between))))
        plain = trained(copy.deepcopy(base), seed, steps, 1e-3, rows)
        figures[name] = without_thoughts(plain, *between)
    return figures


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_reinforced_thoughts_beat_every_control_at_equal_flops() -> None:
    """Random and shuffled thoughts cost as much to run, pauses and no thought as much to train."""
    figures = [compared(seed) for seed in SEEDS]
    for control in figures[0].keys() - {"reinforced"}:
        gains = [one["reinforced"] - one[control] for one in figures]
        assert min(gains) > 0, (control, gains)
        assert sum(gains) / len(gains) > 0.1, (control, gains)
