"""What the ternary student learns from: its parent's logits and attention relations, and the real
next tokens.

loss = kl_weight T² KL(parent || student) + ce_weight CE + relation_weight KL(relations). The
relation of queries, keys or values is softmax(A Aᵀ / sqrt(width)) over the tokens of a window
(MiniLM, arXiv:2012.15828), taken at the last layer that has these projections; its width need not
fit between the two models. Reads a batch, writes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent_forge import learn
from agent_forge.anatomy.cross_entropy import IGNORE
from agent_forge.anatomy.head import head_weight, plain_head
from agent_forge.anatomy.watch import watching
from agent_forge.core.errors import ConfigError
from agent_forge.models.ternary import set_blend
from agent_forge.phases.bitnet import DistillConfig
from agent_forge.phases.bitnet.head_loss import LossWeights, head_loss

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def blend_at(step: int, steps: int, share: float) -> float:
    """Return lambda at a step: it rises from near 0 to 1 over the first `share` of the steps, then
    stays.
    """
    # Plus one on both sides: the first step is not wholly float, and the last rising one is below
    # 1.
    rising = share * steps
    return min(1.0, (step + 1) / (rising + 1)) if rising > 0 else 1.0


class Distillation:
    """The loss function of the training. It also sets lambda, which depends on the step alone.

    parent: the float model, in eval mode. pad: the token id of padding, where nothing is learned,
    or None.
    """

    def __init__(
        self,
        parent: nn.Module,
        config: DistillConfig,
        *,
        pad: int | None,
        steps: int,
        blend_share: float,
    ) -> None:
        self.parent, self.config, self.pad = parent, config, pad
        self.steps, self.blend_share = steps, blend_share
        self.teachers = [parent]  # what learn.train runs beside the model it trains
        self._blend: tuple[int, float] | None = None

    def __call__(
        self, model: Any, batch: dict[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the loss of a batch of {"input_ids", "labels"}, each (B, T) int64, and its
        parts.
        """
        self._set_blend(model, blend_at(step, self.steps, self.blend_share))
        config, ids = self.config, batch["input_ids"]
        relations, hidden = config.relation_weight > 0, config.hidden_weight > 0
        fused = all(plain_head(one, rounded=True) is not None for one in (model, self.parent))
        with projections(model, relations) as own:
            output = _outputs(model, ids, fused, hidden)
        taught = None
        if config.kl_weight > 0 or relations or hidden:
            with torch.no_grad(), projections(self.parent, relations) as parent_projections:
                taught = _outputs(self.parent, ids, fused, hidden)
        if fused and taught is not None:
            loss, parts = self._fused_losses(model, output, taught, batch)
        else:
            loss, parts = self._losses(output, taught, batch)
        if relations:
            parts["relation"] = relation_loss(parent_projections, own, config.relation_heads)
            loss = loss + config.relation_weight * parts["relation"]
        if hidden:
            parts["hidden"] = hidden_loss(_states(taught), _states(output), self._present(ids))
            loss = loss + config.hidden_weight * parts["hidden"]
        return loss, {name: value.detach() for name, value in parts.items()}

    def _set_blend(self, model: nn.Module, blend: float) -> None:
        """Set lambda where it has changed: looking for the layers of a large model takes
        milliseconds.
        """
        if self._blend != (id(model), blend):
            set_blend(model, blend)
            self._blend = (id(model), blend)

    def _fused_losses(
        self, model: Any, output: Any, taught: Any, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses on logits from the last hidden states, without holding the logits."""
        targets = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE).flatten()
        states, parent_states = (
            output.last_hidden_state.flatten(0, 1),
            taught.last_hidden_state.flatten(0, 1),
        )
        present = None if self.pad is None else self._present(batch["input_ids"]).flatten()
        if present is not None and present.device.type == "cpu":
            # Selecting positions makes an accelerator wait until their number is known, so there
            # the absent ones stay and get weight 0.
            if not bool(present.all()):
                states, parent_states, targets = (
                    states[present],
                    parent_states[present],
                    targets[present],
                )
            present = None
        weights = LossWeights(
            kl=self.config.kl_weight, ce=self.config.ce_weight, temperature=self.config.temperature
        )
        # The heads are read anew each step, because training moves them.
        both: tuple[Any, Any] = (model, self.parent)
        heads = [head_weight(one.get_output_embeddings()) for one in both]
        loss, kl, ce = head_loss(
            states, heads[0], parent_states, heads[1], targets, weights, present
        )
        return loss, {"kl": kl, "ce": ce}

    def _losses(
        self, output: Any, taught: Any, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses on logits of any model."""
        logits, labels = output.logits, batch["labels"]
        loss, parts = logits.new_zeros((), dtype=torch.float32), {}
        if self.config.kl_weight > 0:
            present = self._present(batch["input_ids"])
            parts["kl"] = learn.distill_loss(
                taught.logits, logits, present, self.config.temperature
            )
            loss = loss + self.config.kl_weight * parts["kl"]
        if self.config.ce_weight > 0 and learn.trained_tokens(batch):
            parts["ce"] = learn.next_token_loss(logits, labels)
            loss = loss + self.config.ce_weight * parts["ce"]
        return loss, parts

    def _present(self, ids: Tensor) -> Tensor:
        """Return where a token stands, (B, T) bool; the first token of a window always counts."""
        if self.pad is None:
            return torch.ones_like(ids, dtype=torch.bool)
        present = ids != self.pad
        present[:, 0] = True
        return present


@contextmanager
def projections(model: nn.Module, needed: bool) -> Iterator[dict[str, Tensor]]:
    """Collect queries, keys and values (B, T, D) of the last attention that runs over tokens inside
    the block.
    """
    tensors: dict[str, Tensor] = {}
    if not needed:
        yield tensors
        return
    outputs: dict[str, dict[str, Tensor]] = {}

    def hook(owner: str, kind: str) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            # Attention over a bank of slots has keys without a batch; relations are between
            # tokens, so it is left out.
            if output.dim() == 3:
                outputs.setdefault(owner, {})[kind] = output

        return note

    parts = [(name.rpartition("."), module) for name, module in model.named_modules()]
    with watching(
        after=[
            (module, hook(owner, kind)) for (owner, _, kind), module in parts if kind in PROJECTIONS
        ]
    ):
        yield tensors
    whole = [of for of in outputs.values() if len(of) == len(PROJECTIONS)]
    if not whole:
        raise ConfigError(
            f"distill.relation_weight is above 0, but no attention of {type(model).__name__} has "
            f"{', '.join(PROJECTIONS)}; set distill.relation_weight=0"
        )
    # The last attention, as in MiniLM: what it relates is nearest to what the head sees.
    tensors.update(whole[-1])


def _outputs(model: Any, ids: Tensor, fused: bool, hidden: bool) -> Any:
    """Return the outputs of a model, or only of the part below its head."""
    wishes = {"output_hidden_states": True} if hidden else {}
    return (model.base_model if fused else model)(input_ids=ids, use_cache=False, **wishes)


def _states(output: Any) -> Sequence[Tensor] | None:
    return getattr(output, "hidden_states", None)


def hidden_loss(
    parent: Sequence[Tensor] | None, student: Sequence[Tensor] | None, present: Tensor
) -> Tensor:
    """Return the squared error of the student's hidden states relative to the parent's, a mean over
    layers and tokens.

    parent, student: (B, T, D) each, the embedding's output first, which does not count, then the
    output of each layer. A token counts relative to its own size: the first one of a window is a
    hundred times as large as the others. present: (B, T) bool.
    """
    if (
        not parent
        or not student
        or len(parent) != len(student)
        or parent[-1].shape != student[-1].shape
    ):
        raise ConfigError(
            "distill.hidden_weight is above 0, but the model does not show as many hidden states of one size as its "
            "parent; set distill.hidden_weight=0"
        )
    losses, picks = (
        [],
        present.device.type == "cpu",
    )  # an accelerator would wait until they are counted
    for target, output in zip(parent[1:], student[1:], strict=True):
        goal = (target[present] if picks else target).float()
        error = ((output[present] if picks else output).float() - goal).square().sum(-1)
        relative = error / goal.square().sum(-1).clamp_min(1e-12)
        losses.append(relative.mean() if picks else (relative * present).sum() / present.sum())
    return torch.stack(losses).mean()


def relation_loss(parent: dict[str, Tensor], student: dict[str, Tensor], heads: int) -> Tensor:
    """Return the mean KL in nats between the relations of parent and student, over projections,
    heads and tokens.
    """
    losses = []
    for kind in PROJECTIONS:
        target, output = _relations(parent[kind], heads), _relations(student[kind], heads)
        losses.append(
            functional.kl_div(output, target, reduction="none", log_target=True).sum(-1).mean()
        )
    return torch.stack(losses).mean()


def _relations(projected: Tensor, heads: int) -> Tensor:
    """Return log softmax(A Aᵀ / sqrt(width)): (B, heads, T, T), from (B, T, D)."""
    if projected.shape[-1] % heads:
        raise ConfigError(
            f"distill.relation_heads={heads} does not divide the projections' width {projected.shape[-1]}; "
            "try distill.relation_heads=1"
        )
    # In float32: the logits of a relation are sums of squares, and bfloat16 would round their
    # order.
    split = projected.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    likeness = split @ split.transpose(-1, -2)
    return functional.log_softmax(likeness / split.shape[-1] ** 0.5, dim=-1)
