"""Persona without a judge: is a reply finished, on the topic, and free of repetition?

The score of a reply is the mean of its markers, each in [0, 1]: helpfulness (it ends by itself, and
uses a word of the topic), creativity (open prompts: the share of distinct word pairs) and precision
(exact prompts: the reply is the expected words, to the letter).
"""

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.seeds import numpy_generator
from agent_forge.data import split_of
from agent_forge.evaluate.engine import generate_replies
from agent_forge.evaluate.scores import of_weight_one
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TASK = Task(name="persona", version=2, metric="mean marker", higher_is_better=True, chance=0.0)
MAX_NEW_TOKENS = 40
TOPICS = (
    "river", "house", "garden", "winter", "people", "nation", "letter", "morning", "silver",
    "window", "harbor", "school", "farm", "market", "road", "army", "law", "bank", "ship", "forest",
    "city", "treaty", "judge", "bridge", "mail", "gold", "peace", "trade", "coast", "land",
    "vote", "union", "tax", "debt", "canal", "mine", "crop", "mill", "press", "court",
)  # fmt: skip
KINDS = (
    "old", "new", "great", "small", "common", "free", "public", "northern", "western", "first",
    "best", "lost",
)  # fmt: skip
OPEN = (
    "Tell me about the {}.",
    "What do you know about a {}?",
    "Say something about the {}.",
    "Help me with the {}.",
)
EXACT = ("Say {} and nothing else.", "Answer with two words: {}.")


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` prompts of the split: {"prompt", "topic", "exact", "cluster", "kind"}.

    `exact` is the expected reply, or "". Prompts on one topic form a cluster; open and exact
    prompts are two kinds.
    """
    prompts = []
    for topic in (f"{kind} {noun}" for kind in KINDS for noun in TOPICS):
        if split_of(f"persona/{topic}") == split:
            common = {"topic": topic, "cluster": topic}
            prompts += [
                {"prompt": form.format(topic), "exact": "", "kind": "open", **common}
                for form in OPEN
            ]
            prompts += [
                {"prompt": form.format(topic), "exact": topic, "kind": "exact", **common}
                for form in EXACT
            ]
    order = numpy_generator(context.seed, "evaluate", "persona", split).permutation(len(prompts))
    return [prompts[i] for i in order[:n]]


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): the mean marker of each reply, and weight 1."""
    questions = [[{"role": "user", "content": item["prompt"]}] for item in items]
    replies = generate_replies(model, tokenizer, questions, context.decoding(MAX_NEW_TOKENS))
    values = []
    for item, reply in zip(items, replies, strict=True):
        text = str(tokenizer.decode(reply, skip_special_tokens=True))
        values_by_marker = markers(
            text, item["topic"], item["exact"], ended=len(reply) < MAX_NEW_TOKENS
        )
        values.append(float(np.mean(list(values_by_marker.values()))))
    return of_weight_one(values)


def markers(text: str, topic: str, exact: str, *, ended: bool) -> dict[str, float]:
    """Return the markers of one reply.

    They are helpfulness, and creativity for open prompts or precision for exact ones.
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    on_topic = bool(set(topic.split()) & set(words))
    values = {"helpfulness": 0.5 * float(ended and bool(words)) + 0.5 * float(on_topic)}
    if exact:
        values["precision"] = float(ended and text.strip().rstrip(".") == exact)
    else:
        values["creativity"] = distinct_pairs(words)
    return values


def distinct_pairs(words: Sequence[str]) -> float:
    """Return the share of word pairs that are distinct (0 for fewer than two words)."""
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 0.0
