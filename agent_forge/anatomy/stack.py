"""The blocks of a model, the matrices in them and what each matrix is for: one rule for all models.

A block is a member of the list of modules (`nn.ModuleList`) that holds the most parameters and
buffers. In every decoder of transformers this list is the stack of layers: with or without experts,
inside a wrapper or not, with dense, ternary or coded linear layers (codes are buffers). Roles are
read from the names that Llama, Cognate, GPT-NeoX and similar models use. Reads modules; changes
nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from agent_forge.core.errors import PhaseError

_ATTENTION, _MLP = "(self_attn|attention|attn)", "(mlp|feed_forward|ffn)"
_ROLES = (
    ("query", rf"{_ATTENTION}.*(q_proj|query)$"),
    ("key", rf"{_ATTENTION}.*(k_proj|key)$"),
    ("value", rf"{_ATTENTION}.*(v_proj|value)$"),
    ("attention_out", rf"{_ATTENTION}.*(o_proj|out_proj|dense)$"),
    ("mlp_out", rf"{_MLP}.*(down_proj|fc2|w2|dense_4h_to_h)$"),
    ("mlp_in", rf"{_MLP}.*"),
)


def named_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks by their full names, first to last; empty for a model without a list."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not lists:
        return {}
    # Where a list inside another holds as much as the outer one, `max` takes the outer one, which
    # comes first.
    stack, members = max(lists, key=lambda item: _weight(item[1]))
    prefix = f"{stack}." if stack else ""
    return {f"{prefix}{index}": block for index, block in enumerate(members)}


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks, first to last; empty for a model without a list of modules."""
    return list(named_blocks(model).values())


def required_blocks(model: nn.Module, purpose: str) -> list[nn.Module]:
    """Return the blocks of a model. Raises PhaseError, which names `purpose`, where it has none."""
    members = blocks(model)
    if not members:
        raise PhaseError(
            f"{type(model).__name__} has no list of blocks, which {purpose} needs; take "
            "a model with a stack of layers"
        )
    return members


def _weight(module: nn.Module) -> int:
    """Return the number of entries in all parameters and buffers."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() for tensor in tensors)


def stream_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states (B, T, d) that a block was called with."""
    stream: Tensor = args[0] if args else kwargs["hidden_states"]
    return stream


def with_stream_in(
    args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a block with other hidden states."""
    if args:
        return (stream, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": stream}


def stream_out(output: Any) -> Tensor:
    """Return the hidden states from a block's output: the output itself, or a tuple's first."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def with_stream_out(output: Any, stream: Tensor) -> Any:
    """Return a block's output with other hidden states."""
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight (out, in) in a block.

    layer: the index of its block.
    role: query, key, value, attention_out, mlp_in, mlp_out or other.
    """

    name: str
    layer: int
    role: str
    numel: int

    @property
    def part(self) -> str:
        """Return attention, mlp or other."""
        if self.role.startswith("mlp"):
            return "mlp"
        return "other" if self.role == "other" else "attention"


def matrices(model: nn.Module) -> list[Matrix]:
    """Return the weights of the linear layers in a model's blocks, in model order."""
    seen: set[nn.Module] = set()  # a layer that two blocks share counts for the first
    return [
        Matrix(f"{name}.{inside}.weight", layer, role_of(inside), module.weight.numel())
        for layer, (name, block) in enumerate(named_blocks(model).items())
        for inside, module in block.named_modules(memo=seen)
        if isinstance(module, nn.Linear)
    ]


def role_of(name: str) -> str:
    """Return what a layer is for, from its name in a block; projections of a memory are `other`."""
    if "memory" in name:
        return "other"
    return next((role for role, pattern in _ROLES if re.search(pattern, name)), "other")
