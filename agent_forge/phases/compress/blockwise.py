"""Recover block by block: the free parameters of a coded block learn to reproduce the parent
block's outputs.

The free parameters are the scales of coded rows, norms and biases. Blocks are trained from first to
last. Each reads the outputs of the coded blocks before it and aims at the outputs of the parent's
block inside the parent, so that it also corrects their errors. A block is the member of the model's
stack (anatomy/stack.py); its arguments are recorded from whole passes, so any architecture will do,
looped ones too. Source: BRECQ, arXiv:2102.05426 (there rounding is learnt; here codes stay).
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agent_forge.anatomy.stack import named_blocks, stream_out
from agent_forge.anatomy.watch import Call, recorded_calls
from agent_forge.models.compressed import coded_modules
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import Config, RecoverConfig

STAGE = "align"


def coded_blocks(model: nn.Module) -> list[str]:
    """Return the names of the blocks, first to last; empty when one of them holds no codes."""
    coded, names = list(coded_modules(model)), list(named_blocks(model))
    whole = all(any(inner.startswith(f"{name}.") for inner in coded) for name in names)
    return names if whole else []


def align(
    phase: PhaseRun[Config],
    parent: PreTrainedModel,
    student: PreTrainedModel,
    windows: Tensor,
) -> dict[str, tuple[float, float]]:
    """Train the free parameters of each block of `student` in place; windows: (n, length) int64.

    Returns the error of each block before and after, relative to its output. A block that is done
    is read back after a kill. A block whose error did not fall keeps its values.
    """
    config, out = phase.config.recover, phase.out
    errors = {}
    names = coded_blocks(student)
    for index, name in enumerate(names):
        out.check_stop()
        block = student.get_submodule(name)
        free = {key: p for key, p in block.named_parameters() if p.requires_grad}

        def trained(name: str = name, free: dict[str, nn.Parameter] = free) -> dict[str, Tensor]:
            before, after = _train_block(parent, student, name, windows, config)
            return {
                **{key: p.detach().cpu() for key, p in free.items()},
                "errors": torch.tensor([before, after]),
            }

        state = out.remember_tensors(f"{STAGE}-{index:03}", trained)
        with torch.no_grad():
            for key, parameter in free.items():
                parameter.copy_(state[key])
        before, after = state["errors"].tolist()
        errors[name] = (before, after)
        phase.events.progress(
            STAGE, index + 1, len(names), {"error_before": before, "error_after": after}
        )
    return errors


def _train_block(
    parent: PreTrainedModel,
    student: PreTrainedModel,
    name: str,
    windows: Tensor,
    config: RecoverConfig,
) -> tuple[float, float]:
    """Train what is free in one block; return its relative error before and after, both over all
    windows.
    """
    targets = [_pass(parent, name, ids)[1] for ids in windows]
    calls = [_pass(student, name, ids)[0] for ids in windows]
    block = student.get_submodule(name)
    free = [parameter for parameter in block.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in free]
    before = _error(block, calls, targets)
    optimiser = torch.optim.Adam(free, lr=config.block_lr)
    for step in range(config.block_steps):
        # The rate falls to 0, so that the last windows do not leave their noise in the scales.
        optimiser.param_groups[0]["lr"] = config.block_lr * (1 - step / config.block_steps)
        optimiser.zero_grad(set_to_none=True)
        _loss(block, calls[step % len(calls)], targets[step % len(calls)]).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    after = _error(block, calls, targets)
    if not after < before:  # "not <" also catches an error that is NaN
        with torch.no_grad():
            for parameter, value in zip(free, start, strict=True):
                parameter.copy_(value)
        after = before
    return before, after


def _pass(model: PreTrainedModel, name: str, ids: Tensor) -> tuple[list[Call], list[Tensor]]:
    """Return the arguments and the outputs of a block in one pass over ids (length,), one of each
    per call.
    """
    looped = getattr(model.config, "max_loops", 1) > 1
    ids = ids[None].to(model.device)
    with torch.no_grad():
        return recorded_calls(
            model, model.get_submodule(name), once=not looped, input_ids=ids, use_cache=False
        )


def _loss(block: nn.Module, calls: list[Call], targets: list[Tensor]) -> Tensor:
    """Return the squared error of each token's output over its own square, averaged.

    The next norm divides by a token's size as well; without that, an attention sink outweighs the
    rest.
    """
    total = torch.zeros((), device=targets[0].device)
    for (arguments, named), target in zip(
        calls, targets, strict=False
    ):  # a looped model may exit earlier than its parent
        error = (stream_out(block(*arguments, **named)) - target).square().sum(-1)
        total = total + (error / target.square().sum(-1).clamp_min(1e-12)).mean()
    return total / max(min(len(calls), len(targets)), 1)


@torch.no_grad()
def _error(block: nn.Module, calls: list[list[Call]], targets: list[list[Tensor]]) -> float:
    return float(sum(_loss(block, *both) for both in zip(calls, targets, strict=True))) / len(calls)
