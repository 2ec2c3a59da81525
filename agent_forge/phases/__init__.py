"""The eight phases: rooms of one shape that talk only through checkpoint directories.

Every phase has `run(phase: PhaseRun[Config]) -> Report`. Nothing here imports torch before it is
needed.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from agent_forge.config import PhaseConfig
from agent_forge.core.device import pick_device, pick_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from agent_forge.checkpoint import Checkpoint, Workspace
    from agent_forge.core.events import EventLog
    from agent_forge.evaluate import EvalContext

ConfigT = TypeVar("ConfigT", bound=PhaseConfig)


@dataclass
class PhaseRun(Generic[ConfigT]):
    """One run of a phase: what its helpers need of their surroundings, each part made once.

    config: its settings. sources: the opened checkpoints that it reads. out: where it writes and
    remembers. events: where it reports.
    """

    config: ConfigT
    sources: "list[Checkpoint]"
    out: "Workspace"
    events: "EventLog"

    @cached_property
    def device(self) -> "torch.device":
        """Return the device of runtime.device. Raises ConfigError where it is not present."""
        return pick_device(self.config.runtime.device)

    @cached_property
    def dtype(self) -> "torch.dtype":
        """Return the data type of runtime.dtype; `auto` is float32, and `learn.train` measures."""
        return pick_dtype(self.config.runtime.dtype)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Return the tokenizer of the first source; a phase that trains its own assigns it."""
        from agent_forge import models

        return models.load_tokenizer(self.sources[0])

    @cached_property
    def eval_context(self) -> "EvalContext":
        """Return what evaluation tasks draw their items with."""
        from agent_forge.evaluate import EvalContext

        return EvalContext(data=self.config.data, seed=self.config.seed, tokenizer=self.tokenizer)
