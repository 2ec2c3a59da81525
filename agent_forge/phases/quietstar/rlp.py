"""Objective `rlp`: thoughts are reinforced by how much likelier they make the next token.

At random positions a group of thoughts is sampled. The reward of a thought is its information gain:
log p of the true next token after the thought, less log p of it without a thought under a slow
average (EMA) of the weights. Advantages are relative to the group, and the policy gradient on the
thought's tokens is clipped as in PPO, so that a group can be learned from more than once. The
prediction itself gets no gradient, unless a weight asks for one. Within a group the EMA's term is
the same for every thought and cancels from the advantage: it decides what is reported and whether a
gain is one, and no step. Source: RLP, arXiv:2510.01265; clipping, arXiv:1707.06347.

Departures: leave-one-out means as in `quiet_star`, thoughts of a fixed length between trained
vectors, and the mixing weight fixed to 1, so that generate() predicts from the thought alone.

Shape letters: B rows, T tokens, P positions, N thoughts, L thought tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from agent_forge.core.seeds import seed_for, torch_generator
from agent_forge.learn import Batches, StepRecord, lm_loss
from agent_forge.models.thought import ThoughtForCausalLM, Thoughts, layout
from agent_forge.phases.quietstar import Config
from agent_forge.phases.quietstar.objective import (
    IGNORE,
    ThoughtLosses,
    advantages,
    clip_by_group,
    cross_entropy,
    draw_positions,
    outcome,
    targets_after,
)


def surrogate(
    log_probs: Tensor, behaviour: Tensor, advantage: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return the clipped surrogate loss, and the share of thought tokens that it holds back.

    log_probs, behaviour: (..., L) of the sampled tokens, now and when they were sampled.
    advantage: (...). The loss is a mean over thoughts and their tokens; neither behaviour nor
    advantage gets a gradient.
    """
    ratio = (log_probs - behaviour.detach()).exp()
    gain = advantage.detach()[..., None].expand_as(ratio)
    free, held = gain * ratio, gain * ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(free, held).mean(), (held < free).float().mean()


class Remembered(nn.Module):
    """Copies of a model's weights as buffers: what training saves and restores with the model.

    They are no parameters, so that no optimiser and no search for blocks finds them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, _ in model.named_parameters()]
        for number, (_, value) in enumerate(model.named_parameters()):
            self.register_buffer(f"copy_{number}", value.detach().clone())

    def weights(self) -> dict[str, Tensor]:
        """Return the copies by the parameters' names."""
        return {name: getattr(self, f"copy_{n}") for n, name in enumerate(self.names)}

    @torch.no_grad()
    def follow(self, model: nn.Module, decay: float) -> None:
        """Move every copy towards the model: copy <- decay * copy + (1 - decay) * weight."""
        now = dict(model.named_parameters())
        for name, copied in self.weights().items():
            copied.lerp_(now[name].detach().to(copied.dtype), 1 - decay)


class Thinking(nn.Module):
    """`think` as a forward pass, which functional_call can run with other weights."""

    def __init__(self, model: ThoughtForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, **settings: Any) -> Thoughts:
        """Return what `think` returns."""
        return self.model.think(input_ids, **settings)


def remember(model: ThoughtForCausalLM, updates: int) -> None:
    """Put the copies that the objective needs into the model, beside its weights.

    The EMA covers the base. The behaviour, of which thoughts are sampled, covers all weights, and
    is only kept where a group is learned from more than once.
    """
    copies: Any = model
    behaviour = Remembered(model) if updates > 1 else None
    copies.slow, copies.behaviour = Remembered(model.base), behaviour


def forget(model: ThoughtForCausalLM) -> None:
    """Take the copies out again."""
    del model.slow, model.behaviour


def predicts_from_thoughts_alone(model: ThoughtForCausalLM) -> None:
    """Fix the mixing weight to exactly 1; the head is not trained further."""
    with torch.no_grad():
        model.mixing.weight_3.zero_()
        model.mixing.bias_3.fill_(1.0)
    model.mixing.requires_grad_(False)


