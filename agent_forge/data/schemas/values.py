"""Values of arguments, and how a question writes them: numbers of 1 to 12 digits, dates, names, …

What a question shows is what the call must hold, to the character: the text of a number is its JSON
text, a quoted string loses only its quotation marks. Kinds are finer than JSON types, because a
model that copies words may still not copy identifiers.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from agent_forge.data.schemas import words

T = TypeVar("T")
LONGEST_DIGITS = 12
# Lengths of whole numbers: half have up to 3 digits, a fifth more than 6.
LENGTHS = ((1, 3, 0.5), (4, 6, 0.3), (7, LONGEST_DIGITS, 0.2))
NEGATIVE_SHARE = 0.12
WHOLE_SHARE = 0.4  # whole ones among the numbers that may have decimals
INVENTED_SHARE = 0.25  # names that are made up, so that names are copied and not remembered
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class SpokenValue:
    """The value of an argument (JSON), and its text in a question."""

    value: Any
    text: str


def pick(generator: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options."""
    return options[int(generator.integers(len(options)))]


def digits(generator: np.random.Generator, count: int) -> str:
    """Return a number of `count` digits that does not start with 0, except for 0 itself."""
    first = int(generator.integers(0 if count == 1 else 1, 10))
    return str(first) + "".join(str(int(d)) for d in generator.integers(0, 10, count - 1))


def length(generator: np.random.Generator) -> int:
    """Return how many digits a whole number gets."""
    shares = [share for _, _, share in LENGTHS]
    low, high, _ = LENGTHS[int(generator.choice(len(LENGTHS), p=shares))]
    return int(generator.integers(low, high + 1))


def integer(generator: np.random.Generator) -> SpokenValue:
    """Return a whole number of 1 to 12 digits, sometimes negative."""
    text = digits(generator, length(generator))
    if text != "0" and generator.random() < NEGATIVE_SHARE:
        text = f"-{text}"
    return SpokenValue(int(text), text)


def number(generator: np.random.Generator) -> SpokenValue:
    """Return a decimal number whose text is the shortest for its value, or a whole one."""
    if generator.random() < WHOLE_SHARE:
        text = digits(generator, _short(generator))
        return SpokenValue(int(text), text)
    whole = digits(generator, _short(generator))
    places = int(generator.integers(1, 5))
    fraction = "".join(str(int(d)) for d in generator.integers(0, 10, places - 1))
    sign = "-" if generator.random() < NEGATIVE_SHARE else ""
    text = f"{sign}{whole}.{fraction}{int(generator.integers(1, 10))}"
    return SpokenValue(float(text), text)


def _short(generator: np.random.Generator) -> int:
    """Return a number of digits from 1 to 6, mostly few."""
    return 1 + int(generator.choice(6, p=(0.25, 0.3, 0.2, 0.1, 0.1, 0.05)))


def date(generator: np.random.Generator) -> SpokenValue:
    """Return a date as YYYY-MM-DD."""
    year, month, day = (int(generator.integers(*span)) for span in ((1950, 2051), (1, 13), (1, 29)))
    text = f"{year}-{month:02}-{day:02}"
    return SpokenValue(text, text)


def time(generator: np.random.Generator) -> SpokenValue:
    """Return a time of day as HH:MM."""
    text = f"{int(generator.integers(24)):02}:{int(generator.integers(60)):02}"
    return SpokenValue(text, text)


def identifier(generator: np.random.Generator) -> SpokenValue:
    """Return an identifier of letters, digits and signs, such as QX-4471-B."""
    letters = "".join(pick(generator, LETTERS) for _ in range(int(generator.integers(1, 4))))
    numbers = digits(generator, int(generator.integers(2, 9)))
    mixed = "".join(pick(generator, "0123456789abcdef") for _ in range(8))
    forms = (
        f"{letters}-{numbers}",
        f"{letters}{numbers}",
        f"{numbers}-{letters}",
        f"{letters.lower()}_{numbers}",
        f"{letters}-{numbers}-{pick(generator, LETTERS)}",
        f"#{numbers}",
        mixed,
    )
    text = pick(generator, forms)
    return SpokenValue(text, text)


def quoted(generator: np.random.Generator) -> SpokenValue:
    """Return a short text that stands in quotation marks."""
    said = " ".join(pick(generator, words.PLAIN) for _ in range(int(generator.integers(2, 6))))
    said = said[0].upper() + said[1:] if generator.random() < 0.5 else said
    said += pick(generator, ("", "", ".", "!", "?"))
    return SpokenValue(said, f"'{said}'" if generator.random() < 0.3 else f'"{said}"')


