"""A packed model behind the interface of a transformers one, for `models.generate` and the agent.

`open_model` takes the packed engine for compressed and ternary checkpoints on the CPU, where it
computes the model, and torch for everything else. Both give the same logits within the rounding
that tests/runtime states.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from agent_forge.core.errors import ConfigError
from agent_forge.runtime.model import Cache
from agent_forge.runtime.talker import (
    ENGINES,
    PackedTalker,
    open_packed,
    stored_begin,
    stored_ends,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ENGINES", "PackedCausalLM", "PackedOutput", "open_model"]


class PackedCache:
    """The caches of a batch of sequences."""

    def __init__(self, caches: list[Cache]) -> None:
        self.caches = caches

    def get_seq_length(self) -> int:
        """Return the number of tokens held."""
        return self.caches[0].length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences named, in that order."""
        self.caches = [self.caches[i] for i in indices.tolist()]

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens of each sequence."""
        for cache in self.caches:
            cache.crop(length)


@dataclass(slots=True)
class PackedOutput:
    """logits: (batch, steps, vocabulary) float32."""

    logits: Tensor
    past_key_values: PackedCache | None


class PackedCausalLM(PackedTalker):
    """The parts of a model that `models.generate` uses: a forward pass with a cache, and a device.

    `eval` and `train` exist because it calls them.
    """

    training = False
    device = torch.device("cpu")

    def eval(self) -> "PackedCausalLM":
        """Return itself: there is no other mode."""
        return self

    def train(self, mode: bool = True) -> "PackedCausalLM":
        """Return itself. Raises ConfigError when asked to train."""
        if mode:
            raise ConfigError(
                "a packed model does not train; load the checkpoint with engine=torch"
            )
        return self

    def __call__(
        self,
        input_ids: Tensor,
        *,
        past_key_values: PackedCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
    ) -> PackedOutput:
        """Return logits of input_ids (batch, time) after what the cache holds.

        Raises ConfigError for a mask that hides tokens: rows of unequal length need separate calls.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ConfigError(
                "a packed model takes no padding; give rows of one length, or one at a time"
            )
        rows, length = input_ids.shape
        cache = past_key_values or PackedCache([self.packed.new_cache() for _ in range(rows)])
        steps = min(logits_to_keep or length, length)
        places = [row * length + t for row in range(rows) for t in range(length - steps, length)]
        logits = self.packed.step(
            input_ids.reshape(-1).numpy().astype(np.int32),
            np.repeat(np.arange(rows, dtype=np.int32), length),
            cache.caches,
            places,
        )
        shaped = torch.from_numpy(logits).view(rows, steps, -1)
        return PackedOutput(shaped, cache if use_cache or past_key_values is not None else None)


def open_model(
    path: Path | str, *, device: str | torch.device = "cpu", engine: str = "auto", threads: int = 0
) -> "PreTrainedModel | PackedCausalLM":
    """Return a checkpoint's model for generation.

    engine: auto takes the packed engine for a compressed or ternary checkpoint on the CPU, when
    there is compiled code for it and it computes the model; packed always takes it, torch never.
    Raises ConfigError when `packed` cannot run the model.
    """
    path = Path(path)
    packed = open_packed(
        path,
        on_cpu=torch.device(device).type == "cpu",
        engine=engine,
        threads=threads or torch.get_num_threads(),
    )
    if packed is not None:
        return PackedCausalLM(packed, stored_ends(path), stored_begin(path))
    from agent_forge import models

    return models.load(path, device=device)
