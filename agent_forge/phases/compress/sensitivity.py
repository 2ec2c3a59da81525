"""How much the loss rises when a tensor changes: second-order estimates from calibration windows.

A linear layer used N times over T tokens, with inputs x and output gradients g, costs ½ N/T Σ_o
E[g_o²] ΔW_o E[x xᵀ] ΔW_oᵀ nats per token; an embedding costs the same with its rows' counts and
E[g gᵀ]; any other tensor costs ½/T Σ F ΔW² with the squared gradients F of single windows. Labels
are drawn from the model, not the text; the output head needs none: its E[g²] is E[p (1 - p)].
Tokens may be counted on far more text than the windows, because no model has to read it. The tokens
that were never seen share the probability of the tokens seen once (Good and Turing: Good 1953,
doi:10.1093/biomet/40.3-4.237). A share of the weight of rows goes to text of unknown kind
(`with_other_text`), so that no row of embedding or head is left with next to nothing.

The sums Σ x xᵀ of all layers together can be larger than the model. `measure` therefore holds the
sums of one part of the layers at a time and runs the windows forward again for each further part;
only the first pass needs gradients.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agent_forge.anatomy.moments import SharedMoments, second_moment
from agent_forge.anatomy.watch import After, watching
from agent_forge.core.errors import PhaseError
from agent_forge.core.seeds import torch_generator
from agent_forge.models.compressed import as_matrix, coded_tensors, tied_modules
from agent_forge.models.scaled_embedding import scale_of
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import Config

# The least importance of a row, as a share of the mean row's importance: other text than the
# calibration's uses other rows.
ROW_FLOOR = 0.02
# The number of ids before Zipf's law holds: a byte-level alphabet comes first in a vocabulary,
# without any order of frequency.
ZIPF_OFFSET = 256


@dataclass(slots=True)
class Use:
    """One way in which a tensor enters the loss.

    rows: (out,), the weight of each row; columns: (in, in). Their product is in nats per token.
    """

    rows: Tensor
    columns: Tensor


@dataclass(slots=True)
class Sensitivity:
    """Second-order loss model of one tensor; empty when the windows never reached it."""

    uses: list[Use] = field(default_factory=list)
    fisher: Tensor | None = (
        None  # (rows, columns), for tensors that are neither linear nor embedding
    )

    @property
    def known(self) -> bool:
        """Return whether calibration reached the tensor."""
        return bool(self.uses) or self.fisher is not None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors from which `of` restores this sensitivity."""
        content = {"none": torch.zeros(0)} if self.fisher is None else {"fisher": self.fisher}
        for index, use in enumerate(self.uses):
            content |= {f"rows-{index}": use.rows, f"columns-{index}": use.columns}
        return content

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Sensitivity":
        """Return the sensitivity that `tensors` gave."""
        count = sum(name.startswith("rows-") for name in tensors)
        return cls(
            [Use(tensors[f"rows-{i}"], tensors[f"columns-{i}"]) for i in range(count)],
            tensors.get("fisher"),
        )

    def to(self, device: torch.device) -> "Sensitivity":
        """Return the same on `device`."""
        uses = [Use(use.rows.to(device), use.columns.to(device)) for use in self.uses]
        return Sensitivity(uses, None if self.fisher is None else self.fisher.to(device))

    def distortion(self, error: Tensor) -> float:
        """Return the estimated rise of the loss in nats per token for an error (rows, columns) of
        the weights.
        """
        total = sum(float(use.rows @ ((error @ use.columns) * error).sum(1)) for use in self.uses)
        if self.fisher is not None:
            total += float((self.fisher * error.square()).sum())
        return 0.5 * max(total, 0.0)

    def curvature(self) -> tuple[Tensor, Tensor] | None:
        """Return (rows, columns (in, in)) whose product stands for the second derivative in nats
        per token, or None.

        Several uses, and a Fisher matrix without structure, are replaced by the product that agrees
        with them in every row's trace and in the sum over rows.
        """
        if self.fisher is not None:
            rows, columns = self.fisher.mean(1), torch.diag(self.fisher.mean(0))
        elif self.uses:
            rows = torch.stack([use.rows * use.columns.trace() for use in self.uses]).sum(0)
            columns = torch.stack([use.columns * use.rows.mean() for use in self.uses]).sum(0)
        else:
            return None
        rows = rows / rows.mean().clamp_min(1e-30)
        rows = rows.clamp_min(ROW_FLOOR)
        return rows / rows.mean(), columns


