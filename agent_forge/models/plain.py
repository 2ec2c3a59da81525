"""How to run transformers' plain models in training: a stack of causal layers and a linear head.

`PlainCall` replaces the call of such a stack while it trains: attention runs as causal instead of
with a mask. transformers writes out a mask of T x T whenever it is traced, and with a mask the
flash kernel cannot be used. On an accelerator the stream between the layers also has the dtype of
the products, which halves the bytes that its norms and sums read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from agent_forge.anatomy.head import is_plain

CAUSAL = "forge_causal"


def stack_of(model: Any) -> nn.Module | None:
    """Return the stack below a plain model's head if all its layers are fully causal, else None."""
    base = getattr(model, "base_model", None)
    if not is_plain(model) or not isinstance(base, nn.Module) or base is model:
        return None
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"]
    windowed = getattr(model.config, "sliding_window", None) and getattr(
        model.config, "use_sliding_window", True
    )
    return base if set(kinds) == {"full_attention"} and not windowed else None


def causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - transformers' signature; it is None here
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return causal attention (B, T, H, D) without a mask.

    query: (B, H, T, D).
    key, value: (B, G, T, D), where G divides H.
    """
    grouped = key.shape[1] != query.shape[1]
    out = functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout if module.training else 0.0, is_causal=True,
        scale=scaling, enable_gqa=grouped,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


# transformers writes no mask for an attention whose name has no mask function.
AttentionInterface.register(CAUSAL, causal_attention)


@contextmanager
def attends_causally(stack: nn.Module) -> Iterator[None]:
    """Run the attention of a stack as causal, without a mask, while the context lasts."""
    config: Any = stack.config
    before = config._attn_implementation
    config._attn_implementation = CAUSAL
    try:
        yield
    finally:
        config._attn_implementation = before


class PlainCall:
    """Replaces the call of a stack of layers during training.

    call: the stack's own call, or its compiled one.
    gradients: replace the calls with gradients (a model that trains) or without (a parent). All
    other calls (with a cache, with a mask, for a measurement between two steps) go to the stack
    itself.
    narrow: the stream between the layers takes the dtype of autocast.
    """

    def __init__(
        self,
        stack: nn.Module,
        call: Callable[..., Any],
        *,
        gradients: bool = True,
        narrow: bool = False,
    ) -> None:
        self.stack, self.call, self.gradients, self.narrow = stack, call, gradients, narrow

    def __call__(self, *args: Any, **keys: Any) -> Any:
        """Run the stack."""
        if not self._suits(args, keys):
            return self.stack._call_impl(*args, **keys)
        with attends_causally(self.stack):
            return self.call(**(self._embedded(keys) if self.narrow else keys))

    def _suits(self, args: tuple[Any, ...], keys: dict[str, Any]) -> bool:
        if args or keys.get("use_cache") is not False or keys.get("input_ids") is None:
            return False
        if any(
            keys.get(name) is not None
            for name in ("attention_mask", "past_key_values", "position_ids")
        ):
            return False
        return torch.is_grad_enabled() == self.gradients

    def _embedded(self, keys: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with embeddings in the dtype of products in place of the ids."""
        ids: Tensor = keys["input_ids"]
        kind = ids.device.type
        if not torch.is_autocast_enabled(kind):
            return keys
        stack: Any = self.stack
        rows = stack.get_input_embeddings()(ids).to(torch.get_autocast_dtype(kind))
        return {
            **{name: value for name, value in keys.items() if name != "input_ids"},
            "inputs_embeds": rows,
        }
