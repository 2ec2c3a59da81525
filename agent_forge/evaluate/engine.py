"""The scorer: batched log-likelihood, choice scoring, generation with exact match.

Rows are sorted by length so that a batch pads little; only masked positions reach the softmax.
Reads a model in memory and items of a split; writes nothing.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_forge.core import registry
from agent_forge.core.device import free_bytes
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.core.seeds import seed_for
from agent_forge.data.windows import begin_ids, positions, scoring_windows
from agent_forge.evaluate.scores import (
    Array,
    Scores,
    bootstrap_interval,
    cluster_numbers,
    of_weight_one,
    split_hash,
)
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from agent_forge.models.sampling import Decoding, TokenMask

TASKS = "agent_forge.evaluate.tasks"
# On the CPU the logits of a batch hold at most this many numbers (256 MB in float32), so large
# vocabularies get smaller batches.
MAX_LOGITS = 64_000_000
CPU_TOKENS, ACCELERATOR_TOKENS = 4096, 65536  # tokens per batch where the caller sets no limit
# On an accelerator, logits take at most this share of free memory. Each is held four times: as the
# model returns it, picked, in float32, and as log-softmax.
LOGITS_SHARE, LOGIT_BYTES = 0.5, 16
MaskedRow = tuple[Sequence[int], Sequence[bool]]
_log = logging.getLogger("agent_forge")
# (device, vocabulary, batch_tokens) whose limit has been logged
_logged_limits: set[tuple[str, int, int]] = set()


def load_task(name: str) -> ModuleType:
    """Return a task's module. Raises ConfigError naming the nearest known task."""
    return registry.load(TASKS, name, "evaluation task")


def task_items(name: str, split: str, n: int, context: EvalContext) -> list[Any]:
    """Return `n` distinct items of a split; a warning says so where the task has fewer.

    Two items are the same when their "canonical" entries are; items without one, when they are
    equal. Raises DataError when the split has no items.
    """
    if n < 1:
        raise ConfigError(f"items must be at least 1, got {n}")
    items = distinct(load_task(name).items(split, n, context))
    if not items:
        raise DataError(f"task '{name}' has no item in the {split} split")
    if len(items) < n:
        _log.warning(
            "task '%s' has %d distinct items in the %s split, not %d", name, len(items), split, n
        )
    return items


def distinct(items: Sequence[Any]) -> list[Any]:
    """Return the items without those that repeat an earlier one, in their order."""
    first: dict[str, Any] = {}
    for item in items:
        first.setdefault(canonical_form(item), item)
    return list(first.values())


def canonical_form(item: Any) -> str:
    """Return the text that identifies an item: its "canonical" entry, or all of it as JSON."""
    if isinstance(item, Mapping) and "canonical" in item:
        return str(item["canonical"])
    return json.dumps(item, sort_keys=True, ensure_ascii=False, default=str)


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    task_names: Sequence[str],
    split: str,
    n: int,
    context: EvalContext,
) -> dict[str, Scores]:
    """Return each task's Scores on `n` items of `split`."""
    return {
        name: score_items(
            model, tokenizer, name, task_items(name, split, n, context), split, context
        )
        for name in task_names
    }


def score_items(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    name: str,
    items: Sequence[Any],
    split: str,
    context: EvalContext,
) -> Scores:
    """Return the Scores of `items`; search calls this to race candidates on shared items."""
    return scores_of(
        name, items, item_pairs(model, tokenizer, name, items, context), split, context.seed
    )


def item_pairs(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    name: str,
    items: Sequence[Any],
    context: EvalContext,
) -> Array:
    """Return (n, 2) float64: the numerator and denominator of each item.

    Raises DataError when the task returns another shape.
    """
    with evaluating(model):
        pairs = np.asarray(
            load_task(name).score(model, tokenizer, items, context), dtype=np.float64
        )
    if pairs.shape != (len(items), 2):
        raise DataError(f"task '{name}' scored {pairs.shape}, expected ({len(items)}, 2)")
    return pairs


