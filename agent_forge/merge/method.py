"""A merge method's declaration, its parameters with their ranges, and the inputs that it gets.

A method is a module of `methods/` with `METHOD` and `merge(inputs: Inputs) -> Array`, and
optionally `survey(whole: Whole) -> Any`, what must be known of the whole tensor before any piece of
it is merged, and `check(each, shared) -> str` that names a bad combination ("" when there is none).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.merge.arrays import Array

PACKAGE = "agent_forge.merge.methods"


@dataclass(frozen=True, slots=True)
class Number:
    """A real parameter in [low, high], or (low, high] when `above` is set.

    Without a default it must be set.
    """

    default: float | None
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    whole: bool = False

    def check(self, name: str, value: Any) -> float | int:
        """Return `value` as a number. Raises ConfigError when it is not one, or out of range."""
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise ConfigError(f"merge parameter {name} must be a finite number, got {value!r}")
        low = value > self.low if self.above else value >= self.low
        if not low or value > self.high or (self.whole and value != int(value)):
            border = "(" if self.above else "["
            kind = "a whole number in " if self.whole else "in "
            raise ConfigError(
                f"merge parameter {name} must be {kind}{border}{self.low:g}, {self.high:g}], got "
                f"{value:g}"
            )
        return int(value) if self.whole else float(value)


@dataclass(frozen=True, slots=True)
class Flag:
    """A yes-or-no parameter."""

    default: bool

    def check(self, name: str, value: Any) -> bool:
        """Return `value` as a bool. Raises ConfigError when it is not one."""
        if not isinstance(value, bool):
            raise ConfigError(f"merge parameter {name} must be true or false, got {value!r}")
        return value


Parameter = Number | Flag


@dataclass(frozen=True, slots=True)
class Method:
    """What a method needs.

    base: whether a base model is required, optional, or unused; it is then never one of the merged
    models.
    models: fewest and most models merged, the base not counted (None: no limit).
    each: parameters that every model has; shared: parameters of the whole merge.
    rows: whether a piece must hold whole rows of the first dimension; otherwise a piece is any run
    of entries.
    narrow: whether float32 does for models stored in 16 bits too: where each entry takes a few sums
    and products, its error is about 2^-22 of the entry, which changes the rounding to 16 bits in
    about one of ten thousand entries.
    importance: whether each model must bring a measured importance of every weight.
    """

    summary: str
    base: Literal["required", "optional", "unused"]
    models: tuple[int, int | None] = (1, None)
    each: Mapping[str, Parameter] = field(default_factory=dict)
    shared: Mapping[str, Parameter] = field(default_factory=dict)
    rows: bool = False
    narrow: bool = False
    importance: bool = False


@dataclass(slots=True, kw_only=True)
class Inputs:
    """One piece of a tensor of every model, all of one shape and dtype: float32, float64 for models
    stored in 16 bits.

    A piece is a flat run of entries, or whole rows with the tensor's other dimensions
    (Method.rows). Do not write into the arrays. base: the base model's piece, or None. importance:
    of each model's entries, where the method asks for it.
    each: parameters of each model; shared: of the merge. keys: what names each model in random
    masks; name: the tensor's name; seed: the run's seed. start: place of the piece's first entry in
    the flattened tensor; facts: what the method's survey found.
    """

    tensors: list[Array]
    base: Array | None = None
    importance: list[Array] = field(default_factory=list)
    each: list[dict[str, Any]] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    name: str = ""
    seed: int = 0
    start: int = 0
    facts: Any = None

    def column(self, name: str) -> list[Any]:
        """Return one parameter of every model."""
        return [parameters[name] for parameters in self.each]

    def origin(self) -> Array:
        """Return the base piece of a method that requires one."""
        assert self.base is not None, "the plan admits no merge without its base"
        return self.base

    def deltas(self) -> list[Array]:
        """Return the task vectors, each model minus the base, as new arrays."""
        return [tensor - self.origin() for tensor in self.tensors]


def load_method(name: str) -> ModuleType:
    """Return a method's module. Raises ConfigError naming the nearest known method."""
    return registry.load(PACKAGE, name, "merge method")


def method_names() -> list[str]:
    """Return the names of all methods."""
    return registry.names(PACKAGE)


def check_count(name: str, method: Method, models: int, has_base: bool) -> None:
    """Raise ConfigError when a method lacks the base, or the number of models, that it needs."""
    fewest, most = method.models
    if method.base == "required" and not has_base:
        raise ConfigError(
            f"merge method {name} needs base_model (the model that the others were tuned from); "
            "name one"
        )
    if models < fewest or (most is not None and models > most):
        allowed = (
            f"{fewest} to {most}"
            if most and most != fewest
            else f"{fewest}{'' if most else ' or more'}"
        )
        raise ConfigError(
            f"merge method {name} takes {allowed} models besides the base, got {models}"
        )


def check_names(method_name: str, where: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise ConfigError for a parameter name that the method lacks, with the nearest one."""
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise ConfigError(
                f"merge method {method_name} has no parameter '{name}' {where}"
                f"{did_you_mean(name, known)}; known: {listed}"
            )