def invented(generator: np.random.Generator) -> str:
    """Return a made-up word of two or three syllables."""
    count = int(generator.integers(2, 4))
    return "".join(pick(generator, words.SYLLABLES) for _ in range(count))


def _name(generator: np.random.Generator, names: Sequence[str]) -> str:
    if generator.random() < INVENTED_SHARE:
        return invented(generator).capitalize()
    return pick(generator, names)


def word(generator: np.random.Generator) -> SpokenValue:
    """Return the name of a place or a person, as it stands."""
    text = _name(generator, words.PLACES + words.PEOPLE)
    return SpokenValue(text, text)


def place(generator: np.random.Generator) -> SpokenValue:
    """Return the name of a place."""
    text = _name(generator, words.PLACES)
    return SpokenValue(text, text)


def person(generator: np.random.Generator) -> SpokenValue:
    """Return a name, or a name and a surname."""
    text = _name(generator, words.PEOPLE)
    text = f"{text} {pick(generator, words.SURNAMES)}" if generator.random() < 0.5 else text
    return SpokenValue(text, text)


def given(generator: np.random.Generator) -> SpokenValue:
    """Return a first name."""
    text = _name(generator, words.PEOPLE)
    return SpokenValue(text, text)


def surname(generator: np.random.Generator) -> SpokenValue:
    """Return a surname."""
    text = _name(generator, words.SURNAMES)
    return SpokenValue(text, text)


def email(generator: np.random.Generator) -> SpokenValue:
    """Return an address at a domain of examples."""
    name = pick(generator, words.PEOPLE).lower()
    domain = f"example.{pick(generator, ('com', 'org', 'net'))}"
    text = f"{name}.{pick(generator, words.SURNAMES).lower()}@{domain}"
    return SpokenValue(text, text)


def path(generator: np.random.Generator) -> SpokenValue:
    """Return a path of a file."""
    folder, name = pick(generator, words.PLAIN), pick(generator, words.PLAIN)
    text = f"{folder}/{name}{digits(generator, 2)}.{pick(generator, ('txt', 'csv', 'pdf', 'json'))}"
    return SpokenValue(text, text)


def link(generator: np.random.Generator) -> SpokenValue:
    """Return an address of a page."""
    text = f"https://example.{pick(generator, ('com', 'org'))}/{pick(generator, words.PLAIN)}"
    return SpokenValue(text, text)


def term(generator: np.random.Generator) -> SpokenValue:
    """Return one or two words in lower case, as somebody searches for them."""
    text = " ".join(pick(generator, words.PLAIN) for _ in range(int(generator.integers(1, 3))))
    return SpokenValue(text, text)


def integers(generator: np.random.Generator) -> SpokenValue:
    """Return two to four whole numbers of up to five digits."""
    values = [int(digits(generator, int(generator.integers(1, 6)))) for _ in range(_few(generator))]
    return SpokenValue(values, enumeration(generator, [str(value) for value in values]))


def numbers(generator: np.random.Generator) -> SpokenValue:
    """Return two to four decimal numbers."""
    drawn = [number(generator) for _ in range(_few(generator))]
    return SpokenValue(
        [one.value for one in drawn], enumeration(generator, [one.text for one in drawn])
    )


def terms(generator: np.random.Generator) -> SpokenValue:
    """Return two to four distinct words."""
    order = generator.permutation(len(words.PLAIN))[: _few(generator)]
    values = [words.PLAIN[i] for i in order]
    return SpokenValue(values, enumeration(generator, values))


def enumeration(generator: np.random.Generator, texts: Sequence[str]) -> str:
    """Return texts as a list in words, or in brackets."""
    if generator.random() < 0.3:
        return f"[{', '.join(texts)}]"
    if len(texts) < 2 or generator.random() < 0.3:
        return ", ".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def _few(generator: np.random.Generator) -> int:
    return int(generator.integers(2, 5))


def pooled(pool: str, generator: np.random.Generator) -> SpokenValue:
    """Return one of the names of a pool."""
    text = pick(generator, words.POOLS[pool])
    return SpokenValue(text, text)


def like(generator: np.random.Generator, text: str) -> str:
    """Return another result of the same form: its digits drawn anew, and words without digits made
    up. Names of a structure stay.
    """
    try:
        value = json.loads(text)
    except ValueError:
        return _like_text(generator, text)
    return json.dumps(_like(generator, value), ensure_ascii=False, separators=(",", ":"))


