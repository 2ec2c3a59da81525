"""Turn a recipe into one job per tensor, all checked before any weight is read.

Every output tensor is named with its sources and its resolved parameters. Nothing is dropped
silently: a tensor that some model lacks, a filter that fits nothing, a parameter out of range or a
misspelt one ends the plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.merge.layers import Layers, before_layers, find_layers
from agent_forge.merge.method import Method, check_count, check_names, load_method
from agent_forge.merge.recipe import Recipe, Slice, SliceSource
from agent_forge.merge.values import check_setting, resolve, unused_filters


class Kind(Protocol):
    """What a plan needs to know of a dtype, whether torch's or our own."""

    @property
    def is_floating_point(self) -> bool: ...

    @property
    def itemsize(self) -> int: ...


class Forms(Protocol):
    """What a plan needs to know of an opened model: the shape and dtype of each tensor, by name."""

    @property
    def forms(self) -> Mapping[str, tuple[tuple[int, ...], Any]]: ...


@dataclass(slots=True, kw_only=True)
class TensorPlan:
    """One output tensor: its sources as (model, tensor name), its base likewise, and the method's
    parameters.
    """

    target: str
    sources: list[tuple[str, str]]
    base: tuple[str, str] | None
    each: list[dict[str, Any]]
    shared: dict[str, Any]
    copy: bool = False  # the tensor does not hold floats and is taken as it is

    @property
    def keys(self) -> list[str]:
        """Return each source's key in random masks: its model, numbered from the second time on."""
        labels = [label for label, _ in self.sources]
        times = [labels[: place + 1].count(label) for place, label in enumerate(labels)]
        return [
            label if time == 1 else f"{label}#{time}"
            for label, time in zip(labels, times, strict=True)
        ]


@dataclass(slots=True, kw_only=True)
class MergePlan:
    """A checked merge.

    path: for each output layer the (model, layer) that it comes from first, with slices only.
    notes: what the user of the recipe must know.
    """

    recipe: Recipe
    method: ModuleType
    tensors: list[TensorPlan] = field(default_factory=list)
    path: list[tuple[str, int]] | None = None
    notes: list[str] = field(default_factory=list)


def is_wide(tensor: TensorPlan, models: Mapping[str, Forms]) -> bool:
    """Return whether a tensor is merged in float64: when every source is stored in 16 bits.

    Sums of 16-bit weights are often exact ties between two 16-bit numbers; float32 would break them
    wrongly.
    """
    everyone = [*tensor.sources, *([tensor.base] if tensor.base else [])]
    kinds: list[Kind] = [models[label].forms[name][1] for label, name in everyone]
    return all(kind.itemsize != 4 for kind in kinds)


def make_plan(recipe: Recipe, models: Mapping[str, Forms]) -> MergePlan:
    """Return the plan of a recipe over opened models.

    Raises ConfigError for parameters that do not fit, CheckpointError for models that do not.
    """
    module = load_method(recipe.method)
    method: Method = module.METHOD
    for label in recipe.labels():
        if label not in models:
            raise ConfigError(
                f"the recipe names the model '{label}', which is not one of: {', '.join(models)}"
            )
    _check_parameters(recipe, method)
    layers = find_layers(models[recipe.labels()[0]].forms)
    plan = MergePlan(recipe=recipe, method=module)
    slices = recipe.slices or [_whole(recipe, layers)]
    if recipe.slices:
        plan.path = _path(slices, layers, models)
    builder = _Builder(plan, models)
    _add_outside(builder, slices, layers)
    offset = 0
    for part in slices if layers else []:
        first, last = part.sources[0].layer_range
        for i in range(last - first):
            depth = i / (last - first - 1) if last - first > 1 else 0.0
            builder.layer(part, layers, i, offset + i, depth)  # type: ignore[arg-type]
        offset += last - first
    _check_filters(recipe, builder.used)
    plan.notes += _notes(recipe, method)
    return plan


