"""Set how likely a call has to be before a reply may begin as one: abstention by a threshold.

A model that was taught to call often calls where no tool fits, though it finds such a call less
likely. Reads a model and questions of the task `abstain` (of half of them no listed tool can
answer), one forward pass each; the probability of a call's first token decides. The bound that
makes the most decisions right is accepted when fresh questions show a gain beyond doubt. It ships
as `decoder.call_gate` in the manifest, and the agent's run time follows it. Source: the reject
option, Chow 1970, On optimum recognition error and reject tradeoff.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import evaluate
from agent_forge.core.seeds import seed_for
from agent_forge.data.chat import call_start, encode_prompt
from agent_forge.data.windows import begin_ids, cut_left, positions
from agent_forge.evaluate.engine import evaluating
from agent_forge.evaluate.tasks import abstain
from agent_forge.phases import PhaseRun
from agent_forge.phases.adas import Config

TASK = "abstain"
Array = NDArray[np.float64]


@torch.no_grad()
def call_shares(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Any]
) -> tuple[Array, int]:
    """Return (n, 2), of each question the probability of a call's first token and whether it is the
    likeliest (1 or 0), and the number of tokens that were read.
    """
    start, limit = call_start(tokenizer), positions(model.config)
    shares, tokens = [], 0
    with evaluating(model):
        for item in items:
            ids = encode_prompt(tokenizer, item["messages"][: item.get("prompt_turns")])
            ids = cut_left(ids, limit or len(ids), begin_ids(model.config))
            read = torch.tensor([ids], device=model.device)
            logits = model(input_ids=read, use_cache=False, logits_to_keep=1).logits[0, -1]
            share = float(logits.float().softmax(-1)[start])
            shares.append((share, float(int(logits.argmax()) == start)))
            tokens += len(ids)
    return np.asarray(shares, np.float64), tokens


def right_decisions(shares: Array, needs: Array, bound: float) -> Array:
    """Return (n,), 1 where a model that calls above `bound` decides rightly.

    shares: of `call_shares`. needs: (n,), 1 where a listed tool answers the question.
    """
    calls = (shares[:, 1] > 0) & (shares[:, 0] >= bound)
    return (calls == (needs > 0)).astype(np.float64)


def best_bound(shares: Array, needs: Array) -> float:
    """Return the bound with the most right decisions, the lowest of several; 0 where none is better
    than no bound. Bounds lie midway between neighbouring shares.
    """
    levels = np.unique(shares[shares[:, 1] > 0, 0])
    bounds = [0.0, *((levels[:-1] + levels[1:]) / 2)]
    right = [right_decisions(shares, needs, bound).sum() for bound in bounds]
    return round(float(bounds[int(np.argmax(right))]), 6)


def needs_of(items: Sequence[Any]) -> Array:
    """Return (n,), 1 where a listed tool answers the question."""
    return np.asarray([item["kind"] == abstain.FITS for item in items], np.float64)


def search_gate(phase: PhaseRun[Config], model: PreTrainedModel) -> dict[str, Any]:
    """Return {"settings", "rows", "tokens"}: the decoder's settings ({} where no bound is better
    beyond doubt), the report's table, and the forward tokens that the search took.
    """
    config, context = phase.config, phase.eval_context
    sizes = config.call_gate
    if not sizes.items:
        return {"settings": {}, "rows": [], "tokens": 0}
    items = evaluate.task_items(TASK, "search", sizes.items + sizes.final_items, context)
    shares, tokens = call_shares(model, phase.tokenizer, items)
    needs, first = needs_of(items), slice(sizes.items)
    bound = best_bound(shares[first], needs[first])
    rows = [_row("fitted on", items[first], shares[first], needs[first], bound)]
    settings: dict[str, Any] = {}
    fresh = slice(sizes.items, None)
    if bound > 0 and len(items) > sizes.items:
        before, after = (
            evaluate.scores_of(
                TASK, items[fresh], np.stack([right, np.ones(len(right))], 1), "search", config.seed
            )
            for right in (right_decisions(shares[fresh], needs[fresh], b) for b in (0.0, bound))
        )
        _, low = evaluate.paired_gain(
            before, after, samples=config.search.samples, confidence=config.search.confidence,
            seed=seed_for(config.seed, "adas", "call gate"),
        )  # fmt: skip
        row = _row("fresh", items[fresh], shares[fresh], needs[fresh], bound)
        rows.append(row | {"low": low, "accepted": low > 0})
        settings = {"decoder": {"call_gate": bound}} if low > 0 else {}
    return {"settings": settings, "rows": rows, "tokens": tokens}


def metrics(result: dict[str, Any]) -> dict[str, float]:
    """Return the accepted bound (0: none) and what its search cost; {} where none was sought."""
    bound = result["settings"].get("decoder", {}).get("call_gate", 0.0)
    return {"call_gate": bound, "call_gate_tokens": result["tokens"]} if result["rows"] else {}


def phrase(result: dict[str, Any]) -> str:
    """Return what a report's summary says of the search ("" where none was made)."""
    if not result["rows"]:
        return ""
    bound = result["settings"].get("decoder", {}).get("call_gate")
    return (
        "; no bound of calls is better" if bound is None else f"; calls begin from {bound:.3f} on"
    )


def _row(
    name: str, items: Sequence[Any], shares: Array, needs: Array, bound: float
) -> dict[str, Any]:
    before, after = (right_decisions(shares, needs, one).mean() for one in (0.0, bound))
    return {
        "questions": name, "n": len(items), "call_gate": bound, "right_before": float(before),
        "right_after": float(after),
    }  # fmt: skip