def _like(generator: np.random.Generator, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _like(generator, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_like(generator, inner) for inner in value]
    if isinstance(value, str):
        return _like_text(generator, value)
    if isinstance(value, bool) or value is None:
        return value
    drawn = number(generator) if isinstance(value, float) else integer(generator)
    return drawn.value


def _like_text(generator: np.random.Generator, text: str) -> str:
    if any(sign.isdigit() for sign in text):
        return re.sub(r"\d", lambda _: str(int(generator.integers(10))), text)
    return invented(generator).capitalize() if text.strip() else text


Draw = Callable[[np.random.Generator], SpokenValue]
DRAWS: dict[str, Draw] = {
    "integer": integer, "number": number, "date": date, "time": time, "identifier": identifier,
    "quoted": quoted, "word": word, "place": place, "person": person, "email": email, "path": path,
    "link": link, "term": term, "integers": integers, "numbers": numbers, "terms": terms,
}  # fmt: skip
COPIED = tuple(DRAWS)  # kinds whose values are copied, not chosen
DRAWS |= {"given": given, "surname": surname}
DRAWS |= {pool: partial(pooled, pool) for pool in words.POOLS}
ARRAYS = {"integers": "integer", "numbers": "number", "terms": "string"}
# Kinds that are not drawn from a list of all values, but depend on their schema.
BY_SCHEMA = ("boolean", "enum", "object")


def property_of(kind: str) -> dict[str, Any]:
    """Return the JSON schema of a kind of value, without a description."""
    if kind in ("integer", "number", "boolean"):
        return {"type": kind}
    if kind in ARRAYS:
        return {"type": "array", "items": {"type": ARRAYS[kind]}}
    if kind == "date":
        return {"type": "string", "format": "date"}
    return {"type": "string"}


def draw(generator: np.random.Generator, kind: str, schema: Mapping[str, Any]) -> SpokenValue:
    """Return a value of a kind that fits `schema`: its enum, its bounds, or its inner properties.

    The inner properties of an object are strings and numbers; each is written "name value".
    """
    schema = plain(schema)
    if kind == "enum":
        value = pick(generator, list(schema["enum"]))
        return SpokenValue(value, str(value))
    if kind == "boolean":
        value = bool(generator.integers(2))
        return SpokenValue(value, "true" if value else "false")
    if kind == "object":
        inner = {
            name: draw(generator, kind_of(name, part), part)
            for name, part in schema["properties"].items()
        }
        text = ", ".join(f"{name.replace('_', ' ')} {one.text}" for name, one in inner.items())
        return SpokenValue({name: one.value for name, one in inner.items()}, text)
    if kind in ("integer", "number"):
        return bounded(generator, kind, schema)
    return DRAWS[kind](generator)


def bounded(generator: np.random.Generator, kind: str, schema: Mapping[str, Any]) -> SpokenValue:
    """Return a number of a kind within the schema's minimum and maximum."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return DRAWS[kind](generator)
    least = int(low) if low is not None else min(0, int(high or 0) - 1000)
    most = int(high) if high is not None else least + 1000
    value = int(generator.integers(least, max(most, least) + 1))
    return SpokenValue(value, str(value))


def plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with the first type that is not null, of `anyOf` or of a list of types."""
    for key in ("anyOf", "oneOf"):
        options = [one for one in schema.get(key, ()) if one.get("type") != "null"]
        if options:
            return plain({**{k: v for k, v in schema.items() if k != key}, **options[0]})
    declared = schema.get("type", "string")
    if isinstance(declared, list):
        declared = next((one for one in declared if one != "null"), "string")
    return {**schema, "type": declared}


def kind_of(name: str, schema: Mapping[str, Any]) -> str:
    """Return the kind of value that an argument holds, by its type and then by its words."""
    schema = plain(schema)
    if schema.get("enum"):
        return "enum"
    declared = schema["type"]
    if declared in ("integer", "number", "boolean"):
        return str(declared)
    if declared == "array":
        inner = str(plain(schema.get("items") or {})["type"])
        return {"integer": "integers", "number": "numbers"}.get(inner, "terms")
    if declared == "object":
        return "object" if schema.get("properties") else "term"
    return _kind_of_text(name, schema)


def _kind_of_text(name: str, schema: Mapping[str, Any]) -> str:
    if schema.get("format") in words.FORMATS:
        return words.FORMATS[str(schema["format"])]
    for text in (name, str(schema.get("description", ""))):
        spoken = words.split_words(text)
        for spoken_word in spoken:
            pool = words.ALSO.get(spoken_word, spoken_word)
            if pool in words.POOLS:
                return pool
        for kind, cues in words.CUES.items():
            if any(cue in spoken for cue in cues):
                return kind
    return "term"
