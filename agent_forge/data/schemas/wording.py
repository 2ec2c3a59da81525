"""Questions that ask for a call: an action, and the arguments woven in, in many phrasings.

The action of a random tool comes with it. For a user's tool it is the first sentence of its
description ("Returns the weather for a city." -> "return the weather for a city"), or its name.
Where an action speaks of an argument ("for a city"), the value stands there ("for Lima"). Some
phrasings are kept for held-out questions only, so that measuring them shows more than memory.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_forge.data.schemas import Declaration, values, words
from agent_forge.data.schemas.values import SpokenValue, pick

FRAMES = (
    "{Action}{details}.", "{Action}{details}.", "Please {action}{details}.",
    "Can you {action}{details}?", "Could you {action}{details}?",
    "I need you to {action}{details}.",
    "I want to {action}{details}.", "{Action}{details}, please.", "Help me {action}{details}.",
    "{action}{details}", "Hey, {action}{details}!", "{Action}{details}, thanks.",
    "I would like you to {action}{details}.", "Hi, {action}{details}.",
    "{Action}. {Listed}.", "{Action}: {listed}.", "My task: {action}. {Listed}.",
)  # fmt: skip
HELD_FRAMES = (
    "Would you {action}{details}?", "Next, {action}{details}.", "It is time to {action}{details}.",
    "You should {action}{details} for me.", "Here is a job: {action}{details}.",
)  # fmt: skip
# Frames for tools that tell something, around what they tell.
TELLING = (
    "What is {rest}{details}?", "Give me {rest}{details}.", "Tell me {rest}{details}.",
    "What's {rest}{details}?", "Show me {rest}{details}.", "I need {rest}{details}.",
    "Do you know {rest}{details}?",
)  # fmt: skip
HELD_TELLING = ("I would like to know {rest}{details}.", "Let me see {rest}{details}.")
# Frames of a question that is answered by yes or no.
ASKING = ("is", "has", "contains", "can")
CHECKS = (
    "{Action}{details}?", "{action}{details}?", "Tell me, {action}{details}?",
    "Please check: {action}{details}?", "Hey, {action}{details}?",
)  # fmt: skip
HELD_CHECKS = ("I wonder: {action}{details}?", "Quick question, {action}{details}?")
TELLING_VERBS = frozenset((
    "return", "get", "fetch", "retrieve", "compute", "calculate", "find", "show", "determine",
    "look", "tell", "give", "read", "estimate", "list",
))  # fmt: skip
PIECES = (
    "with {phrase} {text}", "with the {phrase} {text}", "{phrase} {text}",
    "where the {phrase} is {text}",
    "using {text} as the {phrase}", "with {text} as {phrase}", "the {phrase} is {text}",
)  # fmt: skip
HELD_PIECES = ("the {phrase} should be {text}",)
NATURAL_SHARE = 0.6
# A word of an argument's name -> how its value can stand in a sentence without its name.
NATURAL: dict[str, tuple[str, ...]] = {
    "from": ("from {text}",), "source": ("from {text}",), "origin": ("from {text}",),
    "to": ("to {text}",), "target": ("to {text}",), "destination": ("to {text}",),
    "recipient": ("to {text}",), "email": ("to {text}", "for {text}"), "into": ("into {text}",),
    "date": ("on {text}", "for {text}"), "day": ("on {text}",), "deadline": ("by {text}",),
    "time": ("at {text}",), "start": ("from {text}",), "end": ("until {text}",),
    "city": ("in {text}", "for {text}"), "place": ("in {text}", "at {text}"),
    "location": ("in {text}", "at {text}", "for {text}"), "town": ("in {text}",),
    "country": ("in {text}",), "unit": ("in {text}",), "units": ("in {text}",),
    "format": ("in {text}", "as {text}"), "language": ("in {text}",), "currency": ("in {text}",),
    "user": ("for {text}",), "customer": ("for {text}",), "owner": ("for {text}",),
    "name": ("called {text}", "named {text}", "for {text}"),
    "title": ("called {text}", "titled {text}"),
    "query": ("for {text}",), "keyword": ("for {text}",), "topic": ("about {text}", "on {text}"),
    "message": ("saying {text}",), "text": ("saying {text}",), "limit": ("at most {text}",),
    "amount": ("of {text}",), "quantity": ("of {text}",),
    "file": ("in {text}",), "path": ("at {text}",),
    "id": ("{text}",), "tags": ("tagged {text}",), "rate": ("at a rate of {text}",),
    "percent": ("at {text} percent",), "years": ("for {text} years",),
    "minutes": ("for {text} minutes",),
    "hours": ("for {text} hours",), "days": ("for {text} days",),
}  # fmt: skip
# Openings of docstrings that say nothing of what a tool does.
OPENING = re.compile(
    r"^(?:this (?:tool|function|method)|use this(?: tool| function)?|a (?:tool|function))"
    r"\s+(?:(?:is used|can be used|is|will|can)\s+)?(?:to\s+|that\s+)?",
    re.IGNORECASE,
)
SLOT = re.compile(r"\{(\w+)\}")
# "check if a string is a palindrome": what is checked, how it is asked, and of what.
CHECKING = re.compile(
    r"^\w+ (?:if|whether)(?: or not)? (?:an?|the|this) ([\w ]+?) (is|has|contains|can) (.+)$"
)
NO_VERBS = frozenset(("is", "has", "can", "are", "does", "to", "from", "new"))
NOT_THIRD_PERSON = frozenset(("this", "us", "bus", "canvas", "bias", "gas", "always", "whereas"))
LONGEST_PHRASE = 5  # words of an argument's description that may stand for its name


def question(
    generator: np.random.Generator,
    actions: Sequence[str],
    phrases: Mapping[str, Sequence[str]],
    said: Mapping[str, SpokenValue],
    *,
    held_out: bool = False,
) -> str:
    """Return a question for a call with the arguments `said`.

    actions: wordings of what the tool does; {name} in one stands for an argument's value. phrases:
    argument -> wordings of its name. held_out: phrase it as no training question is phrased.
    """
    whole = [one for one in actions if set(SLOT.findall(one)) <= set(said)]
    action = pick(generator, whole or actions)
    inside = [name for name in said if f"{{{name}}}" in action]
    rest = [name for name in said if name not in inside]
    # A slot without a value speaks of the argument by its name again.
    for name in SLOT.findall(action):
        text = said[name].text if name in said else f"a {pick(generator, phrases[name])}"
        action = action.replace(f"{{{name}}}", text)
    order = [rest[i] for i in generator.permutation(len(rest))] if len(rest) > 1 else rest
    parts = [
        _piece(generator, name, pick(generator, phrases[name]), said[name], held_out=held_out)
        for name in order
    ]
    listed = ", ".join(f"{pick(generator, phrases[name])}: {said[name].text}" for name in order)
    frame = _frame(generator, action, bool(order), held_out=held_out)
    if action.partition(" ")[0] in ASKING:
        frame = pick(generator, HELD_CHECKS if held_out else CHECKS)
    verb, _, what = action.partition(" ")
    del verb
    return frame.format(
        Action=upper(action), action=action, rest=what, details=_joined(generator, parts),
        Listed=upper(listed), listed=listed,
    )  # fmt: skip


def _frame(generator: np.random.Generator, action: str, details: bool, *, held_out: bool) -> str:
    telling = action.partition(" ")[0] in TELLING_VERBS and action.count(" ") > 0
    frames: Sequence[str] = HELD_FRAMES if held_out else FRAMES
    if telling and generator.random() < 0.5:
        frames = HELD_TELLING if held_out else TELLING
    usable = [one for one in frames if details or "isted}" not in one]
    return pick(generator, usable)


def _piece(
    generator: np.random.Generator, name: str, phrase: str, said: SpokenValue, *, held_out: bool
) -> str:
    """Return a value with what it is, as a part of a sentence."""
    if isinstance(said.value, bool):
        form = pick(
            generator, ("{phrase} set to {text}", "with {phrase} {text}", "{phrase}: {text}")
        )
        return form.format(phrase=phrase, text=said.text)
    natural = _natural(name)
    if natural and generator.random() < NATURAL_SHARE:
        return pick(generator, natural).format(text=said.text)
    forms = HELD_PIECES if held_out and generator.random() < 0.5 else PIECES
    return pick(generator, forms).format(phrase=phrase, text=said.text)


def _joined(generator: np.random.Generator, parts: Sequence[str]) -> str:
    """Return the parts behind an action; a clause ("the day is …") is set off by a comma."""
    text = ""
    spaced = generator.random() < 0.3
    last = pick(generator, (" and ", ", ", ", and "))
    for number, part in enumerate(parts):
        clause = part.startswith(("the ", "where "))
        if number and not spaced:
            text += (last if number == len(parts) - 1 else ", ") + part
        else:
            text += f"{', ' if clause else ' '}{part}"
    return text


def phrases_of(declaration: Declaration) -> dict[str, tuple[str, ...]]:
    """Return argument -> wordings of its name: the name's words, and a short description of it."""
    phrases = {}
    for name, schema in declaration["parameters"].get("properties", {}).items():
        options = [" ".join(words.split_words(name)) or name]
        text = first_sentence(str(schema.get("description", "")))
        text = re.sub(r"\s*[(\[].*$", "", text)
        text = re.sub(r"^(?:the|a|an)\s+", "", text, flags=re.IGNORECASE)
        if text and len(text.split()) <= LONGEST_PHRASE and not re.search(r"""[:'"`]""", text):
            options.append(lower(text))
        phrases[name] = tuple(dict.fromkeys(options))
    return phrases


