"""Cognate's memory: trainable slots, slots written at test time, and top-k attention over both.

A token that surprises the model (high -log p) and does not resemble a slot is written into
per-sequence slots when its segment ends; later segments read them. Source: surprise-gated test-time
memory of Titans, arXiv:2501.00663; here slots instead of a fast-weight network. Four choices make
slots easy to find and writing learnable:

- A written slot is a pair: its key is the stream of the token *before* the written one, its value
  the stream of the written token, both half way up the stack. A later context that resembles the
  key reads the token that followed it (as in kNN language models, arXiv:1911.00172).
- The projections of reading and writing start as the identity (similar to mimetic initialisation,
  arXiv:2305.09828), so that contexts find similar ones before anything is learned. With random
  projections the reads are noise, and the layers' gates close for good before they become useful.
- Keys are normed, values are not. A static slot starts small, and reading it changes little,
  whereas normed noise would also teach the gates to close.
- The write gate enters reads as a log-bias, so it learns from what reads need. It also scales the
  priority of a write, so a surprising token that no read uses does not replace one that reads use.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(slots=True)
class MemoryState:
    """Slots written so far, one set per sequence.

    keys, values: (batch, written, hidden).
    log_gate: (batch, written), -inf where a slot is empty.
    priority: (batch, written), the gated score of surprise and novelty with which the slot was
    written; later tokens must exceed it to replace the slot.
    """

    keys: Tensor
    values: Tensor
    log_gate: Tensor
    priority: Tensor


@dataclass(slots=True)
class Readable:
    """Keys and values of all slots for one layer.

    keys, values: (static, hidden) of the bank.
    written_keys, written_values: (batch, written, hidden), or None.
    log_gate: (batch, written), or None.
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

    def read(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of slots, each (..., hidden), as the layers see them."""
        return self.read_proj(self.norm(keys)), self.read_proj(values)

    def empty(self, rows: int) -> MemoryState:
        """Return a state with no written slot for `rows` sequences."""
        like = self.slots
        slots = like.new_zeros(rows, self.written_slots, like.shape[1])
        nothing = like.new_full((rows, self.written_slots), -torch.inf)
        return MemoryState(slots, slots, nothing, nothing)

    def write(
        self,
        state: MemoryState,
        stream: Tensor,
        surprise: Tensor,
        valid: Tensor,
        surprise_weight: float,
        novelty_weight: float,
    ) -> tuple[MemoryState, Tensor]:
        """Return the state after a segment, and the mean write gate of its slots, which has a cost.

        stream: (batch, time, hidden) of the segment half way up the stack.
        surprise: (batch, time), -log p of each token as a share of log vocabulary.
        valid: (batch, time) bool, False on padding.

        The first token is never written, because the key is the token before. The `written_slots`
        candidates of highest priority stay, old ones included, in their order in time.
        """
        normed = self.norm(stream)
        content = self.write_proj(normed)
        log_gate = F.logsigmoid(self.write_gate(normed)[:, 1:, 0])
        with torch.no_grad():
            score = surprise_weight * surprise[:, 1:] + novelty_weight * self._novelty(
                content[:, 1:], state
            )
            priority = (log_gate.exp() * score).masked_fill(
                ~(valid[:, 1:] & valid[:, :-1]), -torch.inf
            )
        merged = MemoryState(
            torch.cat([state.keys, content[:, :-1]], 1),
            torch.cat([state.values, content[:, 1:]], 1),
            torch.cat([state.log_gate, log_gate], 1),
            torch.cat([state.priority, priority], 1),
        )
        keep = merged.priority.topk(self.written_slots, -1).indices.sort(-1).values
        wide = keep[..., None].expand(-1, -1, content.shape[-1])
        priority = merged.priority.gather(1, keep)
        log_gate = merged.log_gate.gather(1, keep).masked_fill(priority == -torch.inf, -torch.inf)
        full = priority > -torch.inf
        cost = (log_gate.exp() * full).sum() / full.sum().clamp(min=1)
        return MemoryState(
            merged.keys.gather(1, wide), merged.values.gather(1, wide), log_gate, priority
        ), cost

    def _novelty(self, content: Tensor, state: MemoryState) -> Tensor:
        """Return 1 - (the largest cosine with a trainable or written slot), (batch, time)."""
        content = F.normalize(content, dim=-1)
        nearest = (content @ F.normalize(self.slots, dim=-1).T).amax(-1)
        written = content @ F.normalize(state.values, dim=-1).transpose(1, 2)
        written = written.masked_fill((state.priority == -torch.inf)[:, None], -1.0).amax(-1)
        return 1 - torch.maximum(nearest, written)


class MemoryAttention(nn.Module):
    """Each token reads its top-k static and top-k written slots with one head and a scalar gate."""

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

    def readable(self, bank: tuple[Tensor, Tensor]) -> Readable:
        """Return this layer's keys and values of the trainable slots, after `MemoryBank.read`."""
        keys, values = bank
        return Readable(self.k_proj(keys), self.v_proj(values))

    def with_written(
        self, bank: Readable, written: tuple[Tensor, Tensor], log_gate: Tensor
    ) -> Readable:
        """Return `bank` with written slots (batch, written, hidden) of `MemoryBank.read`."""
        keys, values = written
        return Readable(bank.keys, bank.values, self.k_proj(keys), self.v_proj(values), log_gate)

    def forward(self, hidden: Tensor, memory: Readable) -> Tensor:
        """Return the reads of hidden (batch, time, hidden), in the same shape."""
        query = self.q_proj(self.norm(hidden)) * self.scale
        values = memory.values
        best, picked = (query @ memory.keys.T).topk(min(self.top_k, len(values)), -1)
        if (
            memory.written_keys is not None
            and memory.written_values is not None
            and memory.log_gate is not None
        ):
            # The best written slots always enter the softmax, because a slot that no token reads
            # would not learn.
            scores = query @ memory.written_keys.transpose(1, 2) + memory.log_gate[:, None]
            rows, slots = scores.shape[0], scores.shape[-1]
            written_best, written_picked = scores.topk(min(self.top_k, slots), -1)
            shift = len(values) + torch.arange(rows, device=picked.device)[:, None, None] * slots
            best, picked = (
                torch.cat([best, written_best], -1),
                torch.cat([picked, written_picked + shift], -1),
            )
            values = torch.cat([values, memory.written_values.flatten(0, 1)])
        weights = best.softmax(-1)
        read = F.embedding_bag(
            picked.flatten(0, 1),
            values,
            per_sample_weights=weights.flatten(0, 1).to(values.dtype),
            mode="sum",
        )
        return self.o_proj(read.view_as(hidden)) * self.gate


def bank_imbalance(attention: MemoryAttention, bank: MemoryBank, hidden: Tensor) -> Tensor:
    """Return S sum_s (share of reads)_s (mean attention)_s - 1 over the S trainable slots.

    It is 0 when their use is even (the load-balancing loss of mixtures of experts), and is taken in
    the last layer, where the reads decide the output.

    hidden: (batch, time, hidden).
    """
    keys = attention.k_proj(bank.read(bank.slots, bank.slots)[0])
    scores = attention.q_proj(attention.norm(hidden[:, ::8])) * attention.scale @ keys.T
    attended = scores.softmax(-1).flatten(0, -2)
    picked = scores.detach().topk(min(attention.top_k, keys.shape[0]), -1).indices.flatten(0, -2)
    # bincount would make the host wait for the largest index.
    share = (
        torch.zeros_like(attended, dtype=torch.float32).scatter_(1, picked, 1.0).sum(0)
        / picked.numel()
    )
    return keys.shape[0] * (share * attended.mean(0)).sum() - 1
