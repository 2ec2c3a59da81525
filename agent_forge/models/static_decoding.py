"""Generation in steps of fixed shapes and addresses, so that CUDA can run each step as one graph.

A step of a small model is hundreds of kernel launches of microseconds each. On CUDA the whole step
(embedding, layers, head, the choice of the next token, its storage) is captured once as a graph and
then launched as one. The cache has a fixed size, tokens stay on the device, and the host looks for
finished rows only every few steps. On the CPU the same step runs without a graph, which is how it
is tested; there the growing cache of `generation.py` is as fast, and stays the default. Reads
prompts and a model of `models/plain.py`; returns tokens.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from agent_forge.models.plain import stack_of

# Steps between two looks at which rows have finished; each look waits for the device.
LOOK_EVERY = 16
# Steps before a capture, in which libraries set up workspaces and Triton compiles its kernels.
WARM_UP_STEPS = 2
# Capturing takes about as long as this many uncaptured steps.
LEAST_STEPS = 8
ROUND_UP = 64  # cache lengths are multiples of this

_log = logging.getLogger("agent_forge")
# (logits (rows, vocabulary), step of each row (rows,)) -> tokens (rows,)
Choose = Callable[[Tensor, Tensor], Tensor]


def suits(model: Any, steps: int) -> bool:
    """Return whether a model generates this way by default: on CUDA, for enough steps."""
    return model.device.type == "cuda" and steps >= LEAST_STEPS and takes(model)


def takes(model: Any) -> bool:
    """Return whether a model can generate this way: its layers attend to everything before them."""
    return stack_of(model) is not None


class StaticDecoder:
    """Generates for one batch of prompts.

    The tokens that all prompts have places for are read at once; longer prompts feed the rest of
    their tokens during the steps.

    choose: picks the next token of each row from its logits and the number of its new tokens.
    """

    def __init__(
        self,
        model: Any,
        prompts: list[list[int]],
        max_new_tokens: int,
        stops: Collection[int],
        choose: Choose,
    ) -> None:
        self.model, self.choose, self.stops = model, choose, stops
        device, lengths = model.device, [len(prompt) for prompt in prompts]
        self.first, self.steps = min(lengths), max(lengths) - min(lengths) + max_new_tokens
        self.max_new_tokens = max_new_tokens
        longest = -(-(self.first + self.steps) // ROUND_UP) * ROUND_UP
        self.cache: Any = StaticCache(config=model.config, max_cache_len=longest)
        # The prompt tokens that rows still have to read; -1 where the model generates.
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
        for done in self._steps():
            looks = done > 1 and (done - 1) % LOOK_EVERY == 0
            if looks and self._finished(done):
                break
        return self._found()

    def stream(self) -> Iterator[int]:
        """Yield the new tokens of the only prompt, a stop token included, as they are chosen."""
        for _ in self._steps():
            yield int(self.token)

    def _steps(self) -> Iterator[int]:
        """Run the prompt, then one step after the other; yield how many have run."""
        output = self.model(
            input_ids=self.prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self._take(output.logits[:, -1])
        yield 1
        if self.steps == 1:
            return
        advance = self._captured() if self.model.device.type == "cuda" else self._advance
        for done in range(2, self.steps + 1):
            advance()
            yield done

    def _take(self, logits: Tensor) -> None:
        """Choose each row's next token, store it, and make it the input of the next step."""
        spoken = (self.step - self.read).clamp(0, self.max_new_tokens - 1)
        forced = self.forced.index_select(1, self.step)[:, 0]
        token = torch.where(forced >= 0, forced, self.choose(logits, spoken))
        self.out.index_copy_(1, self.step, token[:, None])
        self.token.copy_(token[:, None])
        self.step.add_(1)

    def _advance(self) -> None:
        """Run the model on one token per row, which sees all filled places and itself."""
        place = self.first + self.step - 1
        seen = (self.places <= place)[None, None, None]
        output = self.model(
            input_ids=self.token, past_key_values=self.cache, use_cache=True, logits_to_keep=1,
            position_ids=place[None], attention_mask=seen.expand(len(self.token), 1, 1, -1),
        )  # fmt: skip
        self._take(output.logits[:, -1])

    def _captured(self) -> Callable[[], None]:
        """Return the step as a graph; what the runs for the capture change is restored."""
        counts = [layer.cumulative_length for layer in self.cache.layers]
        before = [tensor.clone() for tensor in (self.step, self.token, self.out, *counts)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(min(WARM_UP_STEPS, self.steps - 1)):
                self._advance()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._restore(before)
        try:
            with torch.cuda.graph(graph):
                self._advance()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Some layer reads a value from the device during the step, which a graph cannot hold.
            _log.warning(
                "a step of generation cannot be captured (%s); it runs uncaptured",
                str(error).split("\n")[0],
            )
            self._restore(before)
            return self._advance
        self._restore(before)
        return graph.replay

    def _restore(self, before: list[Tensor]) -> None:
        """Restore the tensors that a step changes.

        Keys and values do not need this, because they are written again before they are read.
        """
        counts = [layer.cumulative_length for layer in self.cache.layers]
        for tensor, value in zip((self.step, self.token, self.out, *counts), before, strict=True):
            tensor.copy_(value)

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
        replies = []
        for row, tokens in enumerate(self.out[:, :done].tolist()):
            start = self.lengths[row] - self.first
            spoken = tokens[start : start + self.max_new_tokens]
            end = next((k for k, token in enumerate(spoken) if token in self.stops), len(spoken))
            replies.append(spoken[:end])
        return replies
