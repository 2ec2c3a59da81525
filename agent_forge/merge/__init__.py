"""Merge models of one shape: a recipe is planned and checked whole, then carried out tensor by tensor.

A method is one file in `methods/`, found by its name: `METHOD` (what it needs, its parameters and their ranges) and
`merge(inputs) -> tensor`. Reads weights as name -> tensor mappings; writes into tensors that the caller owns.
Arithmetic is float32; the result is cast once. Sources: METHODS 2 and the papers named in each file.
"""

from agent_forge.merge.apply import merge_into, merge_tensor
from agent_forge.merge.layers import Layers, find_layers
from agent_forge.merge.method import Flag, Inputs, Method, Number, load_method, method_names
from agent_forge.merge.plan import Plan, TensorPlan, make_plan
from agent_forge.merge.recipe import Recipe, Slice, SliceSource, read_recipe
from agent_forge.merge.weights import Weights, require_finite, require_same_shapes

__all__ = [
    "Flag",
    "Inputs",
    "Layers",
    "Method",
    "Number",
    "Plan",
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
    "method_names",
    "read_recipe",
    "require_finite",
    "require_same_shapes",
]