def actions_of(declaration: Declaration) -> tuple[str, ...]:
    """Return wordings of what a tool does: by its description, and by its name.

    An argument that the description speaks of is written {name}, in one wording more.
    """
    by_name = " ".join(words.split_words(declaration["name"].rpartition(".")[2]))
    described = _described(declaration)
    if len(described.split()) < 2:
        return (by_name,)
    described = described.replace("{", "(").replace("}", ")")
    slotted = described
    for name in declaration["parameters"].get("properties", {}):
        spoken = r"\s+".join(map(re.escape, words.split_words(name)))
        pattern = rf"\b(?:an?|the|this|your)(?:\s+(?:given|specified|certain))?\s+{spoken}\b(?!')"
        slotted = re.sub(pattern, f"{{{name}}}", slotted, count=1, flags=re.IGNORECASE)
    options = [described, slotted, slotted] if slotted != described else [described, described]
    return (*options, by_name) if _begins_with_verb(declaration) else tuple(options)


def _begins_with_verb(declaration: Declaration) -> bool:
    """Return whether a tool's name begins with a verb, as far as its description tells: that of
    `gallon_to_liter` ("Converts gallons to liters") does not.
    """
    verb = words.split_words(declaration["name"].rpartition(".")[2])[0]
    first = _described(declaration).partition(" ")[0].lower()
    return not first or verb == first or verb in words.VERBS


