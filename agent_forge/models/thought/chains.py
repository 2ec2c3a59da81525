"""Write many thoughts at once on a key-value cache, with one column per thought and step.

Used to sample thoughts in training and to think in generate(), which removes the columns again by
cropping the cache.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from agent_forge.core.errors import PhaseError
from agent_forge.models.thought import layout


class Chains:
    """Thoughts being written on a cache: P positions times N thoughts, one column each per step."""

    def __init__(
        self,
        base: PreTrainedModel,
        start: Tensor,
        cache: Any,
        places: layout.Places,
        context: dict[str, Any] | None = None,
    ) -> None:
        self.base, self.start, self.cache, self.context = base, start, cache, context or {}
        self.step = 0
        self.places, self.thoughts = places.positions.shape[1], places.thoughts
        self.sees_prefix = places.sees_prefix()
        self.shape = self.sees_prefix.shape[:2]  # (B, M)
        self.place = places.followed()  # (B, M)

    def feed(self, embeds: Tensor) -> CausalLMOutputWithPast:
        """Append one column (B, M, H) to every chain.

        Return the base's output for these columns.
        """
        mask = layout.additive(layout.step_mask(self.sees_prefix, self.step), embeds.dtype)
        self.step += 1
        return self.base(  # type: ignore[no-any-return]
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=self.place + self.step,
            past_key_values=self.cache,
            output_hidden_states=True,
            use_cache=True,
            **self.context,
        )

    def think(self, length: int, heat: float, seed: int) -> Tensor:
        """Return thoughts (B, P, N, L): after the start vector, `length` sampled tokens.

        All tokens but the last are fed to the base.
        """
        embed = self.base.get_input_embeddings()
        rows = torch.arange(self.shape[0], device=self.place.device)[:, None].expand(self.shape)
        which = (
            torch.arange(self.shape[1], device=self.place.device)
            .remainder(self.thoughts)
            .expand(self.shape)
        )
        column = self.start.expand(*self.shape, -1)
        tokens = []
        for step in range(length):
            logits = self.feed(column).logits
            assert logits is not None
            tokens.append(
                layout.draw(logits, layout.uniforms(seed, rows, self.place, step, which), heat)
            )
            column = embed(tokens[-1])
        return torch.stack(tokens, dim=-1).unflatten(1, (self.places, self.thoughts))


def croppable_length(cache: Any) -> int:
    """Return how many tokens the cache holds. Raises PhaseError when it cannot be cropped."""
    layers = getattr(cache, "layers", None) or ()
    fixed = any(
        getattr(layer, "is_sliding", False) or hasattr(layer, "max_cache_len") for layer in layers
    )
    if fixed or not hasattr(cache, "crop"):
        raise PhaseError(
            f"thinking needs a cache that can be cropped, {type(cache).__name__} cannot; "
            "generate with the default dynamic cache, or set config.gate_entropy_nats=None"
        )
    return int(cache.get_seq_length())
