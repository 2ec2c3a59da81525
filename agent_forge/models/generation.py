"""Generate for many prompts at once, with the same result as one by one; or stream one answer.

Prompts of similar length share a batch. It starts at the shortest prompt, and longer ones feed
their remaining prompt tokens while the others already generate, so no row ever sees padding. What
all prompts of a batch begin with, such as a listing of tools, is read once for all of them. Rows
that have finished leave the batch. Sampling draws one number per (seed, prompt, step), so the
result does not depend on how prompts are batched. On CUDA the steps are one graph
(static_decoding.py). `stream` yields the tokens of one prompt as they are chosen.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from agent_forge.core.errors import ConfigError
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data.windows import begin_ids, fitting_prompt, positions
from agent_forge.models import compressed, static_decoding
from agent_forge.models.sampling import TINY, Cuts, Decoding, Gate, TokenMask

# Prompts in one batch differ by at most this many tokens, because each token of difference is a
# step in which some rows only read.
LENGTH_SPREAD_TOKENS = 12
# A beginning that all prompts of a batch share is read once from this length on.
SHARED_TOKENS = 32
# The cache is cut down once this share of a batch has finished.
DROP_SHARE = 0.25


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: list[list[int]],
    decoding: Decoding,
    masks: Sequence[TokenMask | None] | None = None,
) -> list[list[int]]:
    """Return the new tokens of each prompt, in the order of `prompts`, without the stop token.

    masks: the tokens that may come, per prompt; None where any may.

    A model whose class has `thinks = True` generates through its own `generate`. A prompt that does
    not fit the model's positions together with its answer is cut on the left. Raises ConfigError
    for an empty prompt, and where max_new_tokens leaves no room for a prompt.
    """
    _refuse_empty(prompts)
    if decoding.max_new_tokens <= 0 or not prompts:
        return [[] for _ in prompts]
    if masks is not None and all(mask is None for mask in masks):
        masks = None
    limit, begin = positions(model.config), begin_ids(model.config)
    prompts = [fitting_prompt(prompt, decoding.max_new_tokens, limit, begin) for prompt in prompts]
    thinks = bool(getattr(model, "thinks", False))
    was_training = model.training
    model.eval()
    results: dict[int, list[int]] = {}
    spread, lengths = 0 if thinks else LENGTH_SPREAD_TOKENS, list(map(len, prompts))
    for picked in _batches(lengths, decoding.batch_rows, spread):
        rows = [prompts[i] for i in picked]
        if thinks:
            # It draws its own numbers, so that each prompt, or else each batch, has its own seed.
            own = [replace(decoding, seed=seed_for(decoding.seed, i)) for i in picked]
            if masks is None and decoding.gate is None:
                replies = _with_own_generate(model, rows, own[0])
            else:  # its own `generate` knows neither masks nor a gate
                of_rows = [None if masks is None else masks[i] for i in picked]
                answers = zip(rows, own, of_rows, strict=True)
                replies = [list(stream(model, *answer)) for answer in answers]
        else:
            chooser = _Chooser(decoding, picked)
            chooser.masks = None if masks is None else [masks[i] for i in picked]
            # A graph of steps cannot ask a mask between two of them.
            graph = masks is None and _takes_static(model, decoding)
            run = _with_static_cache if graph else _with_cache
            replies = run(model, rows, chooser)
        results |= zip(picked, replies, strict=True)
    model.train(was_training)
    return [results[i] for i in range(len(prompts))]


def _refuse_empty(prompts: list[list[int]]) -> None:
    """Raise ConfigError for the first prompt without a token."""
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ConfigError(
                f"prompt {number} of {len(prompts)} is empty; a model needs at least one token to "
                "go on from"
            )


@torch.no_grad()
def stream(
    model: PreTrainedModel,
    prompt: list[int],
    decoding: Decoding,
    mask: TokenMask | None = None,
) -> Generator[int]:
    """Yield the new tokens of one prompt as they are chosen, without the stop token.

    They are those that `generate` returns for this prompt alone, except where a thinking model
    samples, because its own `generate` draws other numbers. A token is computed when the caller
    asks for it, so closing the generator ends the work at once.

    mask: the tokens that may come; it is asked before each one. Raises ConfigError as `generate`
    does.
    """
    if not prompt:
        raise ConfigError("the prompt is empty; a model needs at least one token to go on from")
    if decoding.max_new_tokens <= 0:
        return
    prompt = fitting_prompt(
        prompt, decoding.max_new_tokens, positions(model.config), begin_ids(model.config)
    )
    chooser = _Chooser(decoding, [0])
    chooser.masks = None if mask is None else [mask]
    was_training = model.training
    model.eval()
    # A graph of steps cannot ask a mask between two of them.
    graph = mask is None and _takes_static(model, decoding)
    tokens = (_static_steps if graph else _cached_steps)(model, prompt, chooser)
    thinking: AbstractContextManager[None] = (
        model.thinking() if getattr(model, "thinks", False) else nullcontext()  # type: ignore[operator]
    )
    try:
        with thinking:
            for token in tokens:
                if token in decoding.stop_ids:
                    return
                yield token
    finally:
        model.train(was_training)


def _takes_static(model: PreTrainedModel, decoding: Decoding) -> bool:
    """Return whether to use a cache of fixed size: the caller's choice, or else ours."""
    if decoding.static is None:
        return static_decoding.suits(model, decoding.max_new_tokens)
    return decoding.static and static_decoding.takes(model)


