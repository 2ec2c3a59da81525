"""Merge candidates in memory from what they share; write nothing.

A merged candidate stays until its place is needed, so that the next rung of a race finds it. At
most `candidates` models are alive at once.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from agent_forge.core.errors import CheckpointError
from agent_forge.merge import MergePlan, Recipe, find_layers, make_plan, merge_into
from agent_forge.merge.bank import Bank
from agent_forge.merge.layers import COUNT_KEYS, resize_config
from agent_forge.merge.methods.dfs import WRITERS
from agent_forge.models.storage import stored_tensors
from agent_forge.phases.evomerge.sources import LayerPath, Sources


class Stage:
    """Turns recipes into models. The next call of `show` may overwrite the model it returned."""

    def __init__(
        self,
        sources: Sources,
        seed: int,
        candidates: int = 1,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.sources, self.seed, self.between = sources, seed, between
        self.depth = sources.layers.count if sources.layers else 0
        self.bank = Bank(sources.weights, sources.labels[0], seed, sources.form.device)
        self.candidates = candidates
        self.alive: OrderedDict[str, tuple[LayerPath, PreTrainedModel]] = OrderedDict()

    @property
    def layers(self) -> int:
        """Return the depth of the models, 0 where their layers cannot be rearranged."""
        config = self.sources.form.config.to_dict()
        counted = [config[key] for key in COUNT_KEYS if isinstance(config.get(key), int)]
        return self.depth if self.depth in counted[:1] else 0

    @property
    def scalable(self) -> bool:
        """Return whether scaling what layers write scales the input of a layer.

        That needs pre-norm layers (two norms, or three in Cognate) in which the matrices that write
        to the stream have the known names; see merge.methods.dfs.
        """
        stack = find_layers(self.sources.weights[self.sources.labels[0]].forms)
        if stack is None or not self.layers:
            return False
        rests = [
            place[1]
            for name in self.sources.weights[self.sources.labels[0]].forms
            if (place := stack.split(name))
        ]
        after_norms = any(
            "feedforward_layernorm" in rest or "post_self_attn" in rest for rest in rests
        )
        return not after_norms and all(any(writer in rest for rest in rests) for writer in WRITERS)

    def plan(self, recipe: Recipe) -> MergePlan:
        """Return the checked plan of a recipe over the sources."""
        return make_plan(recipe, self.sources.weights)

    def show(self, recipe: Recipe, key: str) -> PreTrainedModel:
        """Return the merged model, in the dtype of the search.

        key: the candidate's name; a model that is still alive under it is returned as it is.
        """
        if key in self.alive:
            self.alive.move_to_end(key)
            return self.alive[key][1]
        plan = self.plan(recipe)
        path, model = self._place(self._path(plan))
        self._check(plan, model)
        self.bank.merge_into(plan, model.state_dict(), self.between)
        self.alive[key] = (path, model)
        return model

    def make(self, recipe: Recipe, dtype: torch.dtype) -> PreTrainedModel:
        """Return the merged model that is written: a new one on the CPU, in `dtype`."""
        plan = self.plan(recipe)
        model = self.sources.form.build(self._path(plan), dtype, torch.device("cpu"))
        self._check(plan, model)
        merge_into(plan, self.sources.weights, model.state_dict(), self.seed, self.between)
        return model

    def _check(self, plan: MergePlan, model: PreTrainedModel) -> None:
        plan_names, model_names = (
            {tensor.target for tensor in plan.tensors},
            set(stored_tensors(model)),
        )
        if plan_names != model_names:
            first = sorted(plan_names ^ model_names)[0]
            raise CheckpointError(
                f"the merge {'makes' if first in plan_names else 'lacks'} the tensor {first}, against its model"
            )

    def _path(self, plan: MergePlan) -> LayerPath:
        if plan.path is None:
            return None
        path = tuple(layer for _, layer in plan.path)
        content = self.sources.form.config.to_dict()
        return None if resize_config(content, path) == content else path

    def _place(self, path: LayerPath) -> tuple[LayerPath, PreTrainedModel]:
        """Return a model of the layers `path` to merge into, and its path.

        It is a new one while there is room. After that the longest unused model of the same layers
        is overwritten; without such a model, the longest unused of all makes room for a new one.
        """
        if len(self.alive) >= self.candidates:
            alike = next((key for key, (other, _) in self.alive.items() if other == path), None)
            if alike is not None:
                return self.alive.pop(alike)
            self.alive.popitem(last=False)
        form = self.sources.form
        return path, form.build(path, form.dtype, form.device)