@dataclass(frozen=True)
class Repeated:
    """Batches that each come `times` steps in a row."""

    batches: Batches
    times: int

    @property
    def pure(self) -> bool:
        """Return whether worker processes may prepare the batches."""
        return bool(getattr(self.batches, "pure", False))

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step."""
        return self.batches.batch(step // self.times)

    def fingerprint(self) -> str:
        """Return what identifies the batches."""
        own: Any = getattr(self.batches, "fingerprint", str)
        return f"{own()} x {self.times}"


class Follow:
    """What happens between two steps: the EMA follows, and the behaviour is renewed on time."""

    def __init__(self, config: Config) -> None:
        self.decay, self.updates = config.rlp.ema_decay, config.rlp.updates

    def __call__(self, record: StepRecord, model: Any) -> dict[str, Any]:
        """Move the copies; return no controls."""
        model.slow.follow(model.base, self.decay)
        if model.behaviour is not None and (record.step + 1) % self.updates == 0:
            model.behaviour.follow(model, 0.0)
        return {}


class RlpLoss:
    """The loss function that learn.train calls. `remember` comes before it, `Follow` after."""

    def __init__(self, config: Config, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self.config, self.groups = config, groups

    def __call__(
        self, model: ThoughtForCausalLM, batch: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the loss, with its gradient clipped group by group, and the thoughts' metrics."""
        config, own, labels = self.config, self.config.rlp, batch["labels"]
        sampled, thoughts = self.thoughts(model, batch, step // own.updates)
        gain = information_gain(model, batch, sampled)
        rewards = gain.rewards()
        advantage = advantages(rewards, config.normalise_advantage)
        loss, held = surrogate(thoughts.log_probs, sampled.log_probs, advantage, own.clip)
        if own.thinking_weight:
            after = outcome(thoughts, labels, lookahead=1)
            share = after.counted[:, :, None].expand_as(after.mixed)
            mixed = (after.mixed * share).sum() / share.sum().clamp_min(1)
            loss = loss + own.thinking_weight * mixed
        if own.base_weight:
            loss = loss + own.base_weight * lm_loss(model, batch, step)[0]
        counted = gain.counted.sum().clamp_min(1) * config.thoughts
        metrics = {
            "reward_nats": rewards.sum() / counted,
            "helped": (rewards > 0).float().sum() / counted,
            "held_back": held,
        }
        return clip_by_group(loss, self.groups, config.group_clip_norm), metrics

    def thoughts(
        self, model: Any, batch: Mapping[str, Tensor], number: int
    ) -> tuple[Thoughts, Thoughts]:
        """Return the thoughts of group `number` as they were sampled, and the same ones as the
        present weights say them, with a gradient.
        """
        config = self.config
        generator = torch_generator(config.seed, "quietstar", "positions", number)
        settings: dict[str, Any] = {
            "positions": draw_positions(batch["labels"], config.positions, generator),
            "thoughts": config.thoughts,
            "temperature": config.temperature,
        }
        seed = seed_for(config.seed, "quietstar", "thoughts", number)
        if model.behaviour is None:
            now = model.think(batch["input_ids"], seed=seed, **settings)
            return now, now
        weights = {f"model.{key}": value for key, value in model.behaviour.weights().items()}
        with torch.no_grad():
            sampled = functional_call(
                Thinking(model), weights, (batch["input_ids"],), {"seed": seed, **settings}
            )
        return sampled, model.think(batch["input_ids"], tokens=sampled.tokens, **settings)


@torch.no_grad()
def information_gain(model: Any, batch: Mapping[str, Tensor], thoughts: Thoughts) -> ThoughtLosses:
    """Return the loss of each next token under the EMA without a thought, and after each thought.

    Its `rewards` are log p(next | thought) - log p_EMA(next), (B, P, N).
    """
    ids = batch["input_ids"]
    targets = targets_after(thoughts.positions, batch["labels"], 1)
    present = torch.ones_like(ids)
    inputs = {
        "input_ids": ids,
        "attention_mask": layout.additive(
            layout.prefix_mask(present), next(model.base.parameters()).dtype
        ),
        "position_ids": layout.token_positions(present),
        "use_cache": False,
    }
    logits = functional_call(model.base, model.slow.weights(), (), inputs).logits
    at = thoughts.positions[:, :, None].expand(-1, -1, logits.shape[-1])
    spread = targets[:, :, None].expand(*thoughts.weights.shape)
    return ThoughtLosses(
        base=cross_entropy(logits.gather(1, at)[:, :, None], targets),
        mixed=cross_entropy(thoughts.thought_logits, spread),
        counted=targets != IGNORE,
    )
