"""Keep a tool call only where it helps: L⁻ − L⁺ ≥ τ, in nats of the answer under the parent model.

L⁺ is the loss of the answer after call and result. L⁻ is the lesser of the losses without a call
and with a call that returned nothing. Token t of the answer weighs w_t = max(0, 1 − .2 t),
normalised. Source: Toolformer (arXiv:2302.04761).

The loss is the parent's, so a negative gain may come from a habit of the parent instead of the
call: a parent that has learned to repeat a calculator's whole response answers `gold chest: 36`
wrongly, and with more certainty than it guesses without a call.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from agent_forge.agent import format_response
from agent_forge.data import encode_prompt, turn_end
from agent_forge.data.chat import encode_content
from agent_forge.data.windows import begin_ids, fitting_prompt, positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

WEIGHT_FALL = 0.2  # a token of the answer weighs this much less than the one before it


def answer_weights(count: int) -> Tensor:
    """Return the normalised weights of `count` answer tokens: (count,) float32."""
    weights = (1.0 - WEIGHT_FALL * torch.arange(count, dtype=torch.float32)).clamp(min=0.0)
    return weights / weights.sum()


def trace_losses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    traces: Sequence[dict[str, Any]],
    batch_rows: int = 64,
) -> list[tuple[float, float, float]]:
    """Return the answer's loss (nats) in each trace (question, call, result, answer).

    The three losses are after call and result, without a call, and after a call that returned
    nothing.
    """
    variants: list[list[dict[str, str]]] = []
    for trace in traces:
        question, call, response = trace["messages"][:3]
        variants += [
            [question, call, response],
            [question],
            [question, call, {"role": "tool", "content": format_response("")}],
        ]
    answers = [trace["messages"][-1]["content"] for trace in traces for _ in range(3)]
    losses = answer_losses(model, tokenizer, variants, answers, batch_rows)
    return list(zip(losses[0::3], losses[1::3], losses[2::3], strict=True))


def gain(losses: tuple[float, float, float]) -> float:
    """Return L⁻ − L⁺ in nats: what the call saves over the better of no call and of a call that
    returned nothing.
    """
    plus, without, empty = losses
    return min(without, empty) - plus


@torch.no_grad()
def answer_losses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    conversations: Sequence[Sequence[dict[str, str]]],
    answers: Sequence[str],
    batch_rows: int = 64,
) -> list[float]:
    """Return the weighted loss (nats) of each answer as the assistant's next turn, end token
    included.
    """
    end = turn_end(tokenizer)
    limit, begin = positions(model.config), begin_ids(model.config)
    rows = []
    for messages, answer in zip(conversations, answers, strict=True):
        answer_ids = [*encode_content(tokenizer, "assistant", answer), *end]
        prompt = fitting_prompt(encode_prompt(tokenizer, messages), len(answer_ids), limit, begin)
        rows.append((prompt, answer_ids))
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    weighted_losses = [0.0] * len(rows)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_rows):
        batch = order[start : start + batch_rows]
        length = max(lengths[i] for i in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.int64)
        for k, i in enumerate(batch):
            whole = rows[i][0] + rows[i][1]
            ids[k, : len(whole)] = torch.tensor(whole)
        # Padding stands on the right, where a causal model's earlier positions cannot see it.
        logits = model(input_ids=ids.to(model.device)).logits
        for k, i in enumerate(batch):
            first, count = len(rows[i][0]), len(rows[i][1])
            losses = functional.cross_entropy(
                logits[k, first - 1 : first + count - 1].float().cpu(),
                ids[k, first : first + count],
                reduction="none",
            )
            weighted_losses[i] = float((losses * answer_weights(count)).sum())
    model.train(was_training)
    return weighted_losses


def keep(gains: Sequence[float], tau_nats: float, min_share: float) -> list[int]:
    """Return the indices whose gain is at least tau; where they are too few, the best ones up to
    `min_share` of all.
    """
    passing = [i for i, gain in enumerate(gains) if gain >= tau_nats]
    least = round(min_share * len(gains))
    if len(passing) >= least:
        return passing
    return sorted(sorted(range(len(gains)), key=lambda i: (-gains[i], i))[:least])