class _Builder:
    """Resolves one tensor after another of a plan's recipe, and adds it to the plan.

    used: the filters of the recipe that some tensor has met.
    """

    def __init__(self, plan: MergePlan, models: Mapping[str, Forms]) -> None:
        self.plan, self.recipe, self.models = plan, plan.recipe, models
        self.used: set[int] = set()
        self.method: Method = plan.method.METHOD
        self.check: Callable[..., str] = getattr(plan.method, "check", lambda _each, _shared: "")
        self.base = self.recipe.base if self.method.base != "unused" else ""
        self._by_layer: dict[str, dict[int, list[str]]] = {}

    def layer(self, part: Slice, layers: Layers, i: int, target: int, depth: float) -> None:
        """Add every tensor of output layer `target`, number `i` of its slice.

        Raises CheckpointError when one of the models has a tensor in its layer that another has
        not.
        """
        everyone = [(source.model, source.layer_range[0] + i) for source in part.sources]
        base = (self.base, self._base_start(part) + i)
        rests = [
            self._rests(label, layers).get(layer, [])
            for label, layer in [*everyone, *([base] if self.base else [])]
        ]
        for (label, layer), names in zip([*everyone, base], rests, strict=False):
            extra = sorted(set(names) - set(rests[0]))
            if extra:
                raise CheckpointError(
                    f"{label} has the tensor {layers.name(layer, extra[0])}, {everyone[0][0]} "
                    "lacks it; nothing "
                    "is dropped silently: only models of one architecture merge"
                )
        for rest in rests[0]:
            names = [layers.name(layer, rest) for _, layer in everyone]
            self.add(part, layers.name(target, rest), names, layers.name(base[1], rest), depth)

    def _base_start(self, part: Slice) -> int:
        """Return the base's layer at the start of a slice: its own if it is listed, else the first
        model's.
        """
        return next(
            (s.layer_range[0] for s in part.sources if s.model == self.base),
            part.sources[0].layer_range[0],
        )

    def _is_base(self, source: SliceSource, part: Slice) -> bool:
        """Return whether a source is the base itself, and not other layers of the base model."""
        return source.model == self.base and source.layer_range[0] == self._base_start(part)

    def _rests(self, label: str, layers: Layers) -> dict[int, list[str]]:
        """Return what follows the layer's number in the tensor names of each layer of a model."""
        if label not in self._by_layer:
            by_layer: dict[int, list[str]] = {}
            for name in self.models[label].forms:
                place = layers.split(name)
                if place is not None:
                    by_layer.setdefault(place[0], []).append(place[1])
            self._by_layer[label] = by_layer
        return self._by_layer[label]

    def add(
        self, part: Slice, target: str, names: Sequence[str], base_name: str, depth: float
    ) -> None:
        """Add one tensor, merged from `names` (one per source of the slice)."""
        chosen = [
            (s, name)
            for s, name in zip(part.sources, names, strict=True)
            if not self._is_base(s, part)
        ]
        check_count(self.recipe.method, self.method, len(chosen), bool(self.base))
        sources = [(source.model, name) for source, name in chosen]
        base = (self.base, base_name) if self.base else None
        everyone = [*sources, *([base] if base else [])]
        shape, kind = self._common_form(everyone)
        if not kind.is_floating_point:
            self.plan.tensors.append(
                TensorPlan(target=target, sources=sources, base=base, each=[], shared={}, copy=True)
            )
            return
        if self.method.importance:
            self._require_importance(sources, shape)
        levels = (part.parameters, self.recipe.parameters)
        each = [
            self._resolved(self.method.each, (source.parameters, *levels), target, depth)
            for source, _ in chosen
        ]
        shared = self._resolved(self.method.shared, levels, target, depth)
        reason = self.check(each, shared)
        if reason:
            raise ConfigError(f"merge method {self.recipe.method}, {target}: {reason}")
        self.plan.tensors.append(
            TensorPlan(target=target, sources=sources, base=base, each=each, shared=shared)
        )

    def _common_form(self, everyone: Sequence[tuple[str, str]]) -> tuple[tuple[int, ...], Kind]:
        """Return the shape that all of (model, tensor name) have, and the first one's dtype.

        Raises CheckpointError when a tensor is missing or has another shape.
        """
        forms = [self.models[label].forms.get(name) for label, name in everyone]
        for (label, name), form in zip(everyone, forms, strict=True):
            if form is None:
                owners = zip(everyone, forms, strict=True)
                owner = next((other for (other, _), form in owners if form is not None), "another")
                raise CheckpointError(
                    f"{label} has no tensor {name}, which {owner} has; nothing is dropped silently"
                )
            if forms[0] is not None and form[0] != forms[0][0]:
                raise CheckpointError(
                    f"{name} is {list(form[0])} in {label} and {list(forms[0][0])} in "
                    f"{everyone[0][0]}; shapes must be equal"
                )
        assert forms[0] is not None
        return forms[0]

    def _require_importance(
        self, sources: Sequence[tuple[str, str]], shape: tuple[int, ...]
    ) -> None:
        for label, name in sources:
            rated = getattr(self.models[label], "importance", None)
            if rated is None or name not in rated.forms or rated.forms[name][0] != shape:
                raise CheckpointError(
                    f"merge method {self.recipe.method} needs the importance of {name} in {label}; "
                    "measure it with "
                    "scripts/measure_fisher.py"
                )

    def _resolved(
        self,
        known: Mapping[str, Any],
        levels: Sequence[Mapping[str, Any]],
        target: str,
        depth: float,
    ) -> dict[str, Any]:
        """Return every parameter of `known` for one tensor; the innermost setting wins."""
        values: dict[str, Any] = {}
        for name, parameter in known.items():
            settings = (
                resolve(level[name], target, depth, self.used) for level in levels if name in level
            )
            value = next((value for value in settings if value is not None), parameter.default)
            if value is None:
                raise ConfigError(
                    f"merge method {self.recipe.method} needs the parameter '{name}' for {target}; "
                    "set it"
                )
            values[name] = parameter.check(name, value)
        return values


