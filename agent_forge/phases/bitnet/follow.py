"""Compensate a model block by block, each layer aimed at what the parent's layer puts out on the
same text.

Rounding a layer against its own dense outputs leaves the errors of all layers before it where they
are, and they grow. Here the goal of a layer is the parent's output on the parent's stream, reached
from the student's stream: the best dense weight for that is W + mean(d xᵀ) (H + damping)⁻¹, d =
goal - W x, and it is that weight that is rounded (GPTAQ, arXiv:2504.02692). Departures: a layer
that writes into the residual stream also corrects the residual error so far, and there the error of
a token counts relative to the size of its stream. Reads parent, model and calibration windows;
changes the model's ternary layers.

Works where the ternary layers stand in blocks (members of a ModuleList) that run once each, one's
output being the next one's input: transformers' decoders. Other models are compensated in waves
(compensate.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.anatomy.stack import named_blocks, stream_out
from agent_forge.anatomy.watch import After, Before, Call, StopForward, run_until_stop, watching
from agent_forge.models.ternary import TENSOR, TernaryLinear, quantise_activations, ternary_layers
from agent_forge.phases.bitnet.compensate import (
    CalibrationRun,
    Rounding,
    compensate,
    compensate_in_waves,
)

# The largest share of a block's change to the stream that the outputs of its writers may leave
# unexplained: in bfloat16 their sum is not exact.
_ADDITIVE = 0.03


@dataclass(frozen=True, slots=True)
class Block:
    """A block and its ternary layers in the order in which they run; each group shares one
    input.
    """

    name: str
    groups: list[list[str]]  # full names


@torch.no_grad()
def blocks_in_line(model: nn.Module, ids: Tensor) -> list[Block]:
    """Return the blocks that hold all ternary layers which run, or [] where they do not stand in
    line. ids: (B, T).
    """
    layers, members = ternary_layers(model), named_blocks(model)
    if layers and all(any(name.startswith(f"{block}.") for block in members) for name in layers):
        return _observed(model, members, layers, ids[:1])
    return []


def _observed(
    model: nn.Module, members: dict[str, nn.Module], layers: dict[str, TernaryLinear], ids: Tensor
) -> list[Block]:
    """Return the blocks with the groups that one forward pass shows, or [] when one runs twice or
    out of line.
    """
    streams: dict[str, list[Tensor]] = {name: [] for name in members}
    inputs: list[tuple[str, Tensor]] = []

    def note_stream(name: str) -> After:
        return lambda _, args, output: streams[name].extend([*args[:1], stream_out(output)])

    def note_input(name: str) -> After:
        return lambda _, args, __: inputs.append((name, args[0]))

    hooks: list[tuple[nn.Module, After]] = [
        (block, note_stream(name)) for name, block in members.items()
    ]
    hooks += [(layer, note_input(name)) for name, layer in layers.items()]
    with watching(after=hooks):
        model(input_ids=ids, use_cache=False)
    if len({name for name, _ in inputs}) != len(inputs) or any(
        len(pair) != 2 for pair in streams.values()
    ):
        return []
    if any(before[1] is not after[0] for before, after in pairwise(streams.values())):
        return []
    return [Block(name, _same_input([(n, x) for n, x in inputs if n.startswith(f"{name}.")], layers))
            for name in members]  # fmt: skip


def _same_input(
    inputs: list[tuple[str, Tensor]], layers: dict[str, TernaryLinear]
) -> list[list[str]]:
    """Return names in groups by input.

    Rows do not depend on each other, so layers with one input are rounded at once.

    A layer with one scale per tensor stays alone.
    """
    groups: list[tuple[Tensor, list[str]]] = []
    for name, x in inputs:
        together = groups and groups[-1][0] is x and layers[name].grouping != TENSOR
        if (
            together
            and layers[groups[-1][1][0]].norm_weight is None
            and layers[name].norm_weight is None
        ):
            groups[-1][1].append(name)
        else:
            groups.append((x, [name]))
    return [names for _, names in groups]


@torch.no_grad()
def compensated(
    parent: nn.Module,
    model: nn.Module,
    calibration: CalibrationRun,
    waves: int,
    rounding: Rounding,
) -> dict[str, Tensor]:
    """Leave the model ternary with scales of its own, and return them and its latents: name +
    ".weight" or ".weight_scale".

    waves: read where the blocks do not stand in line. Layers that calibration never runs keep their
    latents; they are not returned.
    """
    layers = ternary_layers(model)
    blocks = blocks_in_line(model, calibration.windows[0])
    if blocks:
        names = BlockwiseCompensator(parent, model, calibration, rounding).run(blocks)
    else:
        names = compensate_in_waves(model, calibration, waves, rounding)
    state = {f"{name}.weight": layers[name].weight.detach().clone() for name in names}
    for name in names:
        scale = layers[name].weight_scale
        assert scale is not None
        state[f"{name}.weight_scale"] = scale.detach().clone()
    return state


class BlockwiseCompensator:
    """Goes through the blocks with the parent's stream and the student's, each one tensor (B, T, d)
    per batch of windows.
    """

    def __init__(
        self,
        parent: nn.Module,
        model: nn.Module,
        calibration: CalibrationRun,
        rounding: Rounding,
    ) -> None:
        self.parent, self.model, self.rounding = parent, model, rounding
        self.calibration = calibration
        self.layers = ternary_layers(model)

    @torch.no_grad()
    def run(self, blocks: Sequence[Block]) -> list[str]:
        """Compensate all layers, leaving them ternary with scales of their own; return their names
        in order.
        """
        total, done = sum(len(group) for block in blocks for group in block.groups), []
        calls = self._calls(self.parent, [block.name for block in blocks])
        target_stream = [call[blocks[0].name][0][0] for call in calls]
        stream = [call[blocks[0].name][0][0] for call in self._calls(self.model, [blocks[0].name])]
        for block in blocks:
            rest = [(call[block.name][0][1:], call[block.name][1]) for call in calls]
            goals, after = self._parents(block, target_stream, rest)
            additive = _is_additive(block, goals, target_stream, after)
            aim = _rows(target_stream)  # the parent's stream, as far as the block has come
            # What the student's stream lacks so far; a writer of this block can make up for it.
            gap = aim - _rows(stream)
            for group in block.groups:
                x, outputs = self._inputs(block, group, stream, rest)
                goal = torch.cat([goals[name] for name in group], 1)
                writes = len(group) == 1 and additive and goal.shape[1] == gap.shape[1]
                if writes:
                    aim = aim + goal
                    # The goal of a writer is the parent's output plus that gap; its error counts
                    # per token relative to the stream that the next norm will divide by.
                    self._compensate(group, x, goal + gap, _token_weights(aim))
                    # What rounding left of goal and gap passes on to the next writer.
                    gap = gap + goal - self._own(group[0], outputs)
                else:
                    self._compensate(group, x, goal, None)
                done += group
                self.calibration.progress(len(done), total)
            target_stream, stream = after, self._run(self.model, block, stream, rest)
        return done

    def _calls(self, model: nn.Module, blocks: Sequence[str]) -> list[dict[str, Call]]:
        """Return for each batch of windows the arguments of each of these blocks; only the first
        block's include the stream.
        """
        calls: list[dict[str, Call]] = []

        def note(name: str) -> Before:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls[-1][name] = (args if name == blocks[0] else (None, *args[1:]), kwargs)
                if name == blocks[-1]:
                    raise StopForward

            return hook

        with (
            watching(before=[(model.get_submodule(name), note(name)) for name in blocks]),
            self.calibration.autocast(),
        ):
            for ids in self.calibration.windows:
                calls.append({})
                run_until_stop(model, input_ids=ids, use_cache=False)
        return calls

    def _parents(
        self, block: Block, stream: list[Tensor], rest: list[Call]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the outputs of the parent's layers, (N, out) float32 by name, and its stream after
        the block.
        """
        names = [name for group in block.groups for name in group]
        outputs: dict[str, list[Tensor]] = {name: [] for name in names}

        def note(name: str) -> After:
            return lambda _, __, output: outputs[name].append(output.float().flatten(0, -2))

        with watching(after=[(self.parent.get_submodule(name), note(name)) for name in names]):
            after = self._run(self.parent, block, stream, rest)
        return {name: torch.cat(parts) for name, parts in outputs.items()}, after

    def _inputs(
        self, block: Block, group: list[str], stream: list[Tensor], rest: list[Call]
    ) -> tuple[Tensor, Tensor]:
        """Return a group's inputs in the student, (N, in) float32: rounded as the layer rounds
        them, and unrounded.
        """
        layer, raw = self.layers[group[0]], []

        def note(_: nn.Module, args: tuple[Any, ...], __: dict[str, Any]) -> None:
            raw.append(args[0])
            raise StopForward

        module = self.model.get_submodule(block.name)
        with watching(before=[(layer, note)]), self.calibration.autocast():
            for x, (args, kwargs) in zip(stream, rest, strict=True):
                run_until_stop(module, x, *args, **kwargs)
        inputs = torch.cat([part.flatten(0, -2) for part in raw])
        rows = layer.normed(inputs).float()
        return (
            quantise_activations(rows, layer.activation_bits) if layer.activation_bits else rows
        ), inputs

    def _compensate(
        self, group: list[str], x: Tensor, goal: Tensor, token_weights: Tensor | None
    ) -> None:
        """Round a group's layers for inputs x (N, in) and goal outputs (N, out).

        token_weights: (N, 1), how much the error of each token counts; None where all count alike.
        """
        weight = torch.cat([self.layers[name].weight for name in group]).float()
        missing = goal - x @ weight.T
        rows = [len(self.layers[name].weight) for name in group]
        for name, part in zip(group, missing.split(rows, 1), strict=True):
            bias = self.layers[name].bias
            if bias is not None:
                part -= bias.float()
        weighted = x if token_weights is None else x * token_weights
        latents, scales = compensate(
            weight,
            weighted.T @ x / len(x),
            self.layers[group[0]].grouping,
            self.rounding,
            missing.T @ weighted / len(x),
        )
        for name, part, own in zip(
            group, latents.split(rows), scales.expand(len(weight), -1).split(rows), strict=True
        ):
            self.layers[name].weight.copy_(part)
            self.layers[name].free_scales(own)
            self.layers[name].blend = 1.0

    def _own(self, name: str, inputs: Tensor) -> Tensor:
        with self.calibration.autocast():
            output: Tensor = self.layers[name](inputs)
        return output.float()

    def _run(
        self, model: nn.Module, block: Block, stream: list[Tensor], rest: list[Call]
    ) -> list[Tensor]:
        """Return the streams after a block of a model."""
        module = model.get_submodule(block.name)
        with self.calibration.autocast():
            return [
                stream_out(module(x, *args, **kwargs))
                for x, (args, kwargs) in zip(stream, rest, strict=True)
            ]


def _token_weights(stream: Tensor) -> Tensor:
    """Return how much the error of each token of a stream (N, d) counts: (N, 1), at most 4.

    It is 1 over the token's squared size, since a norm follows. The first token of a window is a
    hundred times as large as the others: unweighted, it would decide alone.
    """
    size = stream.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (size.median() / size).square().clamp_max(4.0)


def _is_additive(
    block: Block, goals: dict[str, Tensor], before: list[Tensor], after: list[Tensor]
) -> bool:
    """Return whether the block's output is its input plus the outputs of its writers.

    Writers are the layers that share their input with no other layer and have the stream's width.
    """
    change = _rows(after) - _rows(before)
    # Some architectures scale or norm what a branch writes; their gap cannot be corrected so
    # simply.
    residual = change.clone()
    for group in block.groups:
        if len(group) == 1 and goals[group[0]].shape[1] == change.shape[1]:
            residual -= goals[group[0]]
    return float(residual.norm()) <= _ADDITIVE * float(change.norm())


def _rows(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.float().flatten(0, -2) for part in parts])
