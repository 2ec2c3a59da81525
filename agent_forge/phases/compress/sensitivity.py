"""How much the loss rises when a tensor changes: second-order estimates from calibration windows.

A linear layer used N times over T tokens, with inputs x and output gradients g, costs
½ N/T Σ_o E[g_o²] ΔW_o E[x xᵀ] ΔW_oᵀ nats a token; an embedding the same with its rows' counts and E[g gᵀ]; any other
tensor ½/T Σ F ΔW² with the squared gradients F of single windows. Labels are drawn from the model, not from the text.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from agent_forge.checkpoint import Workspace
from agent_forge.core.errors import PhaseError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import torch_generator
from agent_forge.models.compressed import as_matrix, coded_tensors, tied_modules

UNSEEN_TOKENS = 0.5  # added to every token's count: a token the windows lack still matters


@dataclass(slots=True)
class Use:
    """One way a tensor enters the loss. rows: (out,) weight of each row; columns: (in, in); together nats a token."""

    rows: Tensor
    columns: Tensor


@dataclass(slots=True)
class Sensitivity:
    """Second-order loss model of one tensor; empty when the windows never reached it."""

    uses: list[Use] = field(default_factory=list)
    fisher: Tensor | None = None  # (rows, columns), for tensors that are neither linear nor embedding

    @property
    def known(self) -> bool:
        """Say whether calibration reached the tensor."""
        return bool(self.uses) or self.fisher is not None

    def distortion(self, error: Tensor) -> float:
        """Return the estimated rise of the loss in nats a token for an error (rows, columns) of the weights."""
        total = sum(float(use.rows @ ((error @ use.columns) * error).sum(1)) for use in self.uses)
        if self.fisher is not None:
            total += float((self.fisher * error.square()).sum())
        return 0.5 * max(total, 0.0)

    def hessian(self) -> Tensor | None:
        """Return what error compensation needs, (columns, columns); None when only a diagonal is known."""
        if not self.uses:
            return None
        return torch.stack([use.columns * use.rows.mean() for use in self.uses]).sum(0)


@dataclass(slots=True)
class _Sums:
    """Running sums over all uses of one module. second: inputs of a linear, gradients of an embedding."""

    second: Tensor
    rows: Tensor  # Σ g² of a linear's outputs, or token counts of an embedding
    uses: int = 0


class Collector:
    """Hooks that gather Σ x xᵀ and Σ g² of every linear and embedding while windows pass forth and back."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.sums: dict[str, _Sums] = {}
        self.fisher: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                out, width = module.weight.shape
                device = module.weight.device
                self.sums[name] = _Sums(torch.zeros(width, width, device=device), torch.zeros(out, device=device))
                self._handles.append(module.register_forward_hook(self._forward_hook(self.sums[name])))
        coded = set(coded_tensors(model))
        self.others = {name: p for name, p in model.named_parameters() if name in coded}

    @staticmethod
    def _forward_hook(sums: _Sums) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            if isinstance(module, nn.Embedding):
                sums.rows += torch.bincount(x.flatten(), minlength=len(sums.rows))
            else:
                flat = x.flatten(0, -2).float()
                sums.second += flat.T @ flat
                sums.uses += len(flat)
            if output.requires_grad:
                output.register_hook(lambda gradient: _note_gradient(sums, gradient, isinstance(module, nn.Embedding)))

        return note

    def note_parameters(self) -> None:
        """Add the squared gradients of the other tensors after one window's backward pass."""
        for name, parameter in self.others.items():
            if parameter.grad is not None:
                square = as_matrix(parameter.grad.detach().float().square())
                self.fisher[name] = self.fisher.get(name, torch.zeros_like(square)) + square

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def _note_gradient(sums: _Sums, gradient: Tensor, of_embedding: bool) -> None:
    flat = gradient.detach().flatten(0, -2).float()
    if of_embedding:
        sums.second += flat.T @ flat
        sums.uses += len(flat)
    else:
        sums.rows += flat.square().sum(0)


def measure(
    model: PreTrainedModel, windows: Tensor, seed: int, out: Workspace, events: EventLog
) -> dict[str, Sensitivity]:
    """Return the sensitivity of every tensor of `coded_tensors`, from windows (n, length) int64.

    Raises PhaseError when the loss is not finite: a model that is broken already cannot be calibrated.
    """
    collector = Collector(model)
    model.eval()
    try:
        for step, window in enumerate(windows):
            out.check_stop()
            model.zero_grad(set_to_none=True)
            logits = model(input_ids=window[None].to(model.device), use_cache=False).logits[0].float()
            with torch.no_grad():
                generator = torch_generator(seed, "compress", "labels", step)
                labels = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            if not bool(loss.isfinite()):
                raise PhaseError(
                    "the loss on calibration text is not finite; compress a checkpoint that passed its gate"
                )
            loss.backward()
            collector.note_parameters()
            events.progress("calibrate", step + 1, len(windows))
    finally:
        collector.close()
        model.zero_grad(set_to_none=True)
    return _assemble(model, collector, windows.numel())


def _assemble(model: PreTrainedModel, collector: Collector, tokens: int) -> dict[str, Sensitivity]:
    modules = dict(model.named_modules())
    found = {name: Sensitivity() for name in coded_tensors(model)}
    shared = tied_modules(model)
    for name, sums in collector.sums.items():
        if sums.uses:
            embedding = isinstance(modules[name], nn.Embedding)
            found[shared.get(name, name)].uses.append(_use(sums, embedding, tokens))
    for name, square in collector.fisher.items():
        found[name].fisher = (square / tokens).cpu()
    return found


def _use(sums: _Sums, embedding: bool, tokens: int) -> Use:
    rows = sums.rows + UNSEEN_TOKENS if embedding else sums.rows
    return Use((rows / tokens).cpu(), (sums.second / sums.uses).cpu())
