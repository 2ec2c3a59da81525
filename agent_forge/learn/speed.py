"""Run a model's blocks compiled, where that pays, and with less memory. Everything is undone when training ends.

Blocks (transformer layers) are compiled one by one, in place: equal blocks share one graph, so compiling takes the time
of one, and any loss function that calls the layers gets the compiled ones. `auto` takes the first steps of the stage
itself as the measurement: some eager, then some compiled, and the faster way for the rest.
"""

import functools
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from agent_forge.core.errors import PhaseError
from agent_forge.core.events import EventLog

MEASURED = 4  # steps of each kind; the first is warm-up
LEAST_GAIN = 1.03  # below this ratio the compiled steps are not worth a second way of computing
CAN_SAVE = 0.3  # share of a step that compiling saves at the very best ...
COSTS_SECONDS = 20.0  # ... and what it costs at least


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model: what transformers says must not be split."""
    names: set[str] = set()
    for module in model.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


class Compiler:
    """Decide between eager and compiled blocks. `choice` is auto (undecided), on or off.

    seconds(step) are given by `note`; decide: makes several processes agree on a choice.
    """

    def __init__(
        self, mode: str, model: nn.Module, stage: str, events: EventLog, decide: Callable[[float], float]
    ) -> None:
        self.choice, self.stage, self.events, self.decide = mode, stage, events, decide
        self.blocks = blocks(model)
        self._eager: list[float] = []
        self._compiled: list[float] = []

    def start(self, device: torch.device) -> None:
        """Compile at once for `on`; explain where compiling is not possible."""
        if self.choice == "off":
            return
        reason = ""
        if not self.blocks:
            reason = "this model names no blocks to compile"
        elif device.type == "cpu" and not _has_compiler():
            reason = "no C++ compiler here (set CXX, or install g++)"
        if reason:
            self.events.warning(f"{self.stage}: torch.compile is not used: {reason}; training runs eagerly")
            self.choice = "off"
        elif self.choice == "on":
            self._switch(True)
            self.events.message(f"{self.stage}: torch.compile on, as set", stage=self.stage)

    def note(self, seconds: float, steps_left: int) -> None:
        """Hear how long a step took; in `auto`, measure and choose."""
        if self.choice != "auto":
            return
        if len(self._eager) < MEASURED:
            self._eager.append(seconds)
            if len(self._eager) == MEASURED:
                self._try(steps_left)
            return
        self._compiled.append(seconds)
        if len(self._compiled) == MEASURED:
            self._choose(steps_left)

    def stop(self) -> None:
        """Leave the blocks as they were."""
        self._switch(False)

    def _try(self, steps_left: int) -> None:
        eager = statistics.median(self._eager[1:])
        if not self.decide(float(CAN_SAVE * eager * steps_left > COSTS_SECONDS)):
            self.choice = "off"
            self._say(f"off: {steps_left} steps of {eager:.3f} s are too few to pay for compiling")
            return
        self._switch(True)

    def _choose(self, steps_left: int) -> None:
        eager, compiled = statistics.median(self._eager[1:]), statistics.median(self._compiled[1:])
        cost = self._compiled[0] - compiled
        self.choice = "on" if self.decide(float(eager > LEAST_GAIN * compiled)) else "off"
        self._switch(self.choice == "on")
        gain = (eager - compiled) * steps_left - cost
        self._say(
            f"{self.choice}: {eager:.3f} s a step eager, {compiled:.3f} s compiled, {cost:.0f} s to compile; "
            f"over {steps_left} steps that is {gain:+.0f} s"
        )

    def _say(self, text: str) -> None:
        self.events.message(f"{self.stage}: torch.compile {text}", stage=self.stage)

    def _switch(self, compiled: bool) -> None:
        for block in self.blocks:
            if compiled:
                block.compile(dynamic=False)
            else:
                block._compiled_call_impl = None


@contextmanager
def recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Keep no activations inside blocks while the context lasts; they are computed again in the backward pass.

    Raises PhaseError when the model names no blocks.
    """
    found: list[Any] = blocks(model) if wanted else []
    if wanted and not found:
        raise PhaseError("runtime.checkpoint_activations needs a model that names its blocks; set it to false")
    for block in found:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in found:
            del block.forward


@contextmanager
def no_memory_fill() -> Iterator[None]:
    """Stop deterministic mode from writing NaN into every fresh tensor: training reads none before writing it."""
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = before


def _has_compiler() -> bool:
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++"]))