@dataclass(slots=True)
class _Sums:
    """Running sums over all uses of one module.

    second: Σ x xᵀ of a linear's inputs, or Σ g gᵀ of an embedding's gradients; None where it is not
    held.
    """

    rows: Tensor  # Σ g² of a linear's outputs, or token counts of an embedding
    second: Tensor | None = None
    uses: int = 0
    exact: bool = False  # rows come from the probabilities themselves


class Collector:
    """Hooks that gather Σ x xᵀ and Σ g² of linears and embeddings during forward and backward
    passes.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.sums: dict[str, _Sums] = {}
        self.fisher: dict[str, Tensor] = {}
        self.first = True  # only the first pass counts uses and gradients
        self._hooks = ExitStack()
        self._moments = SharedMoments()
        self.outputs: dict[str, Tensor] = {}
        self._frozen: list[Tensor] = []
        head = model.get_output_embeddings()
        hooks: list[tuple[nn.Module, After]] = []
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                self.sums[name] = _Sums(
                    torch.zeros(len(module.weight), device=module.weight.device)
                )
                hooks.append((module, self._forward_hook(self.sums[name])))
                # Only the gradients of outputs are needed; leaving out the weights'
                # gradients saves a third of the work, and memory.
                if module.weight.requires_grad:
                    module.weight.requires_grad_(False)
                    self._frozen.append(module.weight)
                if module is head:
                    hooks.append((module, self._keep_output(name)))
        self._hooks.enter_context(watching(after=hooks))
        coded = set(coded_tensors(model))
        self.others = {name: p for name, p in model.named_parameters() if name in coded}

    def hold(self, model: PreTrainedModel, names: list[str]) -> None:
        """Make room for Σ x xᵀ of the modules `names`."""
        for name in names:
            weight = model.get_parameter(f"{name}.weight")
            self.sums[name].second = torch.zeros(
                weight.shape[1], weight.shape[1], device=weight.device
            )

    def _forward_hook(self, sums: _Sums) -> After:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            embeds = isinstance(module, nn.Embedding)
            factor = scale_of(module) or 1.0  # a row counts as often as it is multiplied
            if not embeds and sums.second is not None:
                sums.second += self._moments.of(inputs[0])
            if not self.first:
                return output
            if embeds:
                output = output.detach().requires_grad_()
                sums.rows += torch.bincount(inputs[0].flatten(), minlength=len(sums.rows))
            else:
                sums.uses += inputs[0].numel() // inputs[0].shape[-1]
            if output.requires_grad:
                output.register_hook(
                    lambda gradient: _note_gradient(sums, gradient, embeds, factor)
                )
            return output

        return note

    def _keep_output(self, name: str) -> After:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            self.outputs[name] = output

        return keep

    def note_head(self, logits: Tensor, probabilities: Tensor) -> None:
        """Add E[g²] = p (1 - p) when the logits are the output of a head itself; a drawn label
        would only add noise.
        """
        self._moments.forget()
        for name, output in self.outputs.items():
            if output is logits:
                self.sums[name].exact = True
                self.sums[name].rows += (
                    probabilities.sum(0) - probabilities.square().sum(0)
                ).clamp_min_(0)
        self.outputs.clear()

    def note_parameters(self) -> None:
        """Add the squared gradients of the other tensors after one window's backward pass."""
        for name, parameter in self.others.items():
            if parameter.grad is not None:
                square = as_matrix(parameter.grad.detach().float().square())
                self.fisher[name] = self.fisher.get(name, torch.zeros_like(square)) + square

    def close(self) -> None:
        """Remove the hooks and let the weights train again."""
        self._hooks.close()
        for parameter in self._frozen:
            parameter.requires_grad_(True)


