"""Whole questions by what a tool is for: conversions, look-ups, and values that are stated first.

A frame around a tool's description ("Could you convert the gallon to liter with gallon 5?") is how
a schema speaks. People ask "How many liters are 5 gallons?", "Lima's time zone?", or "The bill is
120 and we are 4. Split it." These forms are made from the same schema: the two units in a name or
in two arguments, the noun that a tool returns and the one thing it is returned for. {name} stands
for an argument's value. Some forms are kept for held-out questions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent_forge.data.schemas import Declaration, values, words
from agent_forge.data.schemas.values import SpokenValue, pick

CONVERSIONS = (
    "How many {T} are in {n} {S}?", "How many {T} is {n} {S}?", "What is {n} {S} in {T}?",
    "{n} {S} in {T}", "{n} {S} to {T}", "{n} {S} in {T}?", "Convert {n} {S} to {T}.",
    "Convert {n} {S} into {T}, please.", "I have {n} {S}. How many {T} is that?",
    "How much is {n} {S} in {T}?", "Turn {n} {S} into {T}.", "What's {n} {S} in {T}?",
    "Please change {n} {S} to {T}.", "How many {T} do I get for {n} {S}?",
    "I need {n} {S} in {T}.", "It is {n} {S}. What is that in {T}?", "how much {T} is {n} {S}",
    "What does {n} {S} come to in {T}?", "Give me {n} {S} in {T}.",
    "It says {n} {S}, but I need {T}.", "Can you tell me how many {T} {n} {S} makes?",
)  # fmt: skip
HELD_CONVERSIONS = (
    "Express {n} {S} as {T}.", "{n} {S} equals how many {T}?", "If I have {n} {S}, how many {T}?",
)  # fmt: skip
LOOK_UPS = (
    "What is the {N} of {a}?", "What's the {N} of {a}?", "What is the {N} for {a}?",
    "What is {a}'s {N}?", "{a}'s {N}?", "{N} of {a}", "{N} for {a}?", "{a} {N}", "{N} {a}",
    "Which {N} does {a} have?", "Do you know the {N} of {a}?", "Tell me {a}'s {N}.",
    "Tell me the {N} for {a}.", "I need the {N} of {a}.", "Find the {N} for {a}.",
    "Look up the {N} of {a}, please.", "Give me the {N} of {a}.", "Can you find {a}'s {N}?",
    "I am looking for the {N} of {a}.", "Could you look up the {N} for {a}?",
    "I want to know {a}'s {N}.", "Which {N} belongs to {a}?", "Please check the {N} of {a}.",
)  # fmt: skip
OF_PLACES = (
    "I live in {a}. What is my {N}?", "What is the {N} in {a}?", "Which {N} is {a} in?",
    "I am going to {a}. What's the {N} there?", "I'm writing to somebody in {a}. What's the {N}?",
    "What {N} does {a} use?", "My sister moved to {a}, what's the {N} there?",
)  # fmt: skip
HELD_LOOK_UPS = (
    "Let me know the {N} of {a}.", "Any idea what {a}'s {N} is?", "What would the {N} for {a} be?",
)  # fmt: skip
# Values first, then what is wanted of them.
STATED = (
    "{Stated}. {Action}.", "{Stated}. {Ask}?", "{Stated}, {ask}?", "With {listed}, {ask}?",
    "{Ask} if {stated}?", "{Ask}? {Stated}.", "{Ask} for {listed}?", "{listed}: {ask}?",
    "{N}: {listed}", "{Stated} - {ask}?", "{N} for {listed}", "I have {listed}. {Ask}?",
)  # fmt: skip
HELD_STATED = ("Suppose {stated}. {Ask}?", "Given {listed}, {ask}?")
STATING = (
    "the {phrase} is {text}", "my {phrase} is {text}", "our {phrase} is {text}", "{phrase} is {text}",
)  # fmt: skip
ASKS = ("what is the {N}", "what's the {N}", "what {N} is that", "how much is the {N}")
DEGREES = frozenset(("celsius", "fahrenheit"))
LEFT_AS_THEY_ARE = frozenset((
    "kelvin", "hex", "binary", "decimal", "hexadecimal", "text", "json",
    "yaml", "csv", "html", "markdown", "upper", "lower", "mph",
))  # fmt: skip
IRREGULAR = {"foot": "feet", "inch": "inches", "feet": "feet", "stone": "stones"}
LOOKING = frozenset((
    "get", "find", "look", "lookup", "fetch", "retrieve", "return", "show", "tell", "give", "check",
    "read", "query", "search", "calculate", "compute", "determine", "estimate",
))  # fmt: skip
JOINTS = r"based on|by|for|of|from|in|at|given|with"
ARTICLE = re.compile(r"^(?:the|a|an|its|their|current|latest|given)\s+", re.IGNORECASE)
NO_LOOK_UP = frozenset(("text", "message", "title", "content", "body", "code", "expression"))


@dataclass(frozen=True, slots=True)
class WholeForms:
    """The whole questions of a tool.

    forms, held_forms: templates in which {argument} stands for a value; nouns: what the tool
    returns, for questions that state their values first; () where it returns nothing by name.
    """

    forms: tuple[str, ...] = ()
    held_forms: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()

    def question(
        self,
        generator: np.random.Generator,
        said: Mapping[str, SpokenValue],
        phrases: Mapping[str, Sequence[str]],
        action: str,
        *,
        held_out: bool,
    ) -> str | None:
        """Return a whole question for exactly these arguments; None where no form fits them."""
        forms = [
            one
            for one in (self.held_forms if held_out else self.forms)
            if set(re.findall(r"\{(\w+)\}", one)) == set(said)
        ]
        if forms:
            return pick(generator, forms).format(**{name: one.text for name, one in said.items()})
        if len(said) < 2 or not self.nouns:
            return None
        return self._stated(generator, said, phrases, action, held_out=held_out)

    def _stated(
        self,
        generator: np.random.Generator,
        said: Mapping[str, SpokenValue],
        phrases: Mapping[str, Sequence[str]],
        action: str,
        *,
        held_out: bool,
    ) -> str:
        noun = pick(generator, self.nouns)
        order = [list(said)[i] for i in generator.permutation(len(said))]
        named = [(pick(generator, phrases[name]), said[name].text) for name in order]
        stating = pick(generator, STATING)
        stated = _and([stating.format(phrase=phrase, text=text) for phrase, text in named])
        listing = pick(generator, ("{phrase} {text}", "a {phrase} of {text}", "{text} {phrase}"))
        listed = _and([listing.format(phrase=phrase, text=text) for phrase, text in named])
        ask = pick(generator, ASKS).format(N=noun)
        return pick(generator, HELD_STATED if held_out else STATED).format(
            Stated=_upper(stated), stated=stated, listed=listed, ask=ask, Ask=_upper(ask), N=noun,
            Action=_upper(action),
        )  # fmt: skip


def whole_forms(declaration: Declaration) -> WholeForms:
    """Return the whole questions of a tool: of a conversion, else of a look-up."""
    properties: dict[str, Any] = declaration["parameters"].get("properties", {})
    required = [
        name for name in properties if name in declaration["parameters"].get("required", ())
    ]
    numbers = [
        name for name in required if values.kind_of(name, properties[name]) in ("integer", "number")
    ]
    conversion = _conversion(declaration, properties, required, numbers)
    if conversion is not None:
        return conversion
    nouns = _nouns(declaration)
    if (
        len(required) != 1
        or required == numbers
        or NO_LOOK_UP & set(words.split_words(required[0]))
    ):
        return WholeForms(nouns=nouns)
    (name,) = required
    is_place = values.kind_of(name, properties[name]) in ("place", "country")
    forms = LOOK_UPS + (OF_PLACES if is_place else ())
    return WholeForms(_looking(forms, nouns, name), _looking(HELD_LOOK_UPS, nouns, name), nouns)


def _looking(forms: Sequence[str], nouns: Sequence[str], name: str) -> tuple[str, ...]:
    filled = (
        one.replace("{N}", noun).replace("{a}", f"{{{name}}}") for noun in nouns for one in forms
    )
    return tuple(_upper(one) if one[0] != "{" else one for one in filled)


def _conversion(
    declaration: Declaration,
    properties: Mapping[str, Any],
    required: Sequence[str],
    numbers: Sequence[str],
) -> WholeForms | None:
    """Return the questions of a tool that turns a number from one unit into another, else None."""
    if len(numbers) != 1:
        return None
    (number,) = numbers
    if len(required) == 1:
        units = _units_of(declaration)
        if units is None:
            return None
        source_words, target_words = map(_spoken, units)
    else:
        others = [name for name in required if name != number]
        sources = [name for name in others if words.SOURCES & set(words.split_words(name))]
        targets = [name for name in others if words.TARGETS & set(words.split_words(name))]
        kinds = {values.kind_of(name, properties[name]) for name in others}
        if len(others) != 2 or len(sources) != 1 or len(targets) != 1 or "place" in kinds:
            return None
        source_words, target_words = (f"{{{sources[0]}}}",), (f"{{{targets[0]}}}",)

    def filled(forms: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            one.replace("{n}", f"{{{number}}}").replace("{S}", source).replace("{T}", target)
            for one in forms
            for source in source_words
            for target in target_words
        )

    return WholeForms(filled(CONVERSIONS), filled(HELD_CONVERSIONS))


def _units_of(declaration: Declaration) -> tuple[str, str] | None:
    """Return the two units in a name or description: gallon_to_liter, "from miles to feet"."""
    name = " ".join(words.split_words(declaration["name"].rpartition(".")[2]))
    match = re.search(r"\b([a-z]+) (?:to|into|2) ([a-z]+)$", name) or re.search(
        r"\bfrom (?:an? )?(\w+) (?:in)?to (?:an? )?(\w+)", str(declaration.get("description", ""))
    )
    if match is None or match[1] in ("convert", "one"):
        return None
    return match[1], match[2]


def _spoken(unit: str) -> tuple[str, ...]:
    """Return how people write a unit: in the plural, or with its degrees."""
    if unit in DEGREES:
        return unit, f"degrees {unit}", f"degrees {unit.capitalize()}", f"°{unit[0].upper()}"
    if unit in LEFT_AS_THEY_ARE or (len(unit) < 4 and unit not in IRREGULAR):
        return (unit,)
    return (IRREGULAR.get(unit, unit if unit.endswith("s") else f"{unit}s"),)


def _nouns(declaration: Declaration) -> tuple[str, ...]:
    """Return what a tool returns, as its name and the first sentence of its description say it."""
    name = " ".join(words.split_words(declaration["name"].rpartition(".")[2]))
    text = re.split(r"(?<=[a-z0-9)\"'])[.!?](?:\s|$)", str(declaration.get("description", "")))[0]
    short = re.findall(r"\(([A-Z]{2,6})\)", text)
    described = re.sub(r"\s*\([^)]*\)", "", " ".join(text.split())).rstrip(".")
    nouns = list(short)
    for one in (name, described):
        verb, _, rest = one.partition(" ")
        if verb.lower().rstrip("s") in LOOKING or verb.lower() in LOOKING:
            rest = re.sub(r"^up\s+", "", rest)
            noun = re.split(rf"\s(?:{JOINTS})\s", f"{rest} ")[0].strip()
            while ARTICLE.match(noun):
                noun = ARTICLE.sub("", noun)
            if 0 < len(noun.split()) <= 4:
                nouns.append(noun)
    return tuple(dict.fromkeys(nouns))


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
