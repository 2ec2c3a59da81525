"""Merge candidates in memory, one after another, into one model; write nothing.

A layer path of another depth than the trunk's gets a model of that depth, of which only the latest is kept.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from agent_forge.core.errors import CheckpointError
from agent_forge.merge import Plan, Recipe, find_layers, make_plan, merge_into
from agent_forge.merge.layers import COUNT_KEYS, resize_config
from agent_forge.merge.methods.dfs import WRITERS
from agent_forge.models.storage import stored_tensors
from agent_forge.phases.evomerge.sources import Sources


class Stage:
    """Turns recipes into a model. The model that `show` returns is overwritten by the next call."""

    def __init__(self, sources: Sources, seed: int, between: Callable[[], None] = lambda: None) -> None:
        self.sources, self.seed, self.between = sources, seed, between
        self.depth = sources.layers.count if sources.layers else 0
        self._flat = sources.trunk
        self._stack: tuple[tuple[int, ...], PreTrainedModel] | None = None

    @property
    def layers(self) -> int:
        """Return the depth of the models, 0 where their layers cannot be rearranged."""
        config = self.sources.trunk.config.to_dict()
        counted = [config[key] for key in COUNT_KEYS if isinstance(config.get(key), int)]
        return self.depth if self.depth in counted[:1] else 0

    @property
    def scalable(self) -> bool:
        """Say whether the input of a layer can be scaled by scaling what layers write (see merge.methods.dfs).

        That needs pre-norm layers (two norms, or three in Cognate) whose writers have the known names.
        """
        stack = find_layers(self.sources.weights[self.sources.labels[0]].forms)
        if stack is None or not self.layers:
            return False
        rests = [
            place[1] for name in self.sources.weights[self.sources.labels[0]].forms if (place := stack.split(name))
        ]
        after_norms = any("feedforward_layernorm" in rest or "post_self_attn" in rest for rest in rests)
        return not after_norms and all(any(writer in rest for rest in rests) for writer in WRITERS)

    def plan(self, recipe: Recipe) -> Plan:
        """Return the checked plan of a recipe over the sources."""
        return make_plan(recipe, self.sources.weights)

    def show(self, recipe: Recipe) -> PreTrainedModel:
        """Return the merged model, in the dtype of the search."""
        plan = self.plan(recipe)
        model = self._model(plan)
        self._fill(plan, model)
        return model

    def make(self, recipe: Recipe, dtype: torch.dtype) -> PreTrainedModel:
        """Return the merged model as one of its own on the CPU, in `dtype`: what is written."""
        plan = self.plan(recipe)
        path = [layer for _, layer in plan.path] if plan.path else list(range(self.depth))
        model = build_like(self.sources.trunk, path if plan.path else None, dtype, torch.device("cpu"))
        self._fill(plan, model)
        return model

    def _fill(self, plan: Plan, model: PreTrainedModel) -> None:
        made, wanted = {tensor.target for tensor in plan.tensors}, set(stored_tensors(model))
        if made != wanted:
            first = sorted(made ^ wanted)[0]
            raise CheckpointError(
                f"the merge {'makes' if first in made else 'lacks'} the tensor {first}, against its model"
            )
        merge_into(plan, self.sources.weights, model.state_dict(), self.seed, self.between)

    def _model(self, plan: Plan) -> PreTrainedModel:
        if plan.path is None:
            return self._flat
        path = tuple(layer for _, layer in plan.path)
        content = self.sources.trunk.config.to_dict()
        if resize_config(content, path) == content:
            return self._flat
        if self._stack is None or self._stack[0] != path:
            self._stack = None
            trunk = self.sources.trunk
            self._stack = (path, build_like(trunk, list(path), trunk.dtype, trunk.device))
        return self._stack[1]


def build_like(
    trunk: PreTrainedModel, path: list[int] | None, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """Return a model of the trunk's kind with random weights, made of the layers `path` (None: all, in order).

    Every per-layer list of the config follows the path. The caller's random state is left alone.
    """
    content = trunk.config.to_dict()
    config = type(trunk.config).from_dict(resize_config(content, path) if path is not None else content)
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = type(trunk)(config)
    if trunk.generation_config is not None:
        model.generation_config = trunk.generation_config
    model.to(device=device, dtype=dtype)  # type: ignore[call-arg]
    model.eval()
    return model