def _note_gradient(sums: _Sums, gradient: Tensor, of_embedding: bool, factor: float) -> None:
    if of_embedding:
        assert sums.second is not None
        sums.second += second_moment(gradient if factor == 1 else gradient.float() * factor)
        sums.uses += gradient.numel() // gradient.shape[-1]
    # A head whose E[g²] is known exactly needs no squared gradients of drawn labels.
    elif not sums.exact:
        sums.rows += gradient.detach().flatten(0, -2).float().square().sum(0)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What sensitivities are measured on.

    windows: (n, length) int64 token ids.
    counts: (vocabulary,) of each token in more text than the windows; it replaces their own counts.
    limit_bytes: the size of the sums Σ x xᵀ held at once, or one tensor's if that is more; the
    figures are the same at any limit.
    other_share: the share of the weight of the rows of embedding and head that goes to text of
    unknown kind (`with_other_text`).
    """

    windows: Tensor
    counts: Tensor | None = None
    limit_bytes: float = math.inf
    other_share: float = 0.0


def measure(
    phase: PhaseRun[Config], model: PreTrainedModel, calibration: Calibration
) -> Iterator[tuple[str, Sensitivity]]:
    """Yield the sensitivity of every tensor of `coded_tensors`.

    Raises PhaseError when the logits are not finite: a model that is broken already cannot be
    calibrated.
    """
    windows, seed = calibration.windows, phase.config.seed
    collector = Collector(model)
    model.eval()
    parts = _parts(model, calibration.limit_bytes)
    try:
        for number, part in enumerate(parts):
            collector.hold(model, [name for names in part.values() for name in names])
            for step, window in enumerate(windows):
                phase.out.check_stop()
                ids = window[None].to(model.device)
                if collector.first:
                    _forth_and_back(
                        model, ids, collector, torch_generator(seed, "compress", "labels", step)
                    )
                else:
                    with torch.no_grad():
                        # Later parts only need inputs: no gradients, and no logits but one.
                        model(input_ids=ids, use_cache=False, logits_to_keep=1)
                phase.events.progress(
                    "calibrate", number * len(windows) + step + 1, len(parts) * len(windows)
                )
            if collector.first:
                for name in collector.others:
                    square = collector.fisher.pop(name, None)
                    yield (
                        name,
                        Sensitivity(
                            fisher=None if square is None else (square / windows.numel()).cpu()
                        ),
                    )
            collector.first = False
            for name, modules in part.items():
                yield name, _assembled(model, modules, collector, calibration)
    finally:
        collector.close()
        model.zero_grad(set_to_none=True)


def _parts(model: PreTrainedModel, limit_bytes: float) -> list[dict[str, list[str]]]:
    """Return the coded tensors, each with the modules that use it, in parts whose sums fit.

    Embeddings and head are in the first part: they need gradients, and the logits of all tokens.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    shared = tied_modules(model)
    users: dict[str, list[str]] = {}
    for name, module in modules.items():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            users.setdefault(shared.get(name, name), []).append(name)
    head = model.get_output_embeddings()
    first = {
        n: any(isinstance(modules[u], nn.Embedding) or modules[u] is head for u in users[n])
        for n in users
    }
    parts: list[dict[str, list[str]]] = [{}]
    part_bytes = 0
    for name in sorted(users, key=lambda name: not first[name]):
        size = sum(4 * model.get_parameter(f"{user}.weight").shape[1] ** 2 for user in users[name])
        if parts[-1] and part_bytes + size > limit_bytes and not first[name]:
            parts.append({})
            part_bytes = 0
        parts[-1][name] = users[name]
        part_bytes += size
    return parts


def _forth_and_back(
    model: PreTrainedModel, ids: Tensor, collector: Collector, generator: torch.Generator
) -> None:
    """Pass one window (1, length) forward, and the gradient of a drawn label's loss back."""
    model.zero_grad(set_to_none=True)
    raw = model(input_ids=ids, use_cache=False).logits
    # The gradient of cross-entropy is p less one at the label. It replaces p in place to save
    # memory.
    gradient = raw.detach()[0].float().softmax(-1)
    if not bool(gradient.isfinite().all()):
        raise PhaseError(
            "the logits on calibration text are not finite; compress a checkpoint that passed its gate"
        )
    labels = torch.multinomial(gradient.cpu(), 1, generator=generator).to(gradient.device)
    collector.note_head(raw, gradient)
    gradient.scatter_add_(1, labels, gradient.new_full(labels.shape, -1.0))
    raw.backward(gradient[None].to(raw.dtype))
    del raw, gradient
    collector.note_parameters()