def _described(declaration: Declaration) -> str:
    """Return the first sentence of a description, from its verb on, without what is in brackets."""
    text = re.sub(r"\s*\([^)]*\)", "", first_sentence(str(declaration.get("description", ""))))
    return base_form(OPENING.sub("", text))


def compact_actions(declaration: Declaration) -> list[str]:
    """Return short wordings that weave in the required arguments: "convert {amount} {source} to
    {target}", or "get the weather in {city}" where the tool tells something.

    A tool that checks one thing is asked "is {text} a palindrome".
    """
    properties = declaration["parameters"].get("properties", {})
    required = [
        name for name in properties if name in declaration["parameters"].get("required", ())
    ]
    verb, *rest = words.split_words(declaration["name"].rpartition(".")[2])
    if not required:
        return []
    if not _begins_with_verb(declaration) and verb not in NO_VERBS:
        return []
    check = CHECKING.match(_described(declaration))
    if check and len(required) == 1:
        return [f"{check[2]} {{{required[0]}}} {check[3]}"]
    if verb in TELLING_VERBS:
        natural = [name for name in required if _natural(name)]
        forms = [f" {_natural(name)[0].format(text=f'{{{name}}}')}" for name in natural]
        return [f"get the {' '.join(rest)}{''.join(forms)}"] if rest and natural else []
    return [] if verb in NO_VERBS else [f"{verb} {_woven(properties, required)}"]