def scores_of(name: str, items: Sequence[Any], pairs: Array, split: str, seed: int) -> Scores:
    """Return the Scores that `pairs` (n, 2) of `items` make.

    Raises DataError when nothing was scored.
    """
    task: Task = load_task(name).TASK
    values, weights = pairs[:, 0], pairs[:, 1]
    if not weights.sum() > 0:
        raise DataError(
            f"task '{name}' scored nothing on these {len(items)} items; use more or longer ones"
        )
    clusters, kinds = _labels(items, "cluster"), _labels(items, "kind")
    numbers = (
        cluster_numbers([name or f"item {place}" for place, name in enumerate(clusters)])
        if any(clusters)
        else []
    )
    interval = bootstrap_interval(
        values, weights, seed=seed_for(seed, "evaluate", name), clusters=numbers
    )
    return Scores(
        task=task.name, version=task.version, metric=task.metric,
        higher_is_better=task.higher_is_better, chance=task.chance, split=split,
        items_hash=split_hash(items), mean=float(values.sum() / weights.sum()),
        interval=interval, values=values.tolist(), weights=weights.tolist(), clusters=numbers,
        kinds=kinds if any(kinds) else [], logarithmic=task.logarithmic,
    )  # fmt: skip


def _labels(items: Sequence[Any], key: str) -> list[str]:
    """Return each item's entry under `key` ("cluster" or "kind"), or "" where it has none."""
    return [str(item.get(key, "")) if isinstance(item, Mapping) else "" for item in items]


@contextlib.contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Switch to evaluation mode without gradients; the model's own mode returns afterwards."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def row_nll(model: "PreTrainedModel", rows: Sequence[MaskedRow], batch_tokens: int = 0) -> Array:
    """Return (n, 2) float64: the sum of -log p (nats) over the masked tokens, and their number.

    rows: (ids, mask) each; where mask[i] is True, token i is scored given the tokens before it.
    batch_tokens: the most tokens in one forward pass; 0 means 4,096 on the CPU, and as many as fill
    an accelerator.

    A row longer than the model's positions is scored in windows that overlap by half
    (`data.windows.scoring_windows`). Raises DataError when token 0, which nothing precedes, is to
    be scored.
    """
    parts = _numbered_windows(model, rows)
    result = np.zeros((len(rows), 2))
    np.add.at(
        result, [i for i, _ in parts], _window_nll(model, [part for _, part in parts], batch_tokens)
    )
    return result


def row_tokens(
    model: "PreTrainedModel", rows: Sequence[MaskedRow], batch_tokens: int = 0
) -> "list[tuple[Array, NDArray[np.int64]]]":
    """Return for each row the nats of its scored tokens, (t,) float64, and the likeliest token at
    their places, (t,) int64.

    Rows, batches and errors are as for `row_nll`.
    """
    parts = _numbered_windows(model, rows)
    scored: list[list[tuple[int, Array, NDArray[np.int64]]]] = [[] for _ in rows]
    windows = [part for _, part in parts]
    for chosen, places, logits, targets in _window_logits(model, windows, batch_tokens):
        # Everything is fetched at once: each fetch makes the host wait for the accelerator.
        nats, top = _nats(logits, targets).cpu().numpy(), logits.argmax(-1).cpu().numpy()
        owners = places.cpu().numpy()
        for place, window in enumerate(chosen):
            own = owners == place
            scored[parts[window][0]].append((window, nats[own], top[own]))
    return [
        (
            np.concatenate([nats for _, nats, _ in sorted(pieces, key=lambda one: one[0])]),
            np.concatenate([top for _, _, top in sorted(pieces, key=lambda one: one[0])]),
        )
        for pieces in scored
    ]


def _numbered_windows(
    model: "PreTrainedModel", rows: Sequence[MaskedRow]
) -> list[tuple[int, MaskedRow]]:
    """Return (row, window) of all rows, cut as the model's positions and its BOS ask for."""
    limit, begin = positions(model.config), begin_ids(model.config)
    return [
        (i, part)
        for i, (ids, mask) in enumerate(rows)
        for part in scoring_windows(ids, mask, limit, begin)
    ]