def remembered(
    phase: PhaseRun[Config], model: PreTrainedModel, calibration: Calibration
) -> Callable[[str], Sensitivity]:
    """Return a reader of sensitivities by tensor name; they are measured once and then lie on disk,
    one file per tensor.
    """
    files = {name: f"sensitivity-{index:04}" for index, name in enumerate(coded_tensors(model))}

    def measured(target_name: str) -> dict[str, Tensor]:
        content: dict[str, Tensor] = {}
        for name, sensitivity in measure(phase, model, calibration):
            if name == target_name:
                content = sensitivity.tensors()
            elif name in files:
                phase.out.remember_tensors(files[name], sensitivity.tensors)
        return content

    def read(name: str) -> Sensitivity:
        return Sensitivity.of(phase.out.remember_tensors(files[name], lambda: measured(name)))

    for name in list(files)[:1]:
        read(name)
    return read


def good_turing(counts: Tensor) -> Tensor:
    """Return expected counts (rows,) of seen and unseen tokens, with the same sum as `counts`.

    The unseen tokens together get the total of the tokens seen once, spread evenly; the counts of
    seen tokens are scaled down to make room.
    """
    unseen, once = counts == 0, float((counts == 1).sum())
    total, missing = float(counts.sum()), int(unseen.sum())
    if not missing or not total:
        return counts
    share = min(max(once, 1.0) / total, 0.5)
    return torch.where(unseen, counts.new_full((), share * total / missing), counts * (1 - share))


def with_other_text(rows: Tensor, share: float) -> Tensor:
    """Return weights (rows,) of tokens, a `share` of which is spread by Zipf's law; their sum
    stays the same.

    r_i = (1 - share) r̂_i + share Σ r̂ · π_i with π_i ∝ 1 / (i + ZIPF_OFFSET): interpolation with a
    prior (Jelinek and Mercer 1980), the law in Mandelbrot's form (1953). A vocabulary lists its
    pieces in the order in which training made them, the most frequent pairs first, so an id stands
    for the rank in the text that the tokenizer was trained on, which is broader than any
    calibration. `share` is how much of what the model will read is of no kind in the calibration.
    """
    if not share:
        return rows
    prior = 1 / (torch.arange(len(rows), dtype=torch.float64, device=rows.device) + ZIPF_OFFSET)
    prior = (prior / prior.sum()).to(rows)
    return rows * (1 - share) + share * rows.sum() * prior


def _assembled(
    model: PreTrainedModel,
    modules: list[str],
    collector: Collector,
    calibration: Calibration,
) -> Sensitivity:
    """Return the sensitivity of the tensor that `modules` use, and free its sums."""
    sensitivity, tokens = Sensitivity(), calibration.windows.numel()
    for name in modules:
        sums, module = collector.sums.pop(name), model.get_submodule(name)
        if sums.uses:
            assert sums.second is not None
            rows = sums.rows
            if isinstance(module, nn.Embedding):
                read = module is model.get_input_embeddings()
                rows = _expected_counts(sums.rows, calibration.counts if read else None)
            if module is model.get_input_embeddings() or module is model.get_output_embeddings():
                rows = with_other_text(rows, calibration.other_share)
            sensitivity.uses.append(Use((rows / tokens).cpu(), sums.second.div_(sums.uses).cpu()))
        sums.second = None  # the hooks of the other parts go on
    return sensitivity


def _expected_counts(seen: Tensor, counts: Tensor | None) -> Tensor:
    """Return expected counts (rows,) with the sum of `seen`, in the proportions of `counts` where
    these are given.
    """
    if counts is None:
        return good_turing(seen)
    counts = nn.functional.pad(counts.to(seen), (0, len(seen) - len(counts)))
    return good_turing(counts) * (seen.sum() / counts.sum().clamp_min(1))
