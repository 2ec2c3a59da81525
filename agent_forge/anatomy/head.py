"""Heads whose logits are one product with the stream, so that a loss can do without the logits."""

from typing import Any

from torch import Tensor, nn

# Models of transformers whose logits are lm_head(base(x)), without a scale or a soft cap.
PLAIN_HEADS = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)


def is_plain(model: Any) -> bool:
    """Return whether the logits of a model are its head's product with the stream, unchanged."""
    return type(model).__name__ in PLAIN_HEADS and type(model).__module__.startswith(
        "transformers."
    )


def plain_head(model: Any, *, rounded: bool = False) -> nn.Linear | None:
    """Return the output layer of a model whose logits are its product with the stream, else None.

    rounded: also accept a layer that trains through the rounding of its weight (it has
    `trained_weight`). Other subclasses (ternary, adapted) compute something else than weight @ x.
    """
    if not is_plain(model):
        return None
    head = model.get_output_embeddings()
    known = type(head) is nn.Linear or (
        rounded and isinstance(head, nn.Linear) and hasattr(head, "trained_weight")
    )
    return head if known and head.bias is None else None


def head_weight(head: nn.Linear) -> Tensor:
    """Return the weight that a plain head multiplies with, (V, d), connected to the trained one."""
    trained: Any = getattr(head, "trained_weight", None)
    weight: Tensor = head.weight if trained is None else trained()
    return weight
