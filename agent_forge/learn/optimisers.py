"""AdamW, or Muon for hidden matrices with AdamW for the rest; warm-up, flat, linear cool-down
(WSD).

Muon (muon.py) is meant for 2-D hidden matrices only; embeddings, the head, gates and 1-D parameters
stay with AdamW (arXiv:2509.02046). Weight decay acts on matrices, not on embeddings, norms and
biases.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.config import OptimConfig
from agent_forge.core.errors import ConfigError
from agent_forge.learn.distribution import laid_out_like
from agent_forge.learn.muon import Muon

MUON_MOMENTUM = 0.95
Parameters = Iterable[nn.Parameter] | Iterable[Mapping[str, Any]]


def wsd(step: int, steps: int, warmup_steps: int, cooldown_share: float) -> float:
    """Return the share of the peak learning rate at `step` (0-based).

    It rises linearly, stays at 1, and falls linearly to zero.
    """
    # The first step has a rate above 0: with a rate of 0 its batch would teach nothing.
    rising = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    cooling_steps = round(cooldown_share * steps)
    falling = (steps - step) / cooling_steps if step >= steps - cooling_steps else 1.0
    return min(rising, falling)


class Optimisers:
    """The optimisers of one stage and the names of what they train.

    named: (name, parameter) in a fixed order; a parameter outside the model is named after its
    place. Raises ConfigError when nothing is trainable, or a group is not {"params", "lr_scale"}.
    """

    def __init__(
        self, model: nn.Module, config: OptimConfig, parameters: Parameters | None
    ) -> None:
        self.config = config
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        embeddings = _embedding_ids(model)
        self.named: list[tuple[str, nn.Parameter]] = []
        adam_groups: list[dict[str, Any]] = []
        muon_groups: list[dict[str, Any]] = []
        for lr_scale, group in _groups(model, parameters):
            split: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "plain": []}
            for parameter in group:
                name = names.get(id(parameter), f"extra.{len(self.named)}")
                self.named.append((name, parameter))
                split[_kind(parameter, config.method, id(parameter) in embeddings)].append(
                    parameter
                )
            if split["muon"]:
                muon_groups.append({"params": split["muon"], "lr_scale": lr_scale})
            for kind, decay in (("decay", config.weight_decay), ("plain", 0.0)):
                if split[kind]:
                    adam_groups.append(
                        {"params": split[kind], "lr_scale": lr_scale, "weight_decay": decay}
                    )
        if not self.named:
            raise ConfigError(
                "nothing to train: no parameter requires a gradient; unfreeze some of the model"
            )
        if len({id(parameter) for _, parameter in self.named}) != len(self.named):
            raise ConfigError("a parameter stands in two groups of `parameters`; name each once")
        self._fused = _fusable(self.named)
        self.all: list[torch.optim.Optimizer] = []
        self._peaks: list[float] = []
        if adam_groups:
            betas = (config.beta1, config.beta2)
            self.all.append(
                torch.optim.AdamW(adam_groups, lr=config.lr, betas=betas, fused=self._fused)
            )
            self._peaks.append(config.lr)
        if muon_groups:
            decay = config.weight_decay
            self.all.append(
                Muon(muon_groups, lr=config.muon_lr, weight_decay=decay, momentum=MUON_MOMENTUM)
            )
            self._peaks.append(config.muon_lr)
        self._owner = {
            id(p): one for one in self.all for group in one.param_groups for p in group["params"]
        }

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained."""
        return [parameter for _, parameter in self.named]

    def set_scale(self, scale: float) -> float:
        """Set every learning rate to its peak times `scale`, times its group's own scale.

        Return AdamW's learning rate, without the scale of a group.
        """
        for optimiser, peak in zip(self.all, self._peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * scale * group["lr_scale"]
        return self._peaks[0] * scale

    def step(self) -> None:
        """Update the parameters from their gradients."""
        for optimiser in self.all:
            optimiser.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimiser in self.all:
            optimiser.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimisers' state, named "<parameter>|<entry>"."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.named:
            for optimiser in self.all:
                for key, value in optimiser.state.get(parameter, {}).items():
                    tensors[f"{name}|{key}"] = value
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned.

        Parameters without an entry start afresh, and unknown entries are left out.
        """
        parameters = dict(self.named)
        for optimiser in self.all:
            optimiser.state.clear()
        for full, value in tensors.items():
            name, key = full.rsplit("|", 1)
            if name not in parameters:
                continue
            parameter = parameters[name]
            # An unfused AdamW counts its steps on the CPU.
            device = parameter.device if key != "step" or self._fused else torch.device("cpu")
            self._owner[id(parameter)].state[parameter][key] = laid_out_like(
                value.detach().to(device, copy=True), parameter
            )


def outside(model: nn.Module, parameters: Sequence[Any] | None) -> list[nn.Parameter]:
    """Return the `parameters` that are not the model's own."""
    if parameters is None:
        return []
    own = {id(parameter) for parameter in model.parameters()}
    return [p for _, group in _groups(model, parameters) for p in group if id(p) not in own]


def _kind(parameter: nn.Parameter, method: str, embedding: bool) -> str:
    if parameter.ndim < 2 or embedding:
        return "plain"
    if method == "muon" and parameter.ndim == 2 and min(parameter.shape) > 1:
        return "muon"
    return "decay"


def _groups(
    model: nn.Module, parameters: Parameters | None
) -> list[tuple[float, Sequence[nn.Parameter]]]:
    """Return (lr_scale, parameters) groups; without `parameters`, all that the model trains."""
    if parameters is None:
        return [(1.0, [parameter for parameter in model.parameters() if parameter.requires_grad])]
    entries = list(parameters)
    if all(isinstance(entry, Tensor) for entry in entries):
        return [(1.0, entries)]  # type: ignore[list-item]
    groups: list[tuple[float, Sequence[nn.Parameter]]] = []
    for entry in entries:
        if (
            not isinstance(entry, Mapping)
            or "params" not in entry
            or set(entry) - {"params", "lr_scale"}
        ):
            raise ConfigError(
                f'a parameter group is {{"params": [...], "lr_scale": x}}, got {type(entry).__name__}'
            )
        groups.append((float(entry.get("lr_scale", 1.0)), list(entry["params"])))
    return groups


def _embedding_ids(model: nn.Module) -> set[int]:
    """Return the ids of embedding and output weights: Muon and weight decay leave them alone."""
    ids = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    get_head: Any = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    if head is not None and getattr(head, "weight", None) is not None:
        ids.add(id(head.weight))
    return ids


def _fusable(named: Sequence[tuple[str, nn.Parameter]]) -> bool:
    """Fused AdamW needs floating-point parameters on one kind of device that has the kernel."""
    devices = {parameter.device.type for _, parameter in named}
    return devices <= {"cpu"} or devices <= {"cuda"}