def _batches(lengths: Sequence[int], batch_rows: int, spread: int) -> Iterator[list[int]]:
    """Yield indices in order of length, at most `batch_rows` at a time, lengths within `spread`."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) >= batch_rows or lengths[i] > lengths[batch[0]] + spread):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


class _Chooser:
    """Pick next tokens by argmax, or by a random number fixed by (seed, prompt, step).

    The number picks the token at which the cumulated probability passes it. prompts: the numbers
    of the prompts in the batch.
    """

    def __init__(self, decoding: Decoding, prompts: Sequence[int]) -> None:
        self.decoding = decoding
        self.masks: Sequence[TokenMask | None] | None = None  # one per row
        if decoding.temperature > 0:
            draws = [
                numpy_generator(decoding.seed, "generate", i).random(decoding.max_new_tokens)
                for i in prompts
            ]
            self.draws = torch.stack([torch.from_numpy(d) for d in draws])  # (rows, steps) float64

    def move_to(self, device: torch.device) -> None:
        """Move the numbers to a device, because a graph reads them there."""
        if self.decoding.temperature > 0:
            # MPS has no double precision.
            self.draws = self.draws.to(
                device, torch.float32 if device.type == "mps" else torch.float64
            )

    def __call__(
        self,
        logits: Tensor,
        rows: Tensor,
        steps: Tensor,
        writing: Sequence[bool] | None = None,
    ) -> Tensor:
        """Return tokens (n,) from logits (n, vocabulary).

        rows, steps: (n,), which of the random numbers each token takes.
        writing: whether a row's token becomes part of its answer; None where all do. Only then is
        its mask asked.
        """
        if self.decoding.gate is not None:
            logits = _gated(logits, steps, self.decoding.gate)
        if self.masks is None:
            return self._choose(logits, rows, steps)
        allowed = np.ones(logits.shape, np.bool_)
        masked = [
            (place, mask)
            for place, row in enumerate(rows.tolist())
            if (writing is None or writing[place]) and (mask := self.masks[row]) is not None
        ]
        for place, mask in masked:
            allowed[place] = mask.allowed(logits.shape[-1])
        refused = torch.from_numpy(~allowed).to(logits.device)
        chosen = self._choose(logits.masked_fill(refused, -torch.inf), rows, steps)
        tokens = chosen.tolist()
        for place, mask in masked:
            mask.take(tokens[place])
        return chosen

    def _choose(self, logits: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
        decoding = self.decoding
        if decoding.temperature <= 0:
            return logits.argmax(-1)
        probabilities, order = torch.softmax(logits.double() / decoding.temperature, -1).sort(
            -1, descending=True
        )
        if decoding.cuts.any:
            probabilities = _cut(probabilities, decoding.cuts)
        cumulated = probabilities.cumsum(-1)
        # Smallest set of most likely tokens whose probability reaches top_p.
        nucleus = (cumulated - probabilities < decoding.top_p).sum(-1, keepdim=True)
        mass = cumulated.gather(-1, nucleus - 1)
        point = self.draws[rows, steps].to(logits.device)[:, None] * mass
        picked = torch.minimum((cumulated <= point).sum(-1, keepdim=True), nucleus - 1)
        return order.gather(-1, picked)[:, 0]


def _gated(logits: Tensor, steps: Tensor, gate: Gate) -> Tensor:
    """Return logits (n, vocabulary) after `Gate.shut`, in rows whose step (n,) is the first."""
    share = logits.float().softmax(-1)[:, gate.token]
    shut = (steps.to(logits.device) == 0) & (share < gate.least)
    column = logits[:, gate.token].masked_fill(shut, -torch.inf)
    return torch.cat([logits[:, : gate.token], column[:, None], logits[:, gate.token + 1 :]], 1)


def _cut(probabilities: Tensor, cuts: Cuts) -> Tensor:
    """Return what `sampling.cut` returns, for each row of (n, vocabulary)."""
    left = probabilities.clone()
    if cuts.top_k:
        left[:, cuts.top_k :] = 0.0
    left = left.masked_fill(left < cuts.min_p * left[:, :1], 0.0)
    left = left / left.sum(-1, keepdim=True)
    if cuts.typical_p < 1:
        surprise = -left.clamp(min=TINY).log()
        distance = (surprise - (left * surprise).sum(-1, keepdim=True)).abs()
        order = distance.masked_fill(left <= 0, torch.inf).argsort(dim=-1, stable=True)
        mass = left.gather(-1, order)
        unusual = mass.cumsum(-1) - mass >= cuts.typical_p
        left = left.scatter(-1, order, mass.masked_fill(unusual, 0.0))
        left = left / left.sum(-1, keepdim=True)
    return left


def _sampling(decoding: Decoding) -> dict[str, Any]:
    """Return how transformers' own `generate` is to draw."""
    if decoding.temperature <= 0:
        return {"do_sample": False}
    settings = {
        "do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p,
    }  # fmt: skip
    cuts = decoding.cuts
    # Its own neutral values are None, and 50 for top_k.
    return settings | {
        "top_k": cuts.top_k, "min_p": cuts.min_p or None,
        "typical_p": cuts.typical_p if cuts.typical_p < 1 else None,
    }  # fmt: skip


