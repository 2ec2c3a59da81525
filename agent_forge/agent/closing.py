"""End a message under a grammar before its tokens run out.

`plan` is a shortest-looking way to the end: at each step the allowed token that closes most, else
the longest one. It is an upper bound of what the message still needs, so whoever follows it once
that many tokens are left is never cut off. `least_bytes` and `growth_bytes` bound, from a schema
alone, how long the shortest call is and how much one more token can add to it; a token has at
least one byte.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Text that closes what is open: strings, lists, objects, calls.
_CLOSER = re.compile(r"[\"}\]]+(?:</tool_call>)?|</tool_call>")
_STOP, _CLOSES, _COMMA, _BRACKET, _DIGIT = 10**8, 10**6, 10**4, 10**3, 500
DIGITS = ["1", "2", "3", "4", "5", "6", "7", "8", "9"]
LETTER = "q"  # begins no value of JSON, so it is allowed in strings alone
LONGEST_PLAN = 4096  # tokens after which a grammar is taken to have no end
NUMBER_BYTES, PATTERN_BYTES, PLAIN_BYTES = 20, 64, 8
DEEPEST = 12  # levels of a schema that are looked into


@dataclass(frozen=True, slots=True)
class Closers:
    """How much each token brings a message towards its end: (vocabulary,) int64 each.

    A stop token ranks first, then what only closes, then long tokens. outside: brackets before
    quotes. inside: what begins with a quote, because in a string a bracket closes nothing.
    letter: a token that is allowed inside strings alone.
    """

    outside: NDArray[np.int64]
    inside: NDArray[np.int64]
    letter: int

    @classmethod
    def of(cls, inner: Any, stop_ids: tuple[int, ...]) -> "Closers":
        """Return the ranks of the tokens of an LLTokenizer."""
        outside, inside = (np.zeros(inner.vocab_size, np.int64) for _ in range(2))
        letter = 0
        for token in range(inner.vocab_size):
            text = inner.decode_str([token])
            letter = token if text == LETTER else letter
            closes = _CLOSES if _CLOSER.fullmatch(text) else 0
            brackets = _BRACKET * sum(sign in "}]>" for sign in text)
            length = len(text.encode())
            # A number may not end with zeros alone (-0.00): other digits go before them. Where
            # more has to come, a comma ends the number.
            length += _COMMA if text.startswith(",") else _DIGIT if text in DIGITS else 0
            outside[token] = length + (closes and closes + brackets)
            inside[token] = len(text.encode()) + (closes if text.startswith('"') else 0)
        outside[list(stop_ids)] = inside[list(stop_ids)] = _STOP
        return cls(outside, inside, letter)

    def best(self, bits: NDArray[np.bool_]) -> int:
        """Return the allowed token that closes most."""
        rank = self.inside if bits[self.letter] else self.outside
        return int(np.where(bits, rank, -1).argmax())


def plan(matcher: Any, closers: Closers, longest: int = LONGEST_PLAN) -> list[int]:
    """Return tokens that end the message, the stop token last; at most `longest`.

    matcher: an LLMatcher, which stays as it is.
    """
    ahead, tokens = matcher.deep_copy(), list[int]()
    while len(tokens) < longest:
        token = closers.best(allowed_bits(ahead, len(closers.outside)))
        tokens.append(token)
        if closers.outside[token] == _STOP:
            break
        ahead.consume_token(token)
    return tokens


def allowed_bits(matcher: Any, size: int) -> NDArray[np.bool_]:
    """Return which of a tokenizer's `size` tokens may come next."""
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    words = allocate_token_bitmask(1, size)
    fill_next_token_bitmask(matcher, words)
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:size].astype(np.bool_)


def least_bytes(schema: Any, level: int = 0) -> int:
    """Return a bound of the bytes of a short value that fits a schema.

    Of alternatives the longest counts, because the choice is the model's.
    """
    if not isinstance(schema, Mapping) or level > DEEPEST:
        return PLAIN_BYTES
    if "enum" in schema or "const" in schema:
        return max(len(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    ways = [way for key in ("anyOf", "oneOf", "allOf") for way in schema.get(key, ())]
    if ways or "$ref" in schema:
        return sum(len(json.dumps(way)) for way in ways) + PATTERN_BYTES
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        inner = schema.get("properties", {})
        required = schema.get("required", ())
        return 2 + sum(_pair_bytes(name, inner.get(name), level) for name in required)
    if kind == "array":
        return 2 + int(schema.get("minItems", 0)) * (
            2 + least_bytes(schema.get("items"), level + 1)
        )
    if kind == "string":
        free = not {"pattern", "format"} & set(schema)
        return 2 + int(schema.get("minLength", 0)) + (0 if free else PATTERN_BYTES)
    return NUMBER_BYTES if kind in ("number", "integer") else PLAIN_BYTES


def growth_bytes(schema: Any, level: int = 0) -> int:
    """Return a bound of what one more entry of an object or a list adds to a value."""
    if not isinstance(schema, Mapping) or level > DEEPEST:
        return PLAIN_BYTES
    costs = [PLAIN_BYTES]
    for name, inner in schema.get("properties", {}).items():
        costs += [_pair_bytes(name, inner, level), growth_bytes(inner, level + 1)]
    for key in ("anyOf", "oneOf", "allOf"):
        costs += [len(json.dumps(way)) for way in schema.get(key, ())]
    for key in ("items", "additionalProperties"):
        inner = schema.get(key)
        costs += [2 + least_bytes(inner, level + 1), growth_bytes(inner, level + 1)]
    return max(costs)


def _pair_bytes(name: str, schema: Any, level: int) -> int:
    """Return a bound of the bytes of an object's entry: comma, name, colon, spaces, value."""
    return 4 + len(json.dumps(name)) + least_bytes(schema, level + 1)
