"""Cognate's memory: trainable static slots, slots written at test time, and top-k attention over both.

A token that surprises the model (high -log p) and resembles no slot yet is written into per-sequence slots when its
segment ends; later segments read them. The write gate enters reads as a log-bias, so it learns from what reads need.
Source: surprise-gated test-time memory of Titans, arXiv:2501.00663; here slots instead of a fast-weight network.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(slots=True)
class MemoryState:
    """Slots written so far, one set a sequence.

    slots: (batch, written, hidden); log_gate: (batch, written), -inf where a slot is empty; priority: (batch, written),
    the surprise-novelty score that the slot was written with, which later tokens must exceed to replace it.
    """

    slots: Tensor
    log_gate: Tensor
    priority: Tensor


@dataclass(slots=True)
class Readable:
    """Keys and values of all slots for one layer.

    keys, values: (static, hidden) of the bank. written_*: (batch, written, hidden), log_gate (batch, written), or None.
    """

    keys: Tensor
    values: Tensor
    written_keys: Tensor | None = None
    written_values: Tensor | None = None
    log_gate: Tensor | None = None


class MemoryBank(nn.Module):
    """The trainable slots, and the projections through which all slots are read and written."""

    def __init__(self, slots: int, hidden_size: int, written_slots: int, eps: float) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.empty(slots, hidden_size))
        self.norm = nn.RMSNorm(hidden_size, eps=eps)
        self.read_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.write_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.write_gate = nn.Linear(hidden_size, 1, bias=False)
        self.written_slots = written_slots

    def read(self, slots: Tensor) -> Tensor:
        """Return slots (..., hidden) as the layers see them."""
        return self.read_proj(self.norm(slots))

    def empty(self, rows: int) -> MemoryState:
        """Return a state with no written slot for `rows` sequences."""
        like = self.slots
        slots = like.new_zeros(rows, self.written_slots, like.shape[1])
        nothing = like.new_full((rows, self.written_slots), -torch.inf)
        return MemoryState(slots, nothing, nothing)

    def write(
        self,
        state: MemoryState,
        hidden: Tensor,
        surprise: Tensor,
        valid: Tensor,
        surprise_weight: float,
        novelty_weight: float,
    ) -> tuple[MemoryState, Tensor]:
        """Return the state after a segment, and the mean write gate of the tokens that were written (for its cost).

        hidden: (batch, time, hidden) of the segment; surprise: (batch, time), -log p of each token as a share of log
        vocabulary; valid: (batch, time) bool, False on padding. The `written_slots` candidates of highest priority
        stay, old ones included; their order in time is kept.
        """
        content = self.write_proj(self.norm(hidden))
        log_gate = F.logsigmoid(self.write_gate(self.norm(hidden))[..., 0])
        with torch.no_grad():
            priority = surprise_weight * surprise + novelty_weight * self._novelty(content, state)
            priority = priority.masked_fill(~valid, -torch.inf)
        merged = MemoryState(
            torch.cat([state.slots, content], 1),
            torch.cat([state.log_gate, log_gate], 1),
            torch.cat([state.priority, priority], 1),
        )
        keep = merged.priority.topk(self.written_slots, -1).indices.sort(-1).values
        priority = merged.priority.gather(1, keep)
        log_gate = merged.log_gate.gather(1, keep).masked_fill(priority == -torch.inf, -torch.inf)
        slots = merged.slots.gather(1, keep[..., None].expand(-1, -1, merged.slots.shape[-1]))
        full = priority > -torch.inf
        cost = (log_gate.exp() * full).sum() / full.sum().clamp(min=1)
        return MemoryState(slots, log_gate, priority), cost

    def _novelty(self, content: Tensor, state: MemoryState) -> Tensor:
        """Return 1 - the largest cosine with a trainable or written slot: (batch, time)."""
        content = F.normalize(content, dim=-1)
        nearest = (content @ F.normalize(self.slots, dim=-1).T).amax(-1)
        written = content @ F.normalize(state.slots, dim=-1).transpose(1, 2)
        written = written.masked_fill((state.priority == -torch.inf)[:, None], -1.0).amax(-1)
        return 1 - torch.maximum(nearest, written)


class MemoryAttention(nn.Module):
    """Each token reads its top-k static and top-k written slots with one head; a scalar gate scales what that adds."""

    def __init__(self, hidden_size: int, top_k: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size, eps=eps)
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.gate = nn.Parameter(torch.empty(1))
        self.top_k = top_k
        self.scale = hidden_size**-0.5

    def readable(self, bank: Tensor) -> Readable:
        """Return this layer's keys and values of the trainable slots, after `MemoryBank.read`."""
        return Readable(self.k_proj(bank), self.v_proj(bank))

    def with_written(self, bank: Readable, written: Tensor, log_gate: Tensor) -> Readable:
        """Return `bank` with written slots (batch, written, hidden) beside it, after `MemoryBank.read`."""
        return Readable(bank.keys, bank.values, self.k_proj(written), self.v_proj(written), log_gate)

    def forward(self, hidden: Tensor, memory: Readable) -> Tensor:
        """Return what (batch, time, hidden) reads: the same shape."""
        query = self.q_proj(self.norm(hidden)) * self.scale
        values = memory.values
        best, picked = (query @ memory.keys.T).topk(min(self.top_k, len(values)), -1)
        if memory.written_keys is not None and memory.written_values is not None and memory.log_gate is not None:
            # The best written slots always enter the softmax: a slot that no token could reach would never learn.
            scores = query @ memory.written_keys.transpose(1, 2) + memory.log_gate[:, None]
            rows, slots = scores.shape[0], scores.shape[-1]
            written_best, written_picked = scores.topk(min(self.top_k, slots), -1)
            shift = len(values) + torch.arange(rows, device=picked.device)[:, None, None] * slots
            best, picked = torch.cat([best, written_best], -1), torch.cat([picked, written_picked + shift], -1)
            values = torch.cat([values, memory.written_values.flatten(0, 1)])
        weights = best.softmax(-1)
        read = F.embedding_bag(
            picked.flatten(0, 1), values, per_sample_weights=weights.flatten(0, 1).to(values.dtype), mode="sum"
        )
        return self.o_proj(read.view_as(hidden)) * self.gate
