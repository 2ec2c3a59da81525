"""Generation whose every step has the same shapes and addresses: a static cache, tokens that stay on the device, one graph.

A step of a small model is hundreds of launches of microseconds each: on CUDA the whole step (embedding, layers, head, the
choice of the next token, its storage) is captured once as a graph and then launched as one. Nothing returns to the host
until a few steps are done, when finished rows are looked for. On the CPU the same step runs without a graph, which is how
it is tested; there the growing cache of `generation.py` is as fast, and stays the default.
Reads prompts and a model of `models/plain.py`; returns tokens.
"""

import logging
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from agent_forge.models.plain import stack_of

# Steps between two looks at which rows have finished; each look waits for the device.
LOOK_EVERY = 16
WARM_UP_STEPS = 2  # before a capture: libraries set up their workspaces, Triton compiles its kernels
# Capturing takes about as long as this many steps that are launched one kernel at a time.
LEAST_STEPS = 8
ROUND_UP = 64  # cache lengths are multiples of this

_log = logging.getLogger("agent_forge")
# (logits (rows, vocabulary), step of each row (rows,)) -> tokens (rows,)
Choose = Callable[[Tensor, Tensor], Tensor]


def suits(model: Any, steps: int) -> bool:
    """Return whether a model's generation goes this way by itself: on CUDA, for as many steps as pay for a capture."""
    return model.device.type == "cuda" and steps >= LEAST_STEPS and takes(model)


def takes(model: Any) -> bool:
    """Return whether a model can go this way: its layers attend to everything before them, through transformers' cache."""
    return stack_of(model) is not None


class StaticDecoder:
    """Generates for one batch of prompts, the shortest of which is read at once and the others on the way.

    choose: picks the next token of each row from its logits and the number of tokens it has produced.
    """

    def __init__(
        self, model: Any, prompts: list[list[int]], max_new_tokens: int, stops: Collection[int], choose: Choose
    ) -> None:
        self.model, self.choose, self.stops = model, choose, stops
        device, lengths = model.device, [len(prompt) for prompt in prompts]
        self.first, self.steps = min(lengths), max(lengths) - min(lengths) + max_new_tokens
        self.max_new_tokens = max_new_tokens
        longest = -(-(self.first + self.steps) // ROUND_UP) * ROUND_UP
        self.cache: Any = StaticCache(config=model.config, max_cache_len=longest)
        # What rows still read: -1 where the model speaks.
        self.forced = torch.full((len(prompts), self.steps), -1, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            rest = prompt[self.first :]
            self.forced[row, : len(rest)] = torch.tensor(rest, dtype=torch.int64)
        self.forced = self.forced.to(device)
        self.read = torch.tensor(lengths, device=device) - self.first
        self.places = torch.arange(longest, device=device)
        self.out = torch.zeros_like(self.forced)
        self.token = torch.zeros(len(prompts), 1, dtype=torch.int64, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.prompt = torch.tensor([prompt[: self.first] for prompt in prompts], device=device)
        self.lengths = lengths

    def run(self) -> list[list[int]]:
        """Return the new tokens of each prompt, without the stop token."""
        output = self.model(input_ids=self.prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self._take(output.logits[:, -1])
        advance = self._captured() if self.model.device.type == "cuda" and self.steps > 1 else self._advance
        for done in range(1, self.steps):
            advance()
            if done % LOOK_EVERY == 0 and self._finished(done + 1):
                break
        return self._found()

    def _take(self, logits: Tensor) -> None:
        """Choose each row's next token, note it, and make it the input of the next step."""
        spoken = (self.step - self.read).clamp(0, self.max_new_tokens - 1)
        forced = self.forced.index_select(1, self.step)[:, 0]
        token = torch.where(forced >= 0, forced, self.choose(logits, spoken))
        self.out.index_copy_(1, self.step, token[:, None])
        self.token.copy_(token[:, None])
        self.step.add_(1)

    def _advance(self) -> None:
        """Run the model on one token a row. The new token sees all places that are filled, itself among them."""
        place = self.first + self.step - 1
        seen = (self.places <= place)[None, None, None]
        output = self.model(
            input_ids=self.token, past_key_values=self.cache, use_cache=True, logits_to_keep=1,
            position_ids=place[None], attention_mask=seen.expand(len(self.token), 1, 1, -1),
        )  # fmt: skip
        self._take(output.logits[:, -1])

    def _captured(self) -> Callable[[], None]:
        """Return the step as a graph. Capturing runs the step a few times; what it changed is put back."""
        counts = [layer.cumulative_length for layer in self.cache.layers]
        kept = [tensor.clone() for tensor in (self.step, self.token, self.out, *counts)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(min(WARM_UP_STEPS, self.steps - 1)):
                self._advance()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._restore(kept)
        try:
            with torch.cuda.graph(graph):
                self._advance()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Some layer asks the device for a value on the way, which a graph cannot hold.
            _log.warning("a step of generation cannot be captured (%s); it runs uncaptured", str(error).split("\n")[0])
            self._restore(kept)
            return self._advance
        self._restore(kept)
        return graph.replay

    def _restore(self, kept: list[Tensor]) -> None:
        """Put back what a step changes. Keys and values need it not: they are written again before they are seen."""
        counts = [layer.cumulative_length for layer in self.cache.layers]
        for tensor, before in zip((self.step, self.token, self.out, *counts), kept, strict=True):
            tensor.copy_(before)

    def _finished(self, done: int) -> bool:
        """Return whether every row has its stop token or all its tokens after `done` steps."""
        return all(len(row) < self._due(i, done) or self._due(i, done) == self.max_new_tokens
                   for i, row in enumerate(self._found(done)))  # fmt: skip

    def _due(self, row: int, done: int) -> int:
        """Return how many tokens a row without a stop has after `done` steps."""
        return min(max(done - (self.lengths[row] - self.first), 0), self.max_new_tokens)

    def _found(self, done: int = 0) -> list[list[int]]:
        """Return the tokens of each row so far."""
        done = done or self.steps
        found = []
        for row, tokens in enumerate(self.out[:, :done].tolist()):
            start = self.lengths[row] - self.first
            spoken = tokens[start : start + self.max_new_tokens]
            end = next((k for k, token in enumerate(spoken) if token in self.stops), len(spoken))
            found.append(spoken[:end])
        return found
