"""Random tools of one split: names, wordings and structures that no other split has.

A tool is drawn piece by piece. Its object ("invoice"), its structure (the types of its arguments
and which are required) and so its name and descriptions belong to one split by their hashes, so
that whoever answers held-out questions has read the schema. A share of tools has names that say
nothing (`fn_q7`), so that the description has to be read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent_forge.data.documents import split_of
from agent_forge.data.schemas import values, words
from agent_forge.data.schemas.values import pick

OPAQUE_SHARE = 0.15
OPAQUE_SIGNS = "abcdefghjkmnpqrstuvwxyz0123456789"
# How likely an argument is of each kind; the rest is drawn evenly.
KINDS = (*words.ARGUMENTS, "enum", "object")
KIND_WEIGHTS = {"integer": 3.0, "number": 2.0, "identifier": 2.0, "enum": 2.0, "object": 0.5}
COUNTS = (1, 2, 3, 4)
COUNT_SHARES = (0.25, 0.4, 0.25, 0.1)
REQUIRED_SHARE = 0.75
NAME_STYLES = ("snake", "snake", "camel", "pascal", "dotted")
DESCRIPTIONS = (
    "{Verb} {object}.", "{Verb} {object} with the details that are given.",
    "Use this to {verb} {object}.", "{Verb} {object} and return the result.", "{Verb} {object} now.",
)  # fmt: skip
SAYING_ARGUMENTS = (
    "{Phrase}.",
    "The {phrase} of the {noun}.",
    "The {phrase}.",
    "{Phrase} of {object}.",
)


@dataclass(frozen=True, slots=True)
class DrawnTool:
    """A random tool, and the words in which questions speak of it.

    actions: wordings of what it does. phrases: argument -> its wordings. kinds: argument -> kind of
    value. noun: what it deals with.
    """

    declaration: dict[str, Any]
    actions: tuple[str, ...]
    phrases: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, str]
    noun: str = ""
    required: tuple[str, ...] = field(default=())


@dataclass(slots=True)
class _Part:
    """One argument while its tool is drawn."""

    kind: str
    wordings: tuple[str, ...]
    schema: dict[str, Any]
    required: bool


def tool(
    generator: np.random.Generator, split: str, kinds: tuple[str, ...] = (), parts: int = 0
) -> DrawnTool:
    """Return a random tool of `split`.

    kinds: the kinds of its arguments; () draws them. parts: how many arguments; 0 draws the number.
    With given kinds the structure may occur in every split, for it holds what they are.
    """
    noun = _noun(generator, split)
    arguments = [_part(generator, kind, required=True) for kind in kinds]
    while not arguments or (not kinds and split_of(structure_key(_parameters(arguments))) != split):
        count = parts or COUNTS[int(generator.choice(len(COUNTS), p=COUNT_SHARES))]
        arguments = _draw_parts(generator, count)
    wordings = pick(generator, words.ACTIONS)
    modifier = pick(generator, words.MODIFIERS)
    shown = f"{modifier} {noun}".strip()
    article = "an" if shown[0] in "aeiou" else "a"
    verb = pick(generator, wordings)
    opaque = generator.random() < OPAQUE_SHARE
    name = _opaque(generator, split) if opaque else _name(generator, f"{verb} {shown}")
    fill = {"verb": verb, "object": f"{article} {shown}", "noun": noun}
    description = pick(generator, DESCRIPTIONS).format(**fill, Verb=_upper(verb))
    named: dict[str, _Part] = {}
    style = pick(generator, ("snake", "camel"))
    for number, part in enumerate(arguments, start=1):
        said = pick(generator, part.wordings)
        key = f"{pick(generator, 'axpq')}{number}" if opaque else _styled(style, said)
        while key in named:
            key = f"{key}_{number}"
        part.schema["description"] = _describe(generator, part, fill)
        named[key] = part
    required = tuple(key for key, part in named.items() if part.required)
    parameters = {
        "type": "object",
        "properties": {key: part.schema for key, part in named.items()},
        "required": list(required),
    }
    return DrawnTool(
        {"name": name, "description": description, "parameters": parameters},
        tuple(f"{one} {pick(generator, (article, 'the'))} {shown}" for one in wordings),
        {key: part.wordings for key, part in named.items()},
        {key: part.kind for key, part in named.items()},
        noun,
        required,
    )


def structure_key(parameters: Mapping[str, Any]) -> str:
    """Return what identifies the structure of a tool's arguments: types, without names and texts.

    Sorted, so that the same arguments in another order are the same structure.
    """
    required = set(parameters.get("required", ()))
    parts = sorted(
        json.dumps([_shape(schema), name in required])
        for name, schema in parameters.get("properties", {}).items()
    )
    return f"schemas/structure/{parts}"


def _shape(schema: Mapping[str, Any]) -> Any:
    if schema.get("enum"):
        return ["enum", len(schema["enum"])]
    if schema.get("properties"):
        return ["object", sorted(json.dumps(_shape(one)) for one in schema["properties"].values())]
    if schema.get("type") == "array":
        return ["array", _shape(schema.get("items", {}))]
    return [schema.get("type"), schema.get("format", "")]


def _noun(generator: np.random.Generator, split: str) -> str:
    while True:
        noun = pick(generator, words.OBJECTS)
        if split_of(f"schemas/object/{noun}") == split:
            return noun


def _draw_parts(generator: np.random.Generator, count: int) -> list[_Part]:
    weights = np.array([KIND_WEIGHTS.get(kind, 1.0) for kind in KINDS])
    drawn: list[_Part] = []
    while len(drawn) < count:
        kind = KINDS[int(generator.choice(len(KINDS), p=weights / weights.sum()))]
        required = not drawn or bool(generator.random() < REQUIRED_SHARE)
        part = _part(generator, kind, required=required)
        taken = {wording for one in drawn for wording in one.wordings}
        if not taken.intersection(part.wordings):
            drawn.append(part)
    return drawn


def _part(generator: np.random.Generator, kind: str, *, required: bool) -> _Part:
    if kind == "enum":
        wordings, options = pick(generator, words.ENUMS)
        count = int(generator.integers(2, len(options) + 1))
        return _Part(kind, wordings, {"type": "string", "enum": list(options[:count])}, required)
    if kind == "object":
        spoken, inner = pick(generator, words.OBJECT_ARGUMENTS)
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: {"type": declared} for name, declared in inner},
            "required": [name for name, _ in inner],
        }
        return _Part(kind, spoken, schema, required)
    known: tuple[tuple[str, ...], ...] = words.ARGUMENTS.get(kind) or (("value", "input"),)
    return _Part(kind, pick(generator, known), values.property_of(kind), required)


def _parameters(arguments: list[_Part]) -> dict[str, Any]:
    """Return the parameters of arguments that have no names yet."""
    return {
        "properties": {str(number): part.schema for number, part in enumerate(arguments)},
        "required": [str(number) for number, part in enumerate(arguments) if part.required],
    }


def _describe(generator: np.random.Generator, part: _Part, fill: Mapping[str, str]) -> str:
    phrase = pick(generator, part.wordings)
    text = pick(generator, SAYING_ARGUMENTS).format(**fill, phrase=phrase, Phrase=_upper(phrase))
    hint = {"date": " Written as YYYY-MM-DD.", "time": " Written as HH:MM."}.get(part.kind, "")
    return text + hint


def _name(generator: np.random.Generator, text: str) -> str:
    return _styled(pick(generator, NAME_STYLES), text)


def _styled(style: str, text: str) -> str:
    """Return words as a name: snake_case, camelCase, PascalCase, or noun.verb_rest."""
    parts = words.split_words(text)
    if style == "camel":
        return parts[0] + "".join(_upper(part) for part in parts[1:])
    if style == "pascal":
        return "".join(_upper(part) for part in parts)
    if style == "dotted" and len(parts) > 1:
        return f"{parts[-1]}.{'_'.join(parts[:-1])}"
    return "_".join(parts)


def _opaque(generator: np.random.Generator, split: str) -> str:
    """Return a name of the split that says nothing."""
    while True:
        name = "fn_" + "".join(pick(generator, OPAQUE_SIGNS) for _ in range(3))
        if split_of(f"schemas/name/{name}") == split:
            return name


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
