"""Merge models of one shape: a recipe is checked as a whole, then carried out tensor by tensor.

A method is one file in `methods/`, found by its name: `METHOD` (what it needs, its parameters and
their ranges) and `merge(inputs) -> piece`. `stream` merges from files into files; `apply` merges
tensors in memory and alone needs torch. Arithmetic is float32, or float64 for models stored in 16
bits; the result is cast once. Sources: the papers named in each file.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_forge.merge.apply import merge_into, merge_tensor, merge_tensors
    from agent_forge.merge.layers import Layers, find_layers
    from agent_forge.merge.method import Flag, Inputs, Method, Number, load_method, method_names
    from agent_forge.merge.plan import MergePlan, TensorPlan, make_plan
    from agent_forge.merge.recipe import Recipe, Slice, SliceSource, parse_recipe, read_recipe
    from agent_forge.merge.weights import Weights, require_finite, require_same_shapes

# Names are imported on first use: a merge of files starts without torch, and whoever only reads
# weights (merge/files.py) without the rest.
_HOMES = {
    "merge_into": "apply", "merge_tensor": "apply", "merge_tensors": "apply", "Weights": "weights",
    "require_finite": "weights", "require_same_shapes": "weights", "Layers": "layers",
    "find_layers": "layers", "Flag": "method", "Inputs": "method", "Method": "method",
    "Number": "method", "load_method": "method", "method_names": "method", "MergePlan": "plan",
    "TensorPlan": "plan", "make_plan": "plan", "Recipe": "recipe", "Slice": "recipe",
    "SliceSource": "recipe", "parse_recipe": "recipe", "read_recipe": "recipe",
}  # fmt: skip

__all__ = [
    "Flag",
    "Inputs",
    "Layers",
    "MergePlan",
    "Method",
    "Number",
    "Recipe",
    "Slice",
    "SliceSource",
    "TensorPlan",
    "Weights",
    "find_layers",
    "load_method",
    "make_plan",
    "merge_into",
    "merge_tensor",
    "merge_tensors",
    "method_names",
    "parse_recipe",
    "read_recipe",
    "require_finite",
    "require_same_shapes",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"agent_forge.merge.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
