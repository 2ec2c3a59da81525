"""Measure on a little text what each layer changes, what each branch writes, and which way task
text points.

Source of block influence: ShortGPT, arXiv:2403.03853 (1 - cosine between a layer's input and
output).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agent_forge.anatomy.stack import Matrix, blocks, stream_out
from agent_forge.anatomy.watch import After, watching
from agent_forge.data.windows import begin_ids, cut_left, positions


@torch.no_grad()
def measure_influence(
    model: PreTrainedModel,
    matrices: Sequence[Matrix],
    plain: Sequence[Sequence[int]],
    tasks: Sequence[Sequence[int]],
    counted_from: tuple[Sequence[int], Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """Return influence/<layer> (), share/<matrix> () and stream/<layer> (d) as tensors, for
    `remember_tensors`.

    plain, tasks: token ids of neutral and of task texts, run one at a time. counted_from: of each
    plain and each task text the first token whose hidden states count; None counts all.
    """
    starts = counted_from or ([0] * len(plain), [0] * len(tasks))
    watch = _Watch()
    with watching(after=watch.hooks(model, matrices)):
        means = []
        for texts, firsts in zip((plain, tasks), starts, strict=True):
            watch.clear()
            for ids, first in zip(texts, firsts, strict=True):
                limit = positions(model.config) or len(ids)
                fitting = cut_left(ids, limit, begin_ids(model.config))
                watch.first = max(first - (len(ids) - len(fitting)), 0)
                model(input_ids=torch.tensor([fitting], device=model.device), use_cache=False)
            means.append(
                {layer: total / watch.tokens[layer] for layer, total in watch.stream.items()}
            )
            if texts is plain:
                tensors = {
                    f"influence/{layer}": watch.changed[layer] / watch.tokens[layer]
                    for layer in watch.stream
                }
                tensors |= {
                    f"share/{name}": total / watch.written[name]
                    for name, total in watch.share.items()
                }
        # The difference of the two means points from neutral text to task text (a steering vector).
        tensors |= {f"stream/{layer}": means[1][layer] - means[0][layer] for layer in means[0]}
    return {name: value.float().cpu() for name, value in tensors.items()}


class _Watch:
    """Sums over tokens, per layer and per output matrix; a looped stack counts every pass."""

    def __init__(self) -> None:
        self.first = 0  # tokens before this one do not count towards the stream
        self.clear()

    def hooks(self, model: nn.Module, matrices: Sequence[Matrix]) -> list[tuple[nn.Module, After]]:
        """Return pairs of a module and the hook to call after it."""
        stack = blocks(model)
        layers = [
            (stack[layer], self._on_layer(layer))
            for layer in dict.fromkeys(m.layer for m in matrices)
        ]
        branches = [
            (model.get_submodule(matrix.name.removesuffix(".weight")), self._on_branch(matrix))
            for matrix in matrices
            if matrix.role in ("attention_out", "mlp_out")
        ]
        return layers + branches

    def clear(self) -> None:
        self.stream: dict[int, Tensor] = {}
        self.changed: dict[int, Tensor] = {}
        self.tokens: dict[int, int] = defaultdict(int)
        self.share: dict[str, Tensor] = {}
        self.written: dict[str, int] = defaultdict(int)

    def _on_layer(self, layer: int) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            before, after = (
                part[:, self.first :].float() for part in (inputs[0], stream_out(output))
            )
            # Of directions, because what a layer adds in length alone is divided out by the next
            # norm.
            cosine = torch.cosine_similarity(before, after, dim=-1)
            self.changed[layer] = (
                self.changed.get(layer, torch.zeros((), device=after.device)) + (1 - cosine).sum()
            )
            # Summed over tokens here; the mean is taken at the end over all texts.
            total = after.flatten(0, -2).sum(0)
            self.stream[layer] = self.stream[layer] + total if layer in self.stream else total
            self.tokens[layer] += cosine.numel()

        return hook

    def _on_branch(self, matrix: Matrix) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            norm = output.float().norm(dim=-1)
            self.share[matrix.name] = (
                self.share.get(matrix.name, torch.zeros((), device=norm.device)) + norm.sum()
            )
            self.written[matrix.name] += norm.numel()

        return hook
