"""The training loss of Cognate: expected loss over its exits, a halting cost, costs of memory.

All tokens take all passes. With p_r the probability of leaving after pass r and CE_r the loss of
its logits, the loss of a token is

    sum_r p_r CE_r
    + halting_loss_weight (ponder_cost E[extra passes] / (R - 1) - entropy_cost H(p) / log R)

The halting terms are means over all tokens, whether their labels are trained or not, because a
question costs passes as an answer does. The entropy keeps p from collapsing before the passes
differ (Ouro, arXiv:2510.25741); the ponder cost is PonderNet's (arXiv:2107.05407) with a price per
pass. Memory adds a cost of uneven use of the bank and a cost of writing.

Where passes have a price, tokens leave early at inference, and tokens that go on see the states in
which the others left. Training imitates this: in pass r a token's keys and values come from
sum_{s<r} p_s x_s + P(not left) x, its expected state (the mean-field state of adaptive computation
time, Universal Transformers, arXiv:1807.03819). So a token that later ones need learns to stay,
even when its own prediction is done.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent_forge.anatomy.cross_entropy import logits_fit, token_losses, weighted_cross_entropy
from agent_forge.core.device import exact
from agent_forge.models.cognate.layers import CognateConfig
from agent_forge.models.cognate.memory import MemoryState, bank_imbalance


def expected_loss(
    model: Any,
    input_ids: Tensor,
    labels: Tensor,
    *,
    attention_mask: Tensor | None = None,
    memory: MemoryState | None = None,
    write_memory: bool = False,
    loops: int | None = None,
) -> tuple[Tensor, dict[str, Tensor], MemoryState | None]:
    """Return the training loss of a batch, its metrics, each (), and the memory after it.

    Nothing here makes the host wait for an accelerator.

    model: a CognateForCausalLM, whose file imports this one.
    input_ids, labels: (B, T), labels not shifted.
    loops: passes to take; None takes max_loops.

    Without any label the loss is only the cost of memory, so that a segment can serve just to be
    remembered.
    """
    config, stack = model.config, model.model
    targets = labels[:, 1:].flatten()
    trained = Tokens(targets != -100)
    targets = trained.of(targets).clamp(min=0)
    hidden, halts, middle = stack.all_passes(
        input_ids, attention_mask, memory, loops or config.max_loops, leaving=config.ponder_cost > 0
    )
    loss = hidden[-1].new_zeros(())
    metrics: dict[str, Tensor] = {}
    if len(targets):
        at = [trained.of(h[:, :-1].flatten(0, 1)) for h in hidden]
        # (R, n)
        exits = exit_probabilities([trained.of(h[:, :-1].flatten()) for h in halts], loss.device)
        loss, losses = _exit_losses(model.lm_head, at, exits, targets, trained)
        metrics = {"ce": trained.mean(losses[-1]).detach()}
        if halts:
            extra, halting = _halting_cost(config, halts, input_ids)
            loss = loss + config.halting_loss_weight * halting
            metrics |= {"ce_first": trained.mean(losses[0]).detach(), "passes": 1 + exact(extra)}
    if config.read_loss_weight > 0 and torch.is_grad_enabled():
        imbalance = bank_imbalance(stack.layers[-1].memory_attn, stack.memory, hidden[-1])
        loss = loss + config.read_loss_weight * imbalance
    if write_memory:
        memory, gate = model.write(hidden[-1], middle, input_ids, attention_mask, memory)
        loss = loss + config.write_loss_weight * gate
        metrics["write_gate"] = gate.detach()
    return loss, metrics, memory


class Tokens:
    """The tokens of a batch over which a mean is taken.

    On the CPU they are picked out. On an accelerator all tokens stay, with weights, because picking
    would make the host wait for the number of tokens.
    """

    def __init__(self, chosen: Tensor) -> None:
        """chosen: (n,) bool."""
        self.places = chosen.nonzero()[:, 0] if chosen.device.type == "cpu" else None
        self.shares = chosen.float() / chosen.sum().clamp(min=1) if self.places is None else None

    def of(self, values: Tensor) -> Tensor:
        """Return the values (n, ...) of the chosen tokens, or of all where they are weighed."""
        return values if self.places is None else values[self.places]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the chosen tokens of what was computed from `of`, (n,)."""
        return values.mean() if self.shares is None else (values * self.shares).sum()

    def weights(self, values: Tensor) -> Tensor:
        """Return values (..., n) times each token's weight in a mean."""
        return values / values.shape[-1] if self.shares is None else values * self.shares


def _halting_cost(
    config: CognateConfig, halts: list[Tensor], input_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return E[extra passes] and the halting cost (module docstring), means over real tokens."""
    pad = config.pad_token_id
    is_real = torch.ones_like(input_ids, dtype=torch.bool) if pad is None else input_ids.ne(pad)
    real = Tokens(is_real.flatten())
    exits = exit_probabilities([real.of(h.flatten()) for h in halts])
    extra = real.mean((exits * torch.arange(len(exits), device=exits.device)[:, None]).sum(0))
    entropy = -real.mean((exits * exits.clamp(min=1e-9).log()).sum(0))
    ponder = config.ponder_cost * extra / len(halts)
    return extra, ponder - config.entropy_cost * entropy / math.log(len(exits))


def _exit_losses(
    head: nn.Linear, at: list[Tensor], exits: Tensor, targets: Tensor, trained: Tokens
) -> tuple[Tensor, Tensor]:
    """Return the mean over trained tokens of sum_r exits_r CE_r, and all CE_r (R, n) for metrics.

    Small logits are computed as a whole, large ones chunk by chunk.

    at: R hidden states (n, d).
    exits: (R, n), or (1, 1) with one pass.
    """
    if logits_fit(len(targets), head.weight.shape[0]) or type(head) is not nn.Linear:
        losses = torch.stack([token_losses(h, head, targets) for h in at])
        return trained.mean((exits * losses).sum(0)), losses
    weights = trained.weights(exits.expand(len(at), len(targets)))
    pairs = [
        weighted_cross_entropy(h, head.weight, targets, w) for h, w in zip(at, weights, strict=True)
    ]
    return torch.stack([loss for loss, _ in pairs]).sum(), torch.stack([each for _, each in pairs])


def exit_probabilities(halts: list[Tensor], device: torch.device | None = None) -> Tensor:
    """Return the probability of leaving after each pass, (R, n), from R - 1 halting logits (n,).

    Columns sum to 1. A single pass has (1, 1), which is 1, for all tokens.

    device: where that single 1 is put.
    """
    if not halts:
        return torch.ones(1, 1, device=device)
    logits = torch.stack(halts)
    stay = F.logsigmoid(-logits).cumsum(0)
    before = F.pad(stay, (0, 0, 1, 0))[:-1]
    return torch.cat([F.logsigmoid(logits) + before, stay[-1:]]).exp()
