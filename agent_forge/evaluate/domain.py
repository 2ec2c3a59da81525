"""Score models by domain of text: nats per token, and the likeliest token at each place.

An item is a piece of text {"text"}, of which every token is scored, or a conversation {"messages"},
of which the turns of the assistant are. Two models with one tokenizer are compared by their
perplexities and by how often their likeliest tokens are the same (`agreement`). Five tasks share
this form (prose, chat, mathematics, code, tool_calls); `conf/eval` gathers them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.checkpoint import Workspace
from agent_forge.config import suites
from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data import encode_chat, text_start
from agent_forge.evaluate.engine import (
    MaskedRow,
    evaluating,
    load_task,
    row_nll,
    row_tokens,
    scores_of,
    task_items,
)
from agent_forge.evaluate.judge import retention
from agent_forge.evaluate.scores import Array, Scores, bootstrap_interval
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DOMAINS = ("prose", "chat", "mathematics", "code", "tool_calls")
SUITE = "domains"  # conf/eval/domains.yaml, whose tasks are DOMAINS
TABLE = "perplexity by domain"
# The kinds of data of a mix that teach a domain under another name.
DOMAIN_OF = {
    "text": "prose", "reasoning": "mathematics", "tools": "tool_calls", "schemas": "tool_calls",
    "bfcl": "tool_calls",
}  # fmt: skip
HELD_OUT = ("validation", "search", "test")
# A model that guesses each token among 256 knows nothing of a domain that it could lose.
CHANCE_NATS = float(np.log(256))
Items = Sequence[Mapping[str, Any]]


def domain_task(name: str, version: int = 1) -> Task:
    """Return the facts of a domain's task."""
    return Task(
        name=name,
        version=version,
        metric="nats per token",
        higher_is_better=False,
        chance=CHANCE_NATS,
        by_default=False,
        logarithmic=True,
    )


def chosen(
    name: str, rows: Sequence[dict[str, Any]], n: int, split: str, context: EvalContext
) -> list[dict[str, Any]]:
    """Return up to `n` of a domain's rows in a random order that depends on the seed alone.

    Raises DataError for the train split: these texts are held out.
    """
    if split not in HELD_OUT:
        raise DataError(f"the {name} task has no {split} split; use one of {', '.join(HELD_OUT)}")
    order = numpy_generator(context.seed, "evaluate", name, split).permutation(len(rows))
    return [rows[i] for i in order[:n]]


