"""The model that an export writes: as torch loads it, without the wrapper that thinks."""

from pathlib import Path
from typing import Any

from agent_forge import models


def load(source: Path, *, can_think: bool) -> tuple[Any, list[str]]:
    """Return the model and lines to tell the user.

    can_think: whether the format can hold a thought model whose gate opens.

    A thought model with a shut gate answers as its base does, so the base alone is written.
    """
    model = models.load(source)
    if model.config.model_type != "thought":
        return model, []
    gate = model.config.gate_entropy_nats
    if gate is None:
        return model.base, [
            "the gate of its thoughts is shut: the base model alone, which answers the same"
        ]
    if can_think:
        return model, []
    return model.base, [
        f"the base model alone: its thoughts, which begin at {gate} nats of entropy, stay behind"
    ]


def plain_value(model: Any, name: str) -> Any:
    """Return the tensor that a layer multiplies with, by the name that it has in a plain model.

    Raises PhaseError for a layer that normalises its input, because a plain model cannot do that.
    """
    from agent_forge.models.conv1d import is_transposed
    from agent_forge.models.ternary import refuse_norm

    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    refuse_norm(module, "this export")
    ternary = getattr(module, "quantised_weight", None)
    value = ternary() if ternary and leaf == "weight" else getattr(module, leaf)
    return value.T if leaf == "weight" and is_transposed(module) else value
