"""What a setting may be, said once beside its field: `steps: Annotated[int, Range(0, MANY)]`.

`check` walks the composed values of a schema before any object is made of them. `forge settings
PHASE` prints the same limits. A field of a phase's Config that is a number without a limit fails a
test.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_args, get_origin

from agent_forge.config import suites
from agent_forge.config.overrides import bare, field_hints
from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, did_you_mean

MANY = 10**9  # more steps, rows or items than any machine works through
BYTE_VOCABULARY = 264  # 256 bytes and the fixed tokens: the smallest tokenizer
DEVICE_KINDS = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "meta")


@dataclass(frozen=True, slots=True)
class Range:
    """Finite numbers from `low` to `high`; `above` and `below` leave the bound itself out."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def wrong(self, value: Any) -> bool:
        """Return whether a value lies outside."""
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            return True
        return value < self.low or value > self.high or (self.above and value == self.low) or (
            self.below and value == self.high
        )  # fmt: skip

    def __str__(self) -> str:
        if self.high < 1e5:
            return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        return f"{'above' if self.above else 'at least'} {self.low:g} and at most {self.high:g}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few names."""

    names: tuple[Any, ...]

    def wrong(self, value: Any) -> bool:
        """Return whether a value is none of them."""
        return value not in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.names))}"


@dataclass(frozen=True, slots=True)
class Plugin:
    """The name of a file in a folder of plug-ins, or one of `also`."""

    package: str
    kind: str
    also: tuple[str, ...] = ()

    def known(self) -> list[str]:
        """Return the allowed names."""
        return [*self.also, *registry.names(self.package)]

    def wrong(self, value: Any) -> bool:
        """Return whether the plug-in is missing."""
        return value not in self.known()

    def __str__(self) -> str:
        return f"one of {', '.join(self.known())}"


@dataclass(frozen=True, slots=True)
class Filled:
    """Text that is not empty."""

    def wrong(self, value: Any) -> bool:
        """Return whether the text is empty."""
        return not str(value).strip()

    def __str__(self) -> str:
        return "text that is not empty"


@dataclass(frozen=True, slots=True)
class Device:
    """The name of a device. core.device.pick_device checks whether it is present."""

    def wrong(self, value: Any) -> bool:
        """Return whether this is not a device's name."""
        kinds = "|".join(DEVICE_KINDS)
        return value != "auto" and re.fullmatch(rf"({kinds})(:\d{{1,4}})?", str(value)) is None

    def __str__(self) -> str:
        return "auto, cpu, cuda, cuda:1, mps or another device of PyTorch"


@dataclass(frozen=True, slots=True)
class Encoding:
    """The name of an encoding of text."""

    def wrong(self, value: Any) -> bool:
        """Return whether Python knows no text encoding of this name."""
        try:
            b" ".decode(str(value))
        except (LookupError, ValueError) as error:
            return not isinstance(
                error, UnicodeDecodeError
            )  # a space is half a character of UTF-16
        return False

    def __str__(self) -> str:
        return "a text encoding, for instance utf-8, latin-1 or utf-16"


@dataclass(frozen=True, slots=True)
class SomeWeight:
    """A mapping of weights that are not all 0."""

    def wrong(self, value: Any) -> bool:
        """Return whether every weight is 0."""
        return not any(value.values())

    def __str__(self) -> str:
        return "a mapping with at least one weight above 0"


Limit = Range | OneOf | Plugin | Filled | Device | Encoding | SomeWeight

Text = Annotated[str, Filled()]
Count = Annotated[int, Range(1, MANY)]  # there must be at least one
CountOrNone = Annotated[int, Range(0, MANY)]  # 0 leaves them out
Window = Annotated[
    int, Range(2, MANY)
]  # tokens: the first has no prediction, so there must be a second
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
Weight = Annotated[float, Range(0, 1e6)]  # one term beside others; 0 leaves it out
LearningRate = Annotated[float, Range(0, 10)]  # above 10 nothing has ever been learned
Temperature = Annotated[float, Range(0, 100)]
GeneratedTask = Annotated[str, Plugin("agent_forge.data.synthetic", "generated task")]
TaskName = Annotated[str, Plugin("agent_forge.evaluate.tasks", "task")]
TaskOrSuite = Annotated[str, Plugin("agent_forge.evaluate.tasks", "task", tuple(suites.names()))]


def data_kinds(*also: str) -> Plugin:
    """Return the limit of a kind of data: text, code, languages, rows, a generated task, or `also`.

    also: kinds that a phase makes itself.
    """
    return Plugin(
        "agent_forge.data.synthetic", "kind of data", ("text", "code", "languages", "rows", *also)
    )


ITEM_KINDS = Plugin(
    "agent_forge.data.synthetic", "generated task", ("text",)
)  # kinds that candidates are scored on
DataWeights = dict[Annotated[str, data_kinds()], Weight]  # kind of data -> weight
DataMix = Annotated[DataWeights, SomeWeight()]  # kind of data -> share of the windows
Fitness = Annotated[
    dict[Annotated[str, ITEM_KINDS], Weight], SomeWeight()
]  # kind of item -> weight


def check(values: Mapping[str, Any], schema: type, prefix: str = "") -> None:
    """Raise ConfigError that names the first setting outside its limits, its value and its limits.

    values: plain containers that fit `schema`. prefix: what stands before the names, such as
    "cognate.".
    """
    for name, hint in field_hints(schema).items():
        _check(f"{prefix}{name}", values[name], hint)


def kinds_of_data(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (setting, kind) for every kind of data with a weight above 0 in any mix of settings."""
    for name, hint in field_hints(type(values)).items():
        value = getattr(values, name)
        if is_dataclass(value):
            yield from kinds_of_data(value, f"{prefix}{name}.")
        elif get_origin(bare(hint)) is dict and data_kinds().kind in {
            limit.kind for limit in limits(get_args(bare(hint))[0]) if isinstance(limit, Plugin)
        }:
            yield from ((f"{prefix}{name}", kind) for kind, weight in value.items() if weight > 0)


def limits(hint: Any) -> tuple[Limit, ...]:
    """Return the limits beside a type."""
    return tuple(extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Limit))


def _check(key: str, value: Any, hint: Any) -> None:
    kind = bare(hint)
    for limit in limits(hint):
        if limit.wrong(value) and isinstance(limit, Plugin):
            raise ConfigError(_unknown_name(key, str(value), limit))
        if limit.wrong(value):
            raise ConfigError(f"{key} must be {limit}, got {_shown(value)}{_near(value, limit)}")
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        check(value, kind, f"{key}.")
    elif get_origin(kind) is list and isinstance(value, Sequence):
        for item in value:
            _check(key, item, get_args(kind)[0])
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        names, inner = get_args(kind)
        for name, item in value.items():
            for limit in limits(names):
                if limit.wrong(name):
                    raise ConfigError(f"{_unknown_name(key, name, limit)}")
            _check(f"{key}.{name}", item, inner)


def _unknown_name(key: str, name: str, limit: Limit) -> str:
    kind = limit.kind if isinstance(limit, Plugin) else "name"
    known: Iterable[str] = limit.known() if isinstance(limit, Plugin) else ()
    return f"{key}: no {kind} '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}"


def _near(value: Any, limit: Limit) -> str:
    names = (
        limit.known()
        if isinstance(limit, Plugin)
        else limit.names
        if isinstance(limit, OneOf)
        else ()
    )
    return did_you_mean(str(value), map(str, names))


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)
