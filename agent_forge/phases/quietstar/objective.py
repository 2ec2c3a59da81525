"""The Quiet-STaR loss: base cross-entropy, mixed cross-entropy, and REINFORCE with a leave-one-out
baseline.

Departures from the reference code: advantages are never clamped (that would teach one of two
thoughts only), and each group of parameters is clipped on its own, so that the policy gradient of
the base cannot starve the mixing head. Source: arXiv:2403.09629.

Shape letters: B rows, T tokens, P positions, N thoughts, L thought tokens, A predicted tokens, V
vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent_forge.core.device import sent
from agent_forge.core.seeds import seed_for, torch_generator
from agent_forge.learn import lm_loss
from agent_forge.models.thought import ThoughtForCausalLM, Thoughts
from agent_forge.phases.quietstar import Config

IGNORE = -100


@dataclass(slots=True)
class ThoughtLosses:
    """What the thoughts did to the loss of the tokens after them, in nats."""

    base: Tensor  # (B, P, A) cross-entropy without thinking
    mixed: Tensor  # (B, P, N, A) after thinking
    counted: Tensor  # (B, P, A) bool: the token counts

    def rewards(self) -> Tensor:
        """Return how much each thought lowered the loss of the tokens after it.

        (B, P, N), without a gradient.
        """
        # Positive where thinking helped. Every thought is compared with the same unthinking base.
        gain = (self.base[:, :, None] - self.mixed) * self.counted[:, :, None]
        return gain.sum(-1).detach()


def outcome(thoughts: Thoughts, labels: Tensor, lookahead: int) -> ThoughtLosses:
    """Return the losses of the tokens after each thinking position.

    labels: (B, T), not shifted; -100 is ignored.
    """
    targets = targets_after(thoughts.positions, labels, lookahead)
    mixed = thoughts.mixed_logits()
    spread = targets[:, :, None].expand(mixed.shape[:-1])
    return ThoughtLosses(
        base=cross_entropy(thoughts.base_logits, targets),
        mixed=cross_entropy(mixed, spread),
        counted=targets != IGNORE,
    )


def targets_after(positions: Tensor, labels: Tensor, lookahead: int) -> Tensor:
    """Return the labels of the tokens after each position (B, P): (B, P, A), -100 past the end."""
    columns = positions[:, :, None] + 1 + torch.arange(lookahead, device=labels.device)
    # Columns past the window repeat the last token for a fixed shape, and do not count.
    inside = columns < labels.shape[1]
    targets = labels.gather(1, columns.clamp_max(labels.shape[1] - 1).flatten(1)).reshape(
        columns.shape
    )
    return targets.masked_fill(~inside, IGNORE)


def advantages(rewards: Tensor, normalise: bool) -> Tensor:
    """Return the leave-one-out advantages (..., N) of rewards (..., N).

    normalise: whether they are divided by their root mean square.
    """
    advantage = leave_one_out(rewards)
    if normalise:
        advantage = advantage / (advantage.square().mean().sqrt() + 1e-6)
    return advantage


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return each thought's reward less the mean reward of the other thoughts at its position.

    rewards: (..., N) with N >= 2; so is the result.
    """
    # r_i - mean of the others = (r_i - mean of all) * N / (N - 1).
    count = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * (count / (count - 1))


def policy_loss(log_probs: Tensor, advantage: Tensor) -> Tensor:
    """Return the REINFORCE loss, a mean over thoughts.

    log_probs: (..., L) of the sampled tokens; advantage: (...), which gets no gradient.
    """
    return -(advantage.detach() * log_probs.sum(-1)).mean()


def draw_positions(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` random columns per row whose next token is trained: (B, P), ascending.

    A row with fewer such columns is filled up with others; their loss does not count.
    """
    # Ranks of trained columns are at least 1 and all others are below, so topk takes those first.
    rank = sent(
        torch.rand(labels.shape[0], labels.shape[1] - 1, generator=generator), labels.device
    )
    rank = rank + (labels[:, 1:] != IGNORE)
    return rank.topk(count, dim=1).indices.sort(dim=1).values


class QuietStarLoss:
    """The loss function that learn.train calls.

    One step thinks at `config.positions` places per window.
    """

    def __init__(self, config: Config, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self.config, self.groups = config, groups

    def __call__(
        self, model: ThoughtForCausalLM, batch: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the loss in nats, with its gradient clipped group by group, and the metrics of the
        thoughts.
        """
        config, labels = self.config, batch["labels"]
        generator = torch_generator(config.seed, "quietstar", "positions", step)
        thoughts = model.think(
            batch["input_ids"],
            positions=draw_positions(labels, config.positions, generator),
            thoughts=config.thoughts,
            lookahead=config.lookahead,
            temperature=config.temperature,
            seed=seed_for(config.seed, "quietstar", "thoughts", step),
        )
        result = outcome(thoughts, labels, config.lookahead)
        share = result.counted[:, :, None].expand_as(result.mixed)
        mixed = (result.mixed * share).sum() / share.sum().clamp_min(1)
        rewards = result.rewards()
        # The reward is not differentiable through sampling, hence the policy gradient beside the
        # loss itself.
        policy = policy_loss(thoughts.log_probs, advantages(rewards, config.normalise_advantage))
        loss = config.mixed_weight * mixed + config.policy_weight * policy
        if config.base_weight:
            base, _ = lm_loss(model, batch, step)
            loss = loss + config.base_weight * base
        metrics = {
            "mixed_nats": mixed.detach(),
            "reward_nats": (rewards.sum() / share[..., 0].sum().clamp_min(1)).detach(),
            "helped": (rewards > 0).float().mean(),
            "weight": thoughts.weights.mean().detach(),
        }
        return clip_by_group(loss, self.groups, config.group_clip_norm), metrics


def clip_by_group(loss: Tensor, groups: Sequence[Sequence[nn.Parameter]], limit: float) -> Tensor:
    """Return a loss of the same value whose gradient has at most the norm `limit` in each group.

    A limit of 0 changes nothing.

    The training loop clips all parameters together, which would let the largest group decide the
    step of the others. So the gradient is taken here, scaled per group, and handed on as the linear
    function that has it.
    """
    if limit <= 0:
        return loss
    linear = torch.zeros((), dtype=loss.dtype, device=loss.device)
    flat = [parameter for group in groups for parameter in group]
    gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    for group in groups:
        own = [(p, g) for p, g in zip(group, gradients, strict=False) if g is not None]
        if not own:
            continue
        norm = torch.nn.utils.get_total_norm([g for _, g in own])
        scale = (limit / (norm + 1e-12)).clamp_max(1.0)
        for parameter, gradient in own:
            linear = linear + (parameter * (gradient * scale)).sum()
    return loss.detach() + (linear - linear.detach())


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy (...) of logits (..., V), 0 where the target is -100."""
    losses = functional.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), reduction="none", ignore_index=IGNORE
    )
    return losses.reshape(targets.shape)