def _check_parameters(recipe: Recipe, method: Method) -> None:
    """Refuse misspelt parameters and settings of no known form, wherever they stand."""
    everything = [*method.each, *method.shared]
    inner = [(m.model, m.parameters) for m in recipe.models]
    inner += [(s.model, s.parameters) for part in recipe.slices for s in part.sources]
    outer = [("the slice", part.parameters) for part in recipe.slices] + [
        ("the recipe", recipe.parameters)
    ]
    for where, parameters in inner:
        # A base listed among the models takes no parameter of its own.
        check_names(
            recipe.method,
            f"for {where}",
            list(parameters),
            everything if not method.each else list(method.each),
        )
    for where, parameters in outer:
        check_names(recipe.method, f"in {where}", list(parameters), everything)
    for where, parameters in [*inner, *outer]:
        for name, setting in parameters.items():
            check_setting(f"{name} ({where})", setting)


def _notes(recipe: Recipe, method: Method) -> list[str]:
    """Return notes on settings without effect, and on defaults that differ in other tools."""
    notes = []
    entries = [(entry.model, entry.parameters) for entry in recipe.models]
    entries += [
        (source.model, source.parameters) for part in recipe.slices for source in part.sources
    ]
    if method.base != "unused" and any(
        model == recipe.base and parameters for model, parameters in entries
    ):
        notes.append(
            f"{recipe.base} is the base of {recipe.method}: parameters listed for it are not used"
        )
    if (
        "rescale_l1" in method.shared
        and recipe.parameters.get("rescale") is not False
        and not recipe.parameters.get("rescale_l1")
    ):
        notes.append(
            f"{recipe.method} divides what it keeps by its probability, as in the paper; mergekit "
            "restores the L1 norm "
            "instead: `rescale_l1: true`"
        )
    return notes


def _check_filters(recipe: Recipe, used: set[int]) -> None:
    places = (
        [m.parameters for m in recipe.models]
        + [part.parameters for part in recipe.slices]
        + [recipe.parameters]
    )
    places += [s.parameters for part in recipe.slices for s in part.sources]
    for parameters in places:
        for name, setting in parameters.items():
            for missed in unused_filters(setting, used):
                raise ConfigError(
                    f"merge parameter {name}: the filter '{missed}' fits no tensor; check the "
                    "spelling"
                )


def _whole(recipe: Recipe, layers: Layers | None) -> Slice:
    """Return whole models as one slice over every layer."""
    count = layers.count if layers else 0
    return Slice(
        sources=[
            SliceSource(model=m.model, layer_range=(0, count), parameters=m.parameters)
            for m in recipe.models
        ]
    )


def _path(
    slices: Sequence[Slice], layers: Layers | None, models: Mapping[str, Forms]
) -> list[tuple[str, int]]:
    """Return where each output layer comes from.

    Raises ConfigError when a range leaves its model.
    """
    if layers is None:
        raise ConfigError(
            "slices need a model with a numbered stack of layers; none was found in the tensor "
            "names"
        )
    path: list[tuple[str, int]] = []
    for part in slices:
        lengths = {source.layer_range[1] - source.layer_range[0] for source in part.sources}
        if len(lengths) != 1:
            raise ConfigError(
                f"the sources of a slice must have equally many layers, got {sorted(lengths)}"
            )
        for source in part.sources:
            stack = find_layers(models[source.model].forms)
            first, last = source.layer_range
            if stack is None or stack.prefix != layers.prefix:
                raise CheckpointError(
                    f"{source.model} has no stack of layers named {layers.prefix}N"
                )
            if not 0 <= first < last <= stack.count:
                raise ConfigError(
                    f"layer_range [{first}, {last}) leaves the {stack.count} layers of "
                    f"{source.model}"
                )
        path += [(part.sources[0].model, layer) for layer in range(*part.sources[0].layer_range)]
    return path


def _add_outside(builder: _Builder, slices: Sequence[Slice], layers: Layers | None) -> None:
    """Add the tensors outside the stack, at depth 0.

    Embeddings come from the first slice, norm and head from the last.
    """
    for part, before in ((slices[0], True), (slices[-1], False)):
        labels = [source.model for source in part.sources] + (
            [builder.base] if builder.base else []
        )
        names = {name for label in labels for name in builder.models[label].forms}
        for name in sorted(names):
            if (layers is None or layers.split(name) is None) and before_layers(name) is before:
                builder.add(part, name, [name] * len(part.sources), name, 0.0)
