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
        # One chain behind an unpadded prefix sees everything, so no mask has to be put together.
        self.sees_all = self.shape[1] == 1 and bool(self.sees_prefix.all())

    def feed(self, *columns: Tensor, hidden: bool = False) -> CausalLMOutputWithPast:
        """Append columns to every chain, step after step, in one forward pass.

        columns: (B, M, H) each. hidden: whether the output has hidden states as well. Return the
        base's output for these columns, (B, steps * M, ...).
        """
        steps, dtype = len(columns), columns[0].dtype
        if self.sees_all and steps == 1:
            width = self.sees_prefix.shape[-1] + self.step + 1
            mask = columns[0].new_zeros(self.shape[0], 1, 1, width)
        else:
            mask = layout.additive(layout.chains_mask(self.sees_prefix, self.step, steps), dtype)
        later = [self.place + self.step + number for number in range(1, steps + 1)]
        self.step += steps
        return self.base(  # type: ignore[no-any-return]
            inputs_embeds=torch.cat(columns, dim=1) if steps > 1 else columns[0],
            attention_mask=mask,
            position_ids=torch.cat(later, dim=1),
            past_key_values=self.cache,
            output_hidden_states=hidden,
            use_cache=True,
            **self.context,
        )

    def think(self, length: int, heat: float, seed: int) -> Tensor:
        """Return thoughts (B, P, N, L): after the start vector, `length` sampled tokens.

        All tokens but the last are fed to the base.
        """
        embed = self.base.get_input_embeddings()
        noise = self._noise(length, seed) if heat else None
        start = self.start.expand(*self.shape, -1)
        tokens: list[Tensor] = []
        for step in range(length):
            logits = self.feed(embed(tokens[-1]) if tokens else start).logits
            assert logits is not None
            tokens.append(
                logits.argmax(-1) if noise is None else layout.draw(logits, noise[step], heat)
            )
        return torch.stack(tokens, dim=-1).unflatten(1, (self.places, self.thoughts))

    def _noise(self, length: int, seed: int) -> Tensor:
        """Return what the thoughts draw at every step, (L, B, M)."""
        device = self.place.device
        steps = torch.arange(length, device=device)[:, None, None]
        rows = torch.arange(self.shape[0], device=device)[None, :, None]
        which = torch.arange(self.shape[1], device=device).remainder(self.thoughts)
        return layout.uniforms(seed, rows, self.place[None], steps, which)


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
