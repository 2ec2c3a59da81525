"""Reinforce what the model itself answers rightly: sampled groups, verified answers, a small KL.

Of each question `samples` replies are drawn; a reply is worth 1 where it makes the row's calls, or,
in a row without a call, where its last word is the answer; else 0. Its advantage is its reward less
the group's mean, over the group's deviation; a group in which too few or too many are right teaches
nothing and is left out. Sources: group-relative advantages, arXiv:2402.03300; the estimate of the
KL, Schulman 2020, "Approximating KL divergence".

Shape letters: I questions, S samples, R = I * S replies, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import agent, models
from agent_forge.agent.turn import decode_reply
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data import encode_prompt, stop_ids, turn_end
from agent_forge.evaluate.engine import asked, last_word
from agent_forge.learn.feed import on_host

Row = Mapping[str, Any]
Opened = Callable[[Any], AbstractContextManager[PreTrainedModel]]


class RewardSettings(Protocol):
    """How replies are drawn, and which groups teach: shares of right replies from low to high."""

    samples: int
    max_new_tokens: int
    temperature: float
    low: float
    high: float
    kl_weight: float


def group_advantages(rewards: Tensor, low: float, high: float) -> Tensor:
    """Return each reply's advantage in its group, 0 in groups outside the range.

    rewards: (I, S); low, high: the shares of right replies between which a group teaches.
    """
    # With rewards of 0 and 1 the mean is the share of right replies.
    share = rewards.mean(1, keepdim=True)
    deviation = rewards.std(1, correction=0, keepdim=True)
    teaches = (share >= low) & (share <= high) & (deviation > 0)
    return torch.where(teaches, (rewards - share) / deviation.clamp_min(1e-6), torch.zeros(()))


def policy_loss(
    log_probs: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor, kl_weight: float
) -> tuple[Tensor, Tensor]:
    """Return the loss, and the mean KL per token to the reference.

    log_probs, reference: (R, T) of the sampled tokens, in nats; mask: (R, T), 1 where a token was
    sampled; advantages: (R,), which get no gradient. Both parts are means over sampled tokens; the
    KL's estimate exp(d) - d - 1, d = reference - log_probs, is never negative.
    """
    tokens = mask.sum().clamp_min(1)
    # Zero where nothing was sampled, so that exp and minus 1 cancel there.
    surprise = (reference - log_probs) * mask
    kl = ((surprise.exp() - surprise - 1) * mask).sum() / tokens
    gain = (advantages.detach()[:, None] * log_probs * mask).sum() / tokens
    return kl_weight * kl - gain, kl.detach()


def token_log_probs(
    model: nn.Module, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every token of each reply after its prompt, and the mask.

    Both (R, T - 1) float32: column t belongs to token t + 1 of prompt and reply together.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompts, replies, strict=True)]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    present, mask = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.float32)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        ids[row, : lengths[row]] = torch.tensor([*prompt, *reply])
        present[row, : lengths[row]] = 1
        mask[row, len(prompt) : lengths[row]] = 1
    device = next(model.parameters()).device
    ids, present, mask = (part.to(device) for part in (ids, present, mask))
    logits = model(input_ids=ids, attention_mask=present, use_cache=False).logits[:, :-1]
    chosen = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return chosen, mask[:, 1:]


@dataclass(frozen=True)
class Questions:
    """Batches of question numbers, a pure function of the step. phase: whose, in the seeds."""

    count: int
    items: int
    seed: int
    phase: str
    pure = True

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return {"input_ids": (items,) numbers of questions}."""
        generator = numpy_generator(self.seed, self.phase, "questions", step)
        chosen = generator.choice(self.count, min(self.items, self.count), replace=False)
        return {"input_ids": torch.from_numpy(chosen)}

    def fingerprint(self) -> str:
        """Return what identifies the batches."""
        return f"questions-{self.count}-{self.items}-{self.seed}"


class Reinforcement:
    """The loss function that learn.train calls: one step samples, verifies and learns.

    reference: the frozen model that the KL holds to. opened: turns what is trained into a model
    that generates, while it samples. phase: whose, in the seeds.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerFast,
        reference: PreTrainedModel,
        config: RewardSettings,
        *,
        seed: int,
        phase: str,
        opened: Opened = nullcontext,
    ) -> None:
        self.rows, self.tokenizer, self.config, self.seed = rows, tokenizer, config, seed
        # As it was before reinforcement: the KL is towards the model that people know.
        self.reference, self.phase, self.opened = reference, phase, opened
        self.stops = stop_ids(tokenizer, reference)
        # One token is enough to learn where to stop; the rest of the turn is the template.
        self.end = turn_end(tokenizer)[:1]

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the loss in nats per sampled token, and how many replies were right."""
        rows = [self.rows[i] for i in on_host(batch)["input_ids"].tolist()]
        with self.opened(model) as generating:
            prompts, replies, rewards = self.sampled(generating, rows, step)
        advantages = group_advantages(rewards, self.config.low, self.config.high)
        with torch.no_grad():
            before, _ = token_log_probs(self.reference, prompts, replies)
        now, mask = token_log_probs(model, prompts, replies)
        loss, kl = policy_loss(
            now, before, mask, advantages.flatten().to(now.device), self.config.kl_weight
        )
        teaching = (advantages != 0).any(1).float().mean()
        return loss, {"reward": rewards.mean(), "groups_that_teach": teaching, "kl_nats": kl}

    def sampled(
        self, model: PreTrainedModel, rows: Sequence[Row], step: int
    ) -> tuple[list[list[int]], list[list[int]], Tensor]:
        """Return prompts and replies, R each, and rewards (I, S).

        A reply that ended by itself is followed by the end of a turn, which is learned too.
        """
        config = self.config
        prompts = [
            encode_prompt(self.tokenizer, asked(row["messages"]))
            for row in rows
            for _ in range(config.samples)
        ]
        drawn = models.generate(
            model,
            prompts,
            models.Decoding(
                max_new_tokens=config.max_new_tokens,
                stop_ids=self.stops,
                temperature=config.temperature,
                seed=seed_for(self.seed, self.phase, "replies", step),
                batch_rows=len(prompts),
            ),
        )
        ended = [len(reply) < config.max_new_tokens for reply in drawn]
        rewards = [
            float(whole and self.is_right(rows[place // config.samples], reply))
            for place, (whole, reply) in enumerate(zip(ended, drawn, strict=True))
        ]
        replies = [
            [*reply, *(self.end if whole else [])]
            for whole, reply in zip(ended, drawn, strict=True)
        ]
        return prompts, replies, torch.tensor(rewards).view(len(rows), config.samples)

    def is_right(self, row: Row, reply: Sequence[int]) -> bool:
        """Return whether a reply makes the calls of the row's first answer, or else its last word
        is the row's answer.
        """
        first = row["messages"][len(asked(row["messages"]))]
        expected = agent.parse_calls(first["content"])
        text = decode_reply(self.tokenizer, reply)
        if expected:
            return agent.parse_calls(text) == expected
        return last_word(text) == row["answer"]
