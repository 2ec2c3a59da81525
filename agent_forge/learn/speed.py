"""Compile a model where that pays, and save memory. Everything is undone when training ends.

On an accelerator the whole stack of a plain model is one graph (`models/plain.py`): norms, sums and
casts between its layers become one kernel, and a step is launched at once. Elsewhere, and where the
whole does not compile, blocks (transformer layers) are compiled one by one: equal blocks share one
graph, so compiling takes the time of one. A parent that a loss function runs beside the model is
compiled the same way. `auto` takes the first steps of the stage itself as the measurement: some
eager, then some compiled, and the faster way for the rest.
"""

import functools
import gc
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from agent_forge.anatomy.stack import blocks
from agent_forge.core.errors import PhaseError
from agent_forge.learn.records import StageChoices
from agent_forge.models.plain import PlainCall, stack_of

MEASURED = 4  # steps of each kind; the first is warm-up
LEAST_GAIN = 1.03  # below this ratio the compiled steps are not worth a second way of computing
COLLECT_STEPS = 16  # steps between two collections of garbage


@dataclass(frozen=True, slots=True)
class Bet:
    """What compiling may bring.

    saves: the share of a step that it saves at best. costs_seconds: what it costs at least.
    """

    saves: float
    costs_seconds: float


OF_BLOCKS, OF_STACKS = Bet(0.3, 20.0), Bet(0.5, 60.0)


class Compiler:
    """Decide between eager and compiled training, and switch the model over.

    choice: auto (undecided), on or off. `note` takes the seconds of each step. teachers: models
    that the loss runs without gradients.
    whole: whether a stack may be compiled as one graph, which sharding layer by layer does not
    allow.
    """

    def __init__(
        self,
        mode: str,
        model: nn.Module,
        choices: StageChoices,
        *,
        teachers: Sequence[nn.Module] = (),
        whole: bool = True,
    ) -> None:
        self.choice, self.choices = mode, choices
        self.model, self.teachers, self.whole = model, teachers, whole
        self.blocks = [block for one in (model, *teachers) for block in blocks(one)]
        # Each stack, and whether it belongs to the model that trains.
        self.stacks: list[tuple[nn.Module, bool]] = []
        self._eager: list[float] = []
        self._compiled: list[float] = []

    def start(self, device: torch.device) -> None:
        """Find what can be compiled, and compile it at once for `on`.

        Where compiling is not possible, a warning says why.
        """
        if self.whole and runs_whole(device):
            stacks = [(stack_of(one), one is self.model) for one in (self.model, *self.teachers)]
            self.stacks = [(stack, trains) for stack, trains in stacks if stack is not None]
            self._switch(False)
        if self.choice == "off":
            return
        reason = ""
        if not self.blocks and not self.stacks:
            reason = "this model has no list of blocks to compile"
        elif device.type == "cpu" and not _has_compiler():
            reason = "no C++ compiler here (set CXX, or install g++)"
        if reason:
            self.choices.warning(f"torch.compile is not used: {reason}; training runs eagerly")
            self.choice = "off"
        elif self.choice == "on":
            self._switch(True)
            self._say("on, as set")

    def note(self, seconds: float, steps_left: int) -> None:
        """Take note of how long a step took; in `auto`, measure and choose."""
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

    def retreats(self, error: Exception) -> bool:
        """Return whether another way is left after this error of a step: from whole stacks to
        blocks, then to eager.
        """
        # What is not imported has not been raised.
        raised = sys.modules.get("torch._dynamo.exc")
        if (
            raised is None
            or not isinstance(error, raised.TorchDynamoException)
            or self.choice == "off"
        ):
            return False
        if not (self.stacks or self.blocks):
            return False
        reason = str(error).strip().split("\n")[0]
        to_blocks = bool(self.stacks and self.blocks)
        self.stop()
        self.stacks, self.blocks = [], self.blocks if to_blocks else []
        self._say(
            f"{'blocks alone' if to_blocks else 'off'}: the {'whole' if to_blocks else 'block'} fails ({reason})"
        )
        if to_blocks:
            self._switch(True)
        else:
            self.choice = "off"
        return True

    def stop(self) -> None:
        """Leave the modules as they were."""
        for module in [*self.blocks, *(stack for stack, _ in self.stacks)]:
            module._compiled_call_impl = None

    def _try(self, steps_left: int) -> None:
        eager, bet = statistics.median(self._eager[1:]), OF_STACKS if self.stacks else OF_BLOCKS
        if not self.choices.decide(float(bet.saves * eager * steps_left > bet.costs_seconds)):
            self.choice = "off"
            self._say(f"off: {steps_left} steps of {eager:.3f} s are too few to pay for compiling")
            return
        self._switch(True)

    def _choose(self, steps_left: int) -> None:
        eager, compiled = statistics.median(self._eager[1:]), statistics.median(self._compiled[1:])
        cost = self._compiled[0] - compiled
        self.choice = "on" if self.choices.decide(float(eager > LEAST_GAIN * compiled)) else "off"
        self._switch(self.choice == "on")
        gain = (eager - compiled) * steps_left - cost
        self._say(
            f"{self.choice}: {eager:.3f} s per step eager, {compiled:.3f} s compiled, {cost:.0f} s to compile; "
            f"over {steps_left} steps that is {gain:+.0f} s"
        )

    def _say(self, text: str) -> None:
        self.choices.message(f"torch.compile {text}")

    def _switch(self, compiled: bool) -> None:
        for stack, trains in self.stacks:
            # Shapes that vary are traced once more, with sizes left open, and then never again.
            call = torch.compile(stack._call_impl) if compiled else stack._call_impl
            standing_in: Any = PlainCall(stack, call, gradients=trains, narrow=True)
            stack._compiled_call_impl = standing_in
        for block in () if self.stacks else self.blocks:
            if compiled:
                block.compile(dynamic=False)
            else:
                block._compiled_call_impl = None


def runs_whole(device: torch.device) -> bool:
    """Return whether plain stacks are run as one on this device: the CPU gains nothing, and
    compiling takes it minutes.
    """
    return device.type != "cpu"


@contextmanager
def garbage_at_intervals() -> Iterator[Callable[[int], None]]:
    """Keep Python from looking for garbage within a step; yields what is told each step and
    collects now and then.

    A collection stops the launches of an accelerator for milliseconds, at a moment that differs
    between processes.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()

    def after(step: int) -> None:
        if was_on and step % COLLECT_STEPS == 0:
            gc.collect(1)

    try:
        yield after
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


@contextmanager
def recomputing(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Keep no activations inside blocks while the context lasts; they are computed again in the
    backward pass.

    Raises PhaseError when the model has no list of blocks.
    """
    chosen: list[Any] = blocks(model) if enabled else []
    if enabled and not chosen:
        raise PhaseError(
            "runtime.checkpoint_activations needs a model with a list of blocks; set it to false"
        )
    for block in chosen:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in chosen:
            del block.forward


@contextmanager
def no_memory_fill() -> Iterator[None]:
    """Stop deterministic mode from writing NaN into every fresh tensor: training reads none before
    writing it.
    """
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