def _with_cache(
    model: PreTrainedModel, prompts: list[list[int]], chooser: _Chooser
) -> list[list[int]]:
    """Return the new tokens of each prompt of one batch, from a growing cache."""
    max_new_tokens, stops = chooser.decoding.max_new_tokens, set(chooser.decoding.stop_ids)
    shortest = min(map(len, prompts))
    replies: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))  # rows of the cache, as indices into prompts
    running = set(active)
    cache, shared = _shared_beginning(model, prompts)
    ids = torch.tensor([prompt[shared:shortest] for prompt in prompts], device=model.device)
    position = shortest
    while True:
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        steps = [max(position - len(prompts[i]), 0) for i in active]
        chosen = chooser(
            output.logits[:, -1],
            torch.tensor(active),
            torch.tensor(steps).clamp(max=max_new_tokens - 1),
            [i in running and position >= len(prompts[i]) for i in active],
        )
        tokens: list[int] = chosen.tolist()
        for k, i in enumerate(active):
            if position < len(prompts[i]):
                tokens[k] = prompts[i][position]
            elif i in running:
                if tokens[k] in stops:
                    running.discard(i)
                    continue
                replies[i].append(tokens[k])
                if len(replies[i]) == max_new_tokens:
                    running.discard(i)
        if not running:
            return replies
        position += 1
        if len(running) <= len(active) * (1 - DROP_SHARE) and hasattr(
            cache, "batch_select_indices"
        ):
            survivors = [k for k, i in enumerate(active) if i in running]
            cache.batch_select_indices(torch.tensor(survivors, device=model.device))
            tokens = [tokens[k] for k in survivors]
            active = [active[k] for k in survivors]
        ids = torch.tensor(tokens, device=model.device)[:, None]