def masked_rows(tokenizer: "PreTrainedTokenizerFast", items: Items) -> list[MaskedRow]:
    """Return (ids, mask of the scored tokens) of each item."""
    start = text_start(tokenizer)
    rows: list[MaskedRow] = []
    for item in items:
        if "messages" in item:
            rows.append(encode_chat(tokenizer, item["messages"]))
        else:
            ids = tokenizer.encode(item["text"], add_special_tokens=False)
            rows.append(([start, *ids], [False] + [True] * len(ids)))
    return rows


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Items,
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): the nats and the number of scored tokens of each item."""
    return row_nll(model, masked_rows(tokenizer, items), context.batch_tokens)


@dataclass(slots=True, kw_only=True)
class DomainScores:
    """A model's scores on one domain, and its likeliest token at every scored place.

    top: (tokens,) int64 of each item.
    """

    scores: Scores
    top: list[NDArray[np.int64]]


def domain_scores(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    name: str,
    split: str,
    n: int,
    context: EvalContext,
) -> DomainScores:
    """Return the scores and likeliest tokens of up to `n` items of a domain."""
    items = task_items(name, split, n, context)
    with evaluating(model):
        tokens = row_tokens(model, masked_rows(tokenizer, items), context.batch_tokens)
    pairs = np.asarray([[nats.sum(), len(nats)] for nats, _ in tokens], np.float64)
    scores = scores_of(name, items, pairs, split, context.seed)
    return DomainScores(scores=scores, top=[top for _, top in tokens])


def domains_remembered(
    name: str, model: "PreTrainedModel", items: int, context: EvalContext, out: Workspace
) -> dict[str, DomainScores]:
    """Return a model's scores on `items` validation items of each domain whose package is there,
    computed once under `name`, also across restarts.
    """
    tasks = suites.expanded([SUITE])[0] if items else []

    def measured() -> Any:
        scored = {
            task: domain_scores(model, context.tokenizer, task, "validation", items, context)
            for task in tasks
        }
        return {
            task: {"scores": one.scores.to_plain(), "top": [top.tolist() for top in one.top]}
            for task, one in scored.items()
        }

    return {
        task: DomainScores(
            scores=Scores.from_plain(plain["scores"]),
            top=[np.asarray(top, np.int64) for top in plain["top"]],
        )
        for task, plain in out.remember(f"domains-{name}", measured).items()
    }


def kept_by_domain(
    parent: Mapping[str, DomainScores],
    child: Mapping[str, DomainScores],
    trained_on: Collection[str],
    samples: int,
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the metrics `domain_<name>_kept` and `worst_domain_kept`, and a table row per domain.

    trained_on: kinds of data or domains of the calibration or training, to tell a domain that it
    held from one that it did not. A domain on which the parent is at chance is not the worst.
    """
    known = {DOMAIN_OF.get(kind, kind) for kind in trained_on}
    metrics: dict[str, Any] = {}
    rows = []
    for name, before in parent.items():
        after = child[name]
        row = retention(name, before.scores, after.scores, samples, seed)
        same = agreement(before, after, seed)
        at_chance = not before.scores.above_chance
        metrics[f"domain_{name}_kept"] = {**row.as_metric(), "at_chance": at_chance}
        rows.append({
            "domain": name, "in the calibration": name in known,
            "parent's perplexity": round(perplexity(before.scores)[0], 2),
            "child's perplexity": round(perplexity(after.scores)[0], 2),
            "kept": round(row.ratio, 4), "at least": round(row.low, 4),
            "same token": round(same["value"], 4), "same token at least": round(same["low"], 4),
            "n": row.n, "at chance": at_chance,
        })  # fmt: skip
    gated = [one for one in metrics.values() if not one["at_chance"]]
    if gated:
        metrics["worst_domain_kept"] = min(gated, key=lambda one: float(one["value"]))
    return metrics, rows


def kept_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what is kept of each domain as one phrase, with the domains that were not in the
    calibration named so.
    """
    parts = []
    for row in rows:
        notes = [] if row["in the calibration"] else ["not in the calibration"]
        notes += ["at chance"] if row["at chance"] else []
        noted = f" ({', '.join(notes)})" if notes else ""
        parts.append(f"{row['domain']} {row['kept']:.3f}{noted}")
    return ", ".join(parts)


def agreement(parent: DomainScores, child: DomainScores, seed: int) -> dict[str, Any]:
    """Return {"value", "low", "high", "n"}: the share of places at which both models find the same
    token likeliest, with its 95% interval over whole clusters.

    n: scored tokens. Raises DataError when the two do not have the same places.
    """
    if [len(top) for top in parent.top] != [len(top) for top in child.top]:
        raise DataError(
            f"{parent.scores.task}: the two models cut the text into other tokens, so their "
            "likeliest tokens cannot be compared; compare models with one tokenizer"
        )
    pairs = zip(parent.top, child.top, strict=True)
    same = np.asarray([float((one == other).sum()) for one, other in pairs])
    counts = np.asarray([float(len(top)) for top in parent.top])
    low, high = bootstrap_interval(
        same,
        counts,
        seed=seed_for(seed, "agreement", parent.scores.task),
        clusters=parent.scores.clusters,
    )
    return {
        "value": float(same.sum() / counts.sum()),
        "low": low,
        "high": high,
        "n": int(counts.sum()),
    }


def is_domain(name: str) -> bool:
    """Return whether a task scores tokens of a domain."""
    return bool(load_task(name).TASK.logarithmic)


def perplexity(scores: Scores) -> tuple[float, float, float]:
    """Return exp of a domain's nats per token, and of its interval's ends."""
    values: Array = np.exp(np.asarray([scores.mean, *scores.interval], np.float64))
    return float(values[0]), float(values[1]), float(values[2])