def _woven(properties: Mapping[str, Any], required: Sequence[str]) -> str:
    """Return the required arguments as the objects of a verb."""
    text = f"{{{required[0]}}}"
    before = values.kind_of(required[0], properties[required[0]])
    for name in required[1:]:
        kind = values.kind_of(name, properties[name])
        close = (before in ("integer", "number") and kind in ("currency", "unit")) or (
            before == "given" and kind == "surname"
        )
        if close:
            form = "{text}"
        else:
            form = next(iter(_natural(name)), f"with {' '.join(words.split_words(name))} {{text}}")
        text += f" {form.format(text=f'{{{name}}}')}"
        before = kind
    return text


def _natural(name: str) -> list[str]:
    """Return how the value of an argument of this name can stand in a sentence without the name."""
    parts = words.split_words(name)
    if len(parts) > 1 and parts[0] in words.SOURCES:
        # "in USD" would be what is converted to, though `base_currency` is a currency.
        return ["from {text}"]
    return [form for word in parts for form in NATURAL.get(word, ())]


LISTING = re.compile(
    r"\b(?:enum|one of|options|choices|(?:allowed|valid|possible) values)\]?\s*(?:are)?\s*:\s*"
    r"([^.;:()\[\]\n]+)",
    re.IGNORECASE,
)


def named_options(text: str) -> list[str]:
    """Return the names that a description quotes, "'km' or 'mi'", or lists behind a colon,
    "[Enum]: USD, EUR"; [] where there are fewer than two.
    """
    options = re.findall(r"""['"`]([\w][\w .+-]{0,24})['"`]""", text)
    listing = LISTING.search(text)
    if len(options) < 2 and listing is not None:
        parts = re.split(r"\s*(?:,\s*(?:and|or)\s|[,/|]|\b(?:and|or)\b)\s*", listing[1].strip())
        options = parts if all(re.fullmatch(r"\w[\w .+-]{0,24}", part) for part in parts) else []
    return list(dict.fromkeys(options)) if len(options) > 1 else []


def first_sentence(text: str) -> str:
    """Return the first sentence of a description, without its full stop."""
    text = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[a-z0-9)\"'])[.!?](?:\s|$)", text)[0].rstrip(".!? ")


def base_form(text: str) -> str:
    """Return a sentence that begins with its verb's base form: "Returns the sum" -> "return the
    sum".
    """
    first, space, rest = text.partition(" ")
    verb = first.lower() if first[1:].islower() or first.istitle() else first
    if verb.endswith("ies") and len(verb) > 4:
        verb = f"{verb[:-3]}y"
    elif re.search(r"(?:ch|sh|ss|x|zz)es$", verb):
        verb = verb[:-2]
    elif verb.endswith("s") and not verb.endswith("ss") and verb not in NOT_THIRD_PERSON:
        verb = verb[:-1]
    return f"{verb}{space}{rest}"


def upper(text: str) -> str:
    """Return a text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


def lower(text: str) -> str:
    """Return a text that begins with a small letter, unless its first word is all capitals."""
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def clarify(phrase: str) -> str:
    """Return the question back for a missing argument."""
    return f"What is the {phrase}?"


def arguments_of(said: Mapping[str, SpokenValue]) -> dict[str, Any]:
    """Return the arguments of the call."""
    return {name: one.value for name, one in said.items()}
