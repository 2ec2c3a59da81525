"""Persona without a judge: is a reply finished, on the topic, and free of repetition?

Markers in [0, 1], averaged over a reply: helpfulness (it ends by itself and takes up a word of the question),
creativity (open prompts: share of distinct word pairs) and precision (exact prompts: the words asked for, to the
letter).
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
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TASK = Task(name="persona", version=2, metric="mean marker", higher_is_better=True, chance=0.0)
MAX_NEW_TOKENS = 40
TOPICS = (
    "river", "house", "garden", "winter", "people", "nation", "letter", "morning", "silver", "window",
    "harbor", "school", "farm", "market", "road", "army", "law", "bank", "ship", "forest",
    "city", "treaty", "judge", "bridge", "mail", "gold", "peace", "trade", "coast", "land",
    "vote", "union", "tax", "debt", "canal", "mine", "crop", "mill", "press", "court",
)  # fmt: skip
KINDS = ("old", "new", "great", "small", "common", "free", "public", "northern", "western", "first", "best", "lost")
OPEN = ("Tell me about the {}.", "What do you know about a {}?", "Say something about the {}.", "Help me with the {}.")
EXACT = ("Say {} and nothing else.", "Answer with two words: {}.")


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` prompts of the split: {"prompt", "topic", "exact", "cluster", "kind"}.

    `exact` is the reply asked for, or "". Prompts on one topic are a cluster; open and exact ones are two kinds.
    """
    found = []
    for topic in (f"{kind} {noun}" for kind in KINDS for noun in TOPICS):
        if split_of(f"persona/{topic}") == split:
            common = {"topic": topic, "cluster": topic}
            found += [{"prompt": form.format(topic), "exact": "", "kind": "open", **common} for form in OPEN]
            found += [{"prompt": form.format(topic), "exact": topic, "kind": "exact", **common} for form in EXACT]
    order = numpy_generator(context.seed, "evaluate", "persona", split).permutation(len(found))
    return [found[i] for i in order[:n]]


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): the mean marker of each reply, and weight 1."""
    questions = [[{"role": "user", "content": item["prompt"]}] for item in items]
    replies = generate_replies(model, tokenizer, questions, MAX_NEW_TOKENS, context)
    values = []
    for item, reply in zip(items, replies, strict=True):
        text = str(tokenizer.decode(reply, skip_special_tokens=True))
        found = markers(text, item["topic"], item["exact"], ended=len(reply) < MAX_NEW_TOKENS)
        values.append(float(np.mean(list(found.values()))))
    return np.stack([np.asarray(values), np.ones(len(items))], axis=1)


def markers(text: str, topic: str, exact: str, *, ended: bool) -> dict[str, float]:
    """Return the markers of one reply: helpfulness always, creativity for open prompts, precision for exact ones."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    on_topic = bool(set(topic.split()) & set(words))
    found = {"helpfulness": 0.5 * float(ended and bool(words)) + 0.5 * float(on_topic)}
    if exact:
        found["precision"] = float(ended and text.strip().rstrip(".") == exact)
    else:
        found["creativity"] = distinct_pairs(words)
    return found


def distinct_pairs(words: Sequence[str]) -> float:
    """Return the share of word pairs that are distinct (0 for fewer than two words)."""
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 0.0
