"""Recover what coding lost: scales of coded rows and all uncoded parameters learn, block by block
and then end to end.

Codes do not change, so neither does the rate: a row's scale is a factor on one output of a linear,
or on one token's embedding, and is written back into the payload. Reads the parent and the chosen
payloads; returns new payloads and the values of the uncoded parameters.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agent_forge import codecs, learn
from agent_forge.codecs.payload import Payload
from agent_forge.learn import Batches
from agent_forge.models import compressed
from agent_forge.models.compressed import (
    Coded,
    CompressedEmbedding,
    CompressedLinear,
    coded_modules,
)
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import Config, blockwise

STAGE = "recover"
GAIN = "row_gain"


def recovered(
    phase: PhaseRun[Config],
    parent: PreTrainedModel,
    picked: Mapping[str, Payload],
    windows: Tensor,
    batches: Batches,
) -> tuple[PreTrainedModel, dict[str, Payload]]:
    """Return a dense copy of `parent` with the trained uncoded parameters, and payloads with the
    trained scales.

    windows: (n, length) int64, for the blocks; batches: for the whole model. `compressed.compress`
    of the two results is the recovered model. Both stages survive a kill (see blockwise.align and
    learn.train).
    """
    config = phase.config.recover
    student = compressed.compress(light_copy(parent, picked), picked)
    parameters = trainable(student, picked)
    student.eval()
    if config.block_steps:
        blockwise.align(phase, parent, student, windows[: config.block_windows])
    if config.steps:
        learn.train(
            student,
            learn.TrainRequest(
                batches=batches,
                loss_fn=AsParent(parent),
                stage=STAGE,
                steps=config.steps,
                optim=config.optim,
                out=phase.out,
                events=phase.events,
                seed=phase.config.seed,
                parameters=parameters,
                device=parent.device,
                dtype=phase.dtype,
            ),
        )
    return _dense_copy(parent, student, picked), rescaled(student, picked)


class AsParent:
    """The loss that pulls a model's logits to the logits of `parent`."""

    def __init__(self, parent: PreTrainedModel) -> None:
        self.parent, self.teachers = parent, [parent]

    def __call__(
        self, model: nn.Module, batch: dict[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the KL of a batch in nats per token."""
        del step
        ids = batch["input_ids"]
        with torch.no_grad():
            targets = self.parent(input_ids=ids, use_cache=False).logits
        logits = model(input_ids=ids, use_cache=False).logits
        kl = learn.distill_loss(targets, logits, torch.ones_like(ids, dtype=torch.bool), 1.0)
        return kl, {"kl_nats": kl.detach()}


def light_copy(model: PreTrainedModel, coded: Iterable[str]) -> PreTrainedModel:
    """Return a copy that shares the tensors `coded` with `model`; `compressed.compress` will
    replace them by codes.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shared = [
        parameters[name] if name in parameters else parameters[f"{name}.weight"] for name in coded
    ]
    return copy.deepcopy(model, {id(parameter): parameter for parameter in shared})


def trainable(student: PreTrainedModel, picked: Mapping[str, Payload]) -> list[nn.Parameter]:
    """Give every coded layer with stored scales one gain per row; return the gains and the uncoded
    parameters.
    """
    own = [p for p in student.parameters() if p.requires_grad]
    modules = coded_modules(student)
    gains = []
    for name, module in modules.items():
        if (
            name in picked
            and codecs.scaled(picked[name], torch.ones(picked[name].shape[0])) is not None
        ):
            gains.append(nn.Parameter(torch.ones(picked[name].shape[0], device=student.device)))
            module.register_parameter(GAIN, gains[-1])
    for module in modules.values():
        holder = module._source[0] if module._source else module
        if hasattr(holder, GAIN):
            module.register_forward_hook(_times_gain(module, holder))
    return [*own, *gains]


def _times_gain(module: Coded, holder: Coded) -> Callable[..., Tensor]:
    """Return a hook that multiplies a layer's rows by the gains of the layer that holds its
    weight.
    """

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        gain: Tensor = holder.get_parameter(GAIN)
        if isinstance(module, CompressedEmbedding):
            return output * gain[inputs[0]][..., None]
        assert isinstance(module, CompressedLinear)
        gain = gain.to(output.dtype)
        return output * gain if module.bias is None else (output - module.bias) * gain + module.bias

    return hook


def rescaled(student: PreTrainedModel, picked: Mapping[str, Payload]) -> dict[str, Payload]:
    """Return the payloads with the gains of `student` in their scales."""
    payloads = dict(picked)
    for name, module in coded_modules(student).items():
        gain = getattr(module, GAIN, None)
        if gain is not None:
            scaled = codecs.scaled(picked[name], gain.detach().float().cpu())
            assert scaled is not None
            payloads[name] = scaled
    return payloads


@torch.no_grad()
def _dense_copy(
    parent: PreTrainedModel, student: PreTrainedModel, coded: Iterable[str]
) -> PreTrainedModel:
    """Return a light copy of `parent` with the uncoded parameters of `student`."""
    dense, coded = light_copy(parent, coded), set(coded)
    trained = dict(student.named_parameters())
    for name, parameter in dense.named_parameters():
        if name in trained and name not in coded:
            parameter.copy_(trained[name])
    return dense
