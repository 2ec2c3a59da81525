"""Look at a model on a little text: what each layer changes, what each branch writes, and which way task text points.

Source of block influence: ShortGPT, arXiv:2403.03853 (1 - cosine between a layer's input and output).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agent_forge.data.windows import cut_left, positions
from agent_forge.phases.adas.targets import Matrix


@torch.no_grad()
def look(
    model: PreTrainedModel, matrices: Sequence[Matrix], plain: Sequence[Sequence[int]], tasks: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Return influence/<layer> (), share/<matrix> () and stream/<layer> (d) as tensors, for `remember_tensors`.

    plain, tasks: token ids of neutral and of task texts, run one at a time.
    """
    watch = _Watch(model, matrices)
    try:
        means = []
        for texts in (plain, tasks):
            watch.clear()
            for ids in texts:
                fitting = cut_left(ids, positions(model.config) or len(ids))
                model(input_ids=torch.tensor([fitting], device=model.device), use_cache=False)
            means.append({layer: total / watch.tokens[layer] for layer, total in watch.stream.items()})
            if texts is plain:
                found = {f"influence/{layer}": watch.changed[layer] / watch.tokens[layer] for layer in watch.stream}
                found |= {f"share/{name}": total / watch.written[name] for name, total in watch.share.items()}
        found |= {f"stream/{layer}": means[1][layer] - means[0][layer] for layer in means[0]}
    finally:
        watch.remove()
    return {name: value.float().cpu() for name, value in found.items()}


class _Watch:
    """Forward hooks on layers and output matrices; a looped stack counts every pass."""

    def __init__(self, model: nn.Module, matrices: Sequence[Matrix]) -> None:
        self.clear()
        self._handles = []
        layers = {matrix.layer: _layer_module(model, matrix) for matrix in matrices}
        for layer, module in layers.items():
            self._handles.append(module.register_forward_hook(self._on_layer(layer)))
        for matrix in matrices:
            if matrix.role in ("attention_out", "mlp_out"):
                module = model.get_submodule(matrix.name.removesuffix(".weight"))
                self._handles.append(module.register_forward_hook(self._on_branch(matrix)))

    def clear(self) -> None:
        self.stream: dict[int, Tensor] = {}
        self.changed: dict[int, Tensor] = {}
        self.tokens: dict[int, int] = defaultdict(int)
        self.share: dict[str, Tensor] = {}
        self.written: dict[str, int] = defaultdict(int)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _on_layer(self, layer: int) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            before, after = inputs[0].float(), (output[0] if isinstance(output, tuple) else output).float()
            cosine = torch.cosine_similarity(before, after, dim=-1)
            self.changed[layer] = self.changed.get(layer, torch.zeros((), device=after.device)) + (1 - cosine).sum()
            total = after.flatten(0, -2).sum(0)
            self.stream[layer] = self.stream[layer] + total if layer in self.stream else total
            self.tokens[layer] += cosine.numel()

        return hook

    def _on_branch(self, matrix: Matrix) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            norm = output.float().norm(dim=-1)
            self.share[matrix.name] = self.share.get(matrix.name, torch.zeros((), device=norm.device)) + norm.sum()
            self.written[matrix.name] += norm.numel()

        return hook


def _layer_module(model: nn.Module, matrix: Matrix) -> nn.Module:
    """Return the layer that holds a matrix: the module named up to its number."""
    parts = matrix.name.split(".")
    place = next(i for i, part in enumerate(parts) if part == str(matrix.layer))
    return model.get_submodule(".".join(parts[: place + 1]))
