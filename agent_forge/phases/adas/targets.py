"""Find the matrices of a causal LM that experts and edits may change, and say what each is for.

Looks for two-dimensional weights of linear modules under a numbered stack of layers; embeddings and the output head are
left alone. Names follow Llama, Cognate, GPT-NeoX and kin.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from agent_forge.core.errors import PhaseError

_PLACE = re.compile(r"(?:^|\.)(?:layers|blocks|h|layer)\.(\d+)\.(.+)\.weight$")
_ROLES = (
    ("query", r"(self_attn|attention|attn).*(q_proj|query)$"),
    ("key", r"(self_attn|attention|attn).*(k_proj|key)$"),
    ("value", r"(self_attn|attention|attn).*(v_proj|value)$"),
    ("attention_out", r"(self_attn|attention|attn).*(o_proj|out_proj|dense)$"),
    ("mlp_out", r"(mlp|feed_forward|ffn).*(down_proj|fc2|w2|dense_4h_to_h)$"),
    ("mlp_in", r"(mlp|feed_forward|ffn).*"),
)


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight (out, in). role: query, key, value, attention_out, mlp_in, mlp_out or other."""

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


def find_matrices(model: nn.Module) -> list[Matrix]:
    """Return the layer matrices in model order. Raises PhaseError when the model has none that we know."""
    found = []
    for module_name, module in model.named_modules():
        match = _PLACE.search(f"{module_name}.weight")
        if not isinstance(module, nn.Linear) or match is None:
            continue
        inside = match.group(2)
        role = next((r for r, pattern in _ROLES if re.search(pattern, inside) and "memory" not in inside), "other")
        found.append(Matrix(f"{module_name}.weight", int(match.group(1)), role, module.weight.numel()))
    roles = {matrix.role for matrix in found}
    if not {"attention_out", "mlp_out"} <= roles:
        raise PhaseError(
            f"{type(model).__name__} has no layer matrices that expert vectors know "
            f"(found: {', '.join(sorted(roles)) or 'none'}); "
            "adas works on models whose layers hold torch.nn.Linear attention and MLP projections"
        )
    return found


def within_budget(matrices: Sequence[Matrix], max_parameters: int) -> list[Matrix]:
    """Return all matrices of as many layers as fit into the budget, spread evenly over depth (at least one layer)."""
    layers: dict[int, list[Matrix]] = defaultdict(list)
    for matrix in matrices:
        layers[matrix.layer].append(matrix)
    order = sorted(layers)
    heaviest = max(sum(m.numel for m in group) for group in layers.values())
    count = min(len(order), max(1, max_parameters // heaviest))
    picks = {order[round(i * (len(order) - 1) / max(1, count - 1))] if count > 1 else order[-1] for i in range(count)}
    return [matrix for matrix in matrices if matrix.layer in picks]