def _window_nll(model: "PreTrainedModel", rows: Sequence[MaskedRow], batch_tokens: int) -> Array:
    """Return what `row_nll` returns, for rows that fit the model's positions."""
    import torch

    result = np.zeros((len(rows), 2))
    for chosen, places, logits, targets in _window_logits(model, rows, batch_tokens):
        losses = _nats(logits, targets)
        sums = torch.zeros(len(chosen), dtype=torch.float64, device=losses.device).index_add_(
            0, places, losses
        )
        result[chosen, 0] = sums.cpu().numpy()
        result[chosen, 1] = [sum(map(bool, rows[i][1])) for i in chosen]
    return result


def _nats(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Return -log p of each target: (tokens,) float64. logits: (tokens, vocab)."""
    from torch.nn import functional

    return functional.cross_entropy(logits.float(), targets, reduction="none").double()


def _window_logits(
    model: "PreTrainedModel", rows: Sequence[MaskedRow], batch_tokens: int
) -> "Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]":
    """Yield for each batch the numbers of its rows, and of every scored token its place in the
    batch (tokens,), its logits (tokens, vocab) and the token itself (tokens,).

    Raises DataError when token 0, which nothing precedes, is to be scored.
    """
    import torch

    device = model.device
    with evaluating(model):
        for chosen in batches_by_length(
            [len(ids) for ids, _ in rows], _token_limit(model, batch_tokens)
        ):
            length = max(len(rows[i][0]) for i in chosen)
            ids = torch.zeros(len(chosen), length, dtype=torch.long)
            present = torch.zeros(len(chosen), length, dtype=torch.long)
            mask = torch.zeros(len(chosen), length, dtype=torch.bool)
            for place, i in enumerate(chosen):
                size = len(rows[i][0])
                ids[place, :size] = torch.as_tensor(list(rows[i][0]))
                mask[place, :size] = torch.as_tensor(list(rows[i][1]), dtype=torch.bool)
                present[place, :size] = 1
            if bool(mask[:, 0].any()):
                raise DataError(
                    "the first token of a row has nothing before it and cannot be scored; "
                    "put one in front"
                )
            # Without a mask the model takes its fast causal attention, and most batches need none.
            padded = not bool(present.all())
            logits = model(
                input_ids=ids.to(device),
                attention_mask=present.to(device) if padded else None,
                use_cache=False,
            ).logits
            scored = mask[:, 1:].to(device)
            yield (
                chosen,
                scored.nonzero()[:, 0],
                logits[:, :-1][scored],
                ids[:, 1:].to(device)[scored],
            )


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return row numbers in batches of similar length.

    With its padding, a batch holds at most `batch_tokens` tokens, or a single row.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _token_limit(model: "PreTrainedModel", batch_tokens: int) -> int:
    """Return the most tokens per batch: `batch_tokens`, or less where its logits would not fit."""
    vocabulary = (
        getattr(model.config, "vocab_size", None) or model.get_output_embeddings().weight.shape[0]
    )
    limit, why = _limit(free_bytes(model.device), int(vocabulary), batch_tokens)
    place = (str(model.device), int(vocabulary), batch_tokens)
    if model.device.type != "cpu" and place not in _logged_limits:
        _logged_limits.add(place)
        _log.info(
            "evaluation on %s: up to %s tokens in a pass (%s)", model.device, f"{limit:,}", why
        )
    return limit


def _limit(free: int, vocabulary: int, batch_tokens: int) -> tuple[int, str]:
    """Return the most tokens of a batch and the reason for the limit.

    free: bytes of free memory; 0 where the device does not tell.
    """
    logits, tokens = MAX_LOGITS, CPU_TOKENS
    if free:
        logits, tokens = int(LOGITS_SHARE * free / LOGIT_BYTES), ACCELERATOR_TOKENS
    memory = max(logits // vocabulary, 1)
    if memory < (batch_tokens or tokens):
        room = f" in {free / 1e9:.1f} GB of free memory" if free else ""
        return memory, f"logits of {vocabulary:,} entries per token{room}"
    if batch_tokens:
        return batch_tokens, "as set"
    return tokens, "which fills it" if free else "as on the CPU: its free memory cannot be asked"


def choice_log_likelihood(
    model: "PreTrainedModel",
    questions: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    batch_tokens: int = 0,
) -> list[list[float]]:
    """Return the log-likelihood (nats) of each choice after its prompt, per question.

    questions: (ids of the prompt, ids of each choice).
    """
    rows: list[MaskedRow] = []
    for prompt, choices in questions:
        rows += [
            ([*prompt, *choice], [False] * len(prompt) + [True] * len(choice)) for choice in choices
        ]
    totals = -row_nll(model, rows, batch_tokens)[:, 0]
    likelihoods, start = [], 0
    for _, choices in questions:
        likelihoods.append(totals[start : start + len(choices)].tolist())
        start += len(choices)
    return likelihoods


def generate_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    conversations: Sequence[Sequence[Mapping[str, str]]],
    decoding: "Decoding",
    masks: "Sequence[TokenMask | None] | None" = None,
) -> list[list[int]]:
    """Return the reply to each conversation, as token ids without the stop token.

    decoding: `EvalContext.decoding`; the tokenizer says which tokens end a reply.
    masks: the tokens that each reply may have; None where any may.
    """
    from agent_forge import models
    from agent_forge.data import encode_prompt, stop_ids

    prompts = [encode_prompt(tokenizer, messages) for messages in conversations]
    with evaluating(model):
        return models.generate(
            model, prompts, replace(decoding, stop_ids=stop_ids(tokenizer, model)), masks
        )


def exact_match(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    rows: Sequence[Mapping[str, Any]],
    context: EvalContext,
    *,
    max_new_tokens: int,
) -> Array:
    """Return (n, 2): 1 where the reply's last word is the row's answer, and weight 1.

    A reply that the token limit cuts off is wrong.
    """
    questions = [asked(row["messages"]) for row in rows]
    replies = generate_replies(model, tokenizer, questions, context.decoding(max_new_tokens))
    right = [
        len(reply) < max_new_tokens
        and last_word(str(tokenizer.decode(reply, skip_special_tokens=True))) == row["answer"]
        for reply, row in zip(replies, rows, strict=True)
    ]
    return of_weight_one(right)


def text_match(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[Mapping[str, Any]],
    context: EvalContext,
    *,
    max_new_tokens: int,
    is_right: Callable[[Any, str], bool],
) -> Array:
    """Return (n, 2): whether the text of the reply to each item's first turn is right, and weight 1.

    is_right: is told the item and the text, which the token limit may have cut off.
    """
    questions = [item["messages"][:1] for item in items]
    replies = generate_replies(model, tokenizer, questions, context.decoding(max_new_tokens))
    texts = [str(tokenizer.decode(reply, skip_special_tokens=True)) for reply in replies]
    return of_weight_one([is_right(item, text) for item, text in zip(items, texts, strict=True)])


def asked(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the turns before the assistant first speaks."""
    first = next(
        (i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages)
    )
    return list(messages[:first])


def last_word(text: str) -> str:
    """Return the last word of a reply without surrounding punctuation ("" when there is none)."""
    words = re.findall(r"\S+", text)
    return words[-1].strip(".,;:!?\"'()") if words else ""


def measure_speed(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    *,
    new_tokens: int = 24,
    repeats: int = 2,
) -> float:
    """Return the tokens per second that one conversation generates, at the best of `repeats`.

    Nothing stops the reply early, so every model generates the same number of tokens.
    """
    return measure_speeds([(model, tokenizer)], new_tokens=new_tokens, repeats=repeats)[0]


def measure_speeds(
    models_and_tokenizers: "Sequence[tuple[PreTrainedModel, PreTrainedTokenizerFast]]",
    *,
    new_tokens: int = 24,
    repeats: int = 2,
) -> list[float]:
    """Return the tokens per second of each model.

    The models take turns, so that other work on the machine slows all of them alike.
    """
    from agent_forge import models
    from agent_forge.data import encode_prompt

    question = [{"role": "user", "content": "What is the code of the north gate?"}]
    best = [float("inf")] * len(models_and_tokenizers)
    for turn in range(repeats + 1):
        for place, (model, tokenizer) in enumerate(models_and_tokenizers):
            prompt = encode_prompt(tokenizer, question)
            with evaluating(model):
                start = time.perf_counter()
                models.generate(
                    model, [prompt], models.Decoding(max_new_tokens=new_tokens if turn else 2)
                )
                if turn:  # the first turn only warms up
                    best[place] = min(best[place], time.perf_counter() - start)
    return [new_tokens / seconds for seconds in best]