def _shared_beginning(model: PreTrainedModel, prompts: list[list[int]]) -> tuple[Any, int]:
    """Return a cache of what all prompts begin with, for each of them, and its length in tokens.

    (None, 0) where that is short, and where the model's cache cannot be repeated. At least one
    token of each prompt is left.
    """
    lowest, highest = min(prompts), max(prompts)
    differing = next(
        (i for i, pair in enumerate(zip(lowest, highest, strict=False)) if pair[0] != pair[1]),
        len(lowest),
    )
    length = min(differing, min(map(len, prompts)) - 1)
    repeats = len(prompts) > 1 and isinstance(model, PreTrainedModel)  # not the packed engine
    if not repeats or length < SHARED_TOKENS:
        return None, 0
    ids = torch.tensor([lowest[:length]], device=model.device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    if not isinstance(cache, DynamicCache):
        return None, 0
    cache.batch_repeat_interleave(len(prompts))
    return cache, length


def _with_static_cache(
    model: PreTrainedModel, prompts: list[list[int]], chooser: _Chooser
) -> list[list[int]]:
    """Return the new tokens of each prompt of one batch, from a cache of fixed size."""
    with compressed.decoding(model, len(prompts)):
        return _static_decoder(model, prompts, chooser).run()


def _static_decoder(
    model: PreTrainedModel, prompts: list[list[int]], chooser: _Chooser
) -> static_decoding.StaticDecoder:
    rows, decoding = torch.arange(len(prompts), device=model.device), chooser.decoding
    chooser.move_to(model.device)
    return static_decoding.StaticDecoder(
        model,
        prompts,
        decoding.max_new_tokens,
        set(decoding.stop_ids),
        lambda logits, steps: chooser(logits, rows, steps),
    )


def _cached_steps(model: PreTrainedModel, prompt: list[int], chooser: _Chooser) -> Iterator[int]:
    """Yield tokens from a growing cache; the first comes from the whole prompt."""
    row = torch.tensor([0])
    ids = torch.tensor([prompt], device=model.device)
    cache = None
    for step in range(chooser.decoding.max_new_tokens):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        token = int(chooser(output.logits[:, -1], row, torch.tensor([step])))
        yield token
        ids = torch.tensor([[token]], device=model.device)


def _static_steps(model: PreTrainedModel, prompt: list[int], chooser: _Chooser) -> Iterator[int]:
    """Yield tokens from a cache of fixed size; each waits for the device."""
    with compressed.decoding(model, 1):
        yield from _static_decoder(model, [prompt], chooser).stream()


def _with_own_generate(
    model: PreTrainedModel, prompts: list[list[int]], decoding: Decoding
) -> list[list[int]]:
    """Generate for prompts of one length through the model's own `generate`."""
    stops = set(decoding.stop_ids)
    ids = torch.tensor(prompts, device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(decoding.seed)
        own: Any = model.generate
        output = own(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=sorted(stops) or None,
            pad_token_id=min(stops, default=0),
            **_sampling(decoding),
        )
    replies = []
    for row in output[:, ids.shape[1] :].tolist():
        end = next((k for k, token in enumerate(row) if token in stops), len(row))
        replies.append(row[:end])
    return replies
