"""Train expert vectors: SVF gains and a task vector for every domain.

SVF: W' = W + U diag(S * g) V^T, the delta form of W' = U diag(S * z) V^T with g = z - 1, so g = 0
is exactly W. Task vector: W' = W + D. Loss: cross-entropy on the domain plus KL(base || expert) at
the same positions, so that an expert stays near the base. Reads a model and leaves it untouched;
returns an ExpertBank. Sources: Transformer^2, arXiv:2501.06252, which trains the gains by REINFORCE;
here that is `experts.svf_by=policy` (policy.py), beside cross-entropy; arXiv:2212.04089.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agent_forge import data, learn
from agent_forge.anatomy.cross_entropy import IGNORE
from agent_forge.anatomy.stack import Matrix
from agent_forge.core.seeds import seed_for, torch_generator
from agent_forge.phases import PhaseRun
from agent_forge.phases.adas import Config
from agent_forge.phases.adas.policy import policy_of

Tensors = dict[str, Tensor]


@dataclass(slots=True, kw_only=True)
class ExpertBank:
    """Everything that techniques compose. All tensors are float32, on the model's device.

    base: each weight (out, in) by name. factors: its U (out, r), S (r) and V^T (r, in). gains[k]:
    the gains g (r) of domain k. deltas[k]: the task vector (out, in) of domain k.
    """

    domains: list[str]
    matrices: list[Matrix]
    base: Tensors
    factors: dict[str, tuple[Tensor, Tensor, Tensor]]
    gains: list[Tensors]
    deltas: list[Tensors]
    density: float
    rank_share: float
    seed: int

    @property
    def depth(self) -> int:
        """Return the number of the deepest layer, at least 1."""
        return max(1, *(matrix.layer for matrix in self.matrices))

    def spread(self, name: str, gain: Tensor) -> Tensor:
        """Return U diag(S * gain) V^T of one matrix: what singular gains add to it."""
        u, s, vh = self.factors[name]
        return (u * (s * gain)) @ vh

    def randomised(self, label: str) -> "ExpertBank":
        """Return a bank whose vectors are random, each with the norm of the one it stands for."""
        generator = torch_generator(self.seed, "adas", "random vectors", label)

        def noise(tensors: Tensors) -> Tensors:
            samples = {
                k: torch.randn(v.shape, generator=generator).to(v.device)
                for k, v in tensors.items()
            }
            return {
                # Equal norms: a random vector of another size would be a weaker or a stronger
                # control.
                k: samples[k] * (v.norm() / samples[k].norm().clamp_min(1e-12))
                for k, v in tensors.items()
            }

        gains, deltas = [noise(g) for g in self.gains], [noise(d) for d in self.deltas]
        return replace(self, gains=gains, deltas=deltas)


class Adapted(nn.Module):
    """A frozen model computed with changed matrices; only `vectors` train, the model's tensors are
    never written.
    """

    model: PreTrainedModel
    bank: ExpertBank

    def __init__(self, model: PreTrainedModel, bank: ExpertBank, kind: str) -> None:
        super().__init__()
        # Set past nn.Module, so that the model is not a submodule: its mode and the flags of its
        # gradients stay as they are.
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "bank", bank)
        self.kind = kind
        shapes = {
            name: bank.factors[name][1] if kind == "svf" else weight
            for name, weight in bank.base.items()
        }
        self.names = list(shapes)
        self.vectors = nn.ParameterList(
            nn.Parameter(torch.zeros_like(shape)) for shape in shapes.values()
        )

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        """Return what the model computes of (B, T) tokens with the changed matrices."""
        every = {"input_ids": input_ids, "use_cache": False, **inputs}
        return torch.func.functional_call(self.model, self.changed(), (), every)

    def changed(self) -> Tensors:
        """Return the changed matrices by name."""
        changed = {}
        for name, vector in zip(self.names, self.vectors, strict=True):
            delta = self.bank.spread(name, vector) if self.kind == "svf" else vector
            # Composed in float32 and cast once, so that small deltas are not lost in bfloat16.
            changed[name] = (self.bank.base[name] + delta).to(self.model.get_parameter(name).dtype)
        return changed

    @contextmanager
    def in_place(self) -> Iterator[PreTrainedModel]:
        """Let the model itself have the changed matrices; afterwards it has its own again, bit for
        bit.
        """
        own = {name: self.model.get_parameter(name).detach().clone() for name in self.names}
        with torch.no_grad():
            for name, weight in self.changed().items():
                self.model.get_parameter(name).copy_(weight)
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for name, weight in own.items():
                    self.model.get_parameter(name).copy_(weight)

    def tensors(self) -> Tensors:
        """Return the trained vectors by matrix name."""
        return {
            name: vector.detach().clone()
            for name, vector in zip(self.names, self.vectors, strict=True)
        }


def anchored_loss(kl_weight: float) -> learn.LossFn:
    """Return a loss function: cross-entropy plus `kl_weight` * KL(base || expert), both over the
    trained positions. On an accelerator no position is picked out.
    """

    def loss(
        adapted: Adapted,
        batch: Mapping[str, Tensor],
        step: int,  # noqa: ARG001 (every loss takes it)
    ) -> tuple[Tensor, dict[str, Tensor]]:
        labels = batch["labels"]
        logits = adapted(batch["input_ids"]).logits
        cross_entropy = learn.next_token_loss(logits, labels)
        if kl_weight == 0:
            return cross_entropy, {"cross_entropy": cross_entropy.detach()}
        with torch.no_grad():
            before = adapted.model(input_ids=batch["input_ids"], use_cache=False).logits
        trained = labels[:, 1:] != IGNORE
        # KL(base || expert): it is large where the expert gives no chance to what the base would
        # say.
        drift = learn.distill_loss(before[:, :-1], logits[:, :-1], trained, 1.0)
        return cross_entropy + kl_weight * drift, {
            "cross_entropy": cross_entropy.detach(),
            "kl": drift.detach(),
        }

    return loss


def empty_bank(model: PreTrainedModel, matrices: Sequence[Matrix], config: Config) -> ExpertBank:
    """Return a bank with base weights and their singular value decompositions, and no expert
    yet.
    """
    base = {
        matrix.name: model.get_parameter(matrix.name).detach().float().clone()
        for matrix in matrices
    }
    return ExpertBank(
        domains=list(config.domains), matrices=list(matrices), base=base,
        factors={name: torch.linalg.svd(weight, full_matrices=False) for name, weight in base.items()},
        gains=[], deltas=[], density=config.experts.density, rank_share=config.experts.rank_share, seed=config.seed,
    )  # fmt: skip


def train_bank(
    phase: PhaseRun[Config], model: PreTrainedModel, matrices: Sequence[Matrix]
) -> tuple[ExpertBank, list[dict[str, Any]]]:
    """Return the trained bank and a table: domain, kind, loss at the first and the last step (nats
    per token).

    The decompositions are kept in the workspace beside the experts, because computing them again
    could flip the sign of a singular vector.
    """
    bank = empty_bank(model, matrices, phase.config)
    parts = phase.out.remember_tensors(
        "factors",
        lambda: {
            f"{k}/{n}": v for n, f in bank.factors.items() for k, v in zip("usv", f, strict=True)
        },
    )
    bank.factors = {
        name: tuple(parts[f"{k}/{name}"].to(model.device) for k in "usv")  # type: ignore[misc]
        for name in bank.base
    }
    table = []
    for domain in phase.config.domains:
        for kind in ("svf", "task"):
            vectors, row = _train_one(phase, model, bank, domain, kind)
            (bank.gains if kind == "svf" else bank.deltas).append(vectors)
            table.append(row)
    return bank, table


def _train_one(
    phase: PhaseRun[Config], model: PreTrainedModel, bank: ExpertBank, domain: str, kind: str
) -> tuple[Tensors, dict[str, Any]]:
    experts = phase.config.experts
    steps, lr = (
        (experts.svf_steps, experts.svf_lr)
        if kind == "svf"
        else (experts.task_steps, experts.task_lr)
    )
    row: dict[str, Any] = {"domain": domain, "kind": kind, "steps": steps}
    adapted = Adapted(model, bank, kind)
    is_gain = kind == "svf" and steps > 0
    rewarded = policy_of(phase, model, domain, Adapted.in_place) if is_gain else None
    if rewarded is not None:
        policy, share = rewarded
        _fit(phase, adapted, policy.batches, policy.loss, f"expert-{domain}-{kind}", (steps, lr))
        with adapted.in_place() as changed:
            after = policy.share_right(changed)
        return adapted.tensors(), row | {
            "kind": "svf by policy", "right_before": share, "right_after": after,
        }  # fmt: skip
    losses = [
        record.metrics["cross_entropy"]
        for record in _fit(
            phase, adapted, _rows_of(phase, domain), anchored_loss(experts.kl_weight),
            f"expert-{domain}-{kind}", (steps, lr),
        )
    ]  # fmt: skip
    if losses:
        row |= {"first_loss_nats": losses[0], "last_loss_nats": losses[-1]}
    return adapted.tensors(), row


def _rows_of(phase: PhaseRun[Config], domain: str) -> data.Mixture:
    """Return batches of a domain's training rows."""
    config, experts = phase.config, phase.config.experts
    source = data.source(
        domain,
        config.data,
        phase.tokenizer,
        "train",
        seed_for(config.seed, "adas", "rows", domain),
        rows=experts.rows,
    )
    return data.Mixture(
        {domain: source}, {domain: 1.0}, rows=experts.batch_rows, length_tokens=experts.length_tokens,
        seed=seed_for(config.seed, "adas", "batches"), name=domain,
    )  # fmt: skip


def _fit(
    phase: PhaseRun[Config],
    adapted: Adapted,
    batches: learn.Batches,
    loss_fn: learn.LossFn,
    stage: str,
    schedule: tuple[int, float],
) -> list[learn.StepRecord]:
    """Train the vectors of `adapted` for (steps, peak learning rate) in `schedule`."""
    model, (steps, lr) = adapted.model, schedule
    # The model's weights are frozen, so that no gradient is computed for them.
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    try:
        return learn.train(
            adapted,
            learn.TrainRequest(
                batches=batches,
                loss_fn=loss_fn,
                stage=stage,
                steps=steps,
                optim=replace(phase.config.experts.optim, lr=lr),
                out=phase.out,
                events=phase.events,
                seed=phase.config.seed,
                parameters=list(adapted.vectors),
                device=model.device,
            ),
        )
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
