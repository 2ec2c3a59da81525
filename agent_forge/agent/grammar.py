"""Decode under a grammar: what a model writes as a call is valid JSON that fits its tool's schema.

llguidance turns the schemas of the enabled tools into the tokens that may come next; the engines
mask all others (`models.sampling.TokenMask`). It mends syntax alone: which tool, and which values,
the model still chooses. When only as many tokens are left as the end of the message needs, the mask
allows that end alone (closing.py), and no call begins that could not be ended, so that nothing is
cut off. Source: llguidance 1.9, by its Lark grammars.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from agent_forge.agent import closing
from agent_forge.config.schema import GRAMMARS
from agent_forge.core.errors import ConfigError
from agent_forge.data.call_dialects import DEFAULT
from agent_forge.data.calls import CALL_CLOSE, CALL_OPEN
from agent_forge.data.chat import call_dialect

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LARGEST = 10**15
OPEN_LEVELS = 4  # optional objects inside one another that a call may have open
NONE, CALLS, REQUIRED = GRAMMARS
_NUMBER = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
_PLAIN = [{"type": "string"}, _NUMBER, {"type": "boolean"}, {"type": "null"}]
_ANYTHING = {"anyOf": [*_PLAIN, {"type": "array", "items": {"anyOf": _PLAIN}}]}
# Entries of a schema that leave open which values fit.
_NOTES = {"description", "title", "default", "examples", "$comment", "deprecated"}
# The bytes of a call beside the tool's name and its arguments: tags, keys, brackets, spaces.
_FRAME_BYTES = len(CALL_OPEN) + len(CALL_CLOSE) + len('{"name": "", "arguments": }') + 2


class SchemaGrammarError(ConfigError):
    """A schema that llguidance cannot turn into a grammar."""


def token_mask(
    tokenizer: "PreTrainedTokenizerFast",
    tools: Mapping[str, Mapping[str, Any]],
    kind: str,
    stop_ids: Collection[int],
    max_new_tokens: int,
) -> "GrammarMask | None":
    """Return the mask of one message; None where nothing is to be masked.

    tools: name of each tool that may be called -> the JSON schema of its arguments.
    Raises ConfigError where llguidance is not installed and for another dialect than Hermes,
    SchemaGrammarError for a schema that llguidance cannot follow.
    """
    if kind == NONE or not tools:
        return None
    if call_dialect(tokenizer) != DEFAULT:
        raise ConfigError(
            f"grammar={kind} is for calls as Hermes writes them, this model writes "
            f"{call_dialect(tokenizer)}; set grammar=none"
        )
    schemas = tuple((name, json.dumps(schema)) for name, schema in tools.items())
    return GrammarMask(tokenizer, schemas, kind, tuple(sorted(stop_ids)), max_new_tokens)


def kind_of_round(kind: str, number: int) -> str:
    """Return the grammar of a message: after results the answer may be words, whatever the first
    message has to be.
    """
    return CALLS if number and kind == REQUIRED else kind


def lark(schemas: Sequence[tuple[str, str]], kind: str, tags: Sequence[str]) -> str:
    """Return the grammar of messages: calls alone, or words without "<" and then calls.

    tags: what opens and closes a call, as Lark writes a text or a token.
    """
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": _closed(json.loads(parameters))},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, parameters in schemas
    ]
    value = json.dumps({"anyOf": calls, "x-guidance": {"whitespace_flexible": False}})
    start = "call+" if kind == REQUIRED else "TEXT | TEXT? call+"
    return (
        f"start: {start}\ncall: {tags[0]} value {tags[1]}\nvalue: %json {value}\n"
        'TEXT: /[^<]+/\n'
    )  # fmt: skip


class GrammarMask:
    """The tokens that may come next in one message."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        schemas: tuple[tuple[str, str], ...],
        kind: str,
        stop_ids: tuple[int, ...],
        max_new_tokens: int,
    ) -> None:
        self._vocabulary = _vocabulary(tokenizer, stop_ids)
        rules = _rules(self._vocabulary, schemas, kind)
        self._matcher = rules.matcher.deep_copy()
        self._rules, self._left, self._check_in = rules, max_new_tokens, 0
        self._in_words = kind != REQUIRED

    def allowed(self, size: int) -> NDArray[np.bool_]:
        """Return which of `size` tokens may come next."""
        known, rules = len(self._vocabulary.begins_tag), self._rules
        bits = closing.allowed_bits(self._matcher, known)
        if self._in_words:
            if self._left < rules.call_tokens + rules.growth:
                bits &= ~self._vocabulary.begins_tag
        elif self._left <= rules.longest + OPEN_LEVELS * rules.growth and self._check_in <= 0:
            ending = closing.plan(self._matcher, self._vocabulary.closers)
            room = self._left - len(ending) - rules.growth
            if room <= 0:
                bits = np.zeros_like(bits)
                bits[ending[0]] = True
            # Each token adds at most `growth` to the end and takes one from what is left.
            self._check_in = max(room // (1 + rules.growth), 0)
        # A model may have more logits than its tokenizer has tokens.
        return np.pad(bits, (0, max(size - known, 0)))[:size]

    def take(self, token: int) -> None:
        """Note the token that was chosen."""
        self._left -= 1
        self._check_in -= 1
        begins = bool(self._vocabulary.begins_tag[token])
        self._matcher.consume_token(token)
        # Between calls the message may end, as it may in words.
        self._in_words = self._matcher.is_accepting() or (self._in_words and not begins)


class _Vocabulary:
    """A tokenizer as llguidance reads it, how much each token closes, and what opens a call."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", stop_ids: tuple[int, ...]) -> None:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise ConfigError(
                "a grammar needs llguidance; pip install 'agent-forge[agent]'"
            ) from None
        self.inner = LLTokenizer(tokenizer.backend_tokenizer.to_str(), eos_token=list(stop_ids))
        self.closers = closing.Closers.of(self.inner, stop_ids)
        self.tags = [_tag(self.inner, tokenizer, tag) for tag in (CALL_OPEN, CALL_CLOSE)]
        stops = set(stop_ids)
        self.begins_tag = np.array(
            ["<" in self.inner.decode_str([token]) and token not in stops
             for token in range(self.inner.vocab_size)]
        )  # fmt: skip


# tokenizer -> (its tokens, stop tokens) -> its vocabulary; reading one takes a second
_known: "WeakKeyDictionary[Any, dict[tuple[Any, ...], _Vocabulary]]" = WeakKeyDictionary()


def _vocabulary(tokenizer: "PreTrainedTokenizerFast", stop_ids: tuple[int, ...]) -> _Vocabulary:
    of_tokenizer = _known.setdefault(tokenizer, {})
    key = (len(tokenizer), stop_ids)
    if key not in of_tokenizer:
        of_tokenizer[key] = _Vocabulary(tokenizer, stop_ids)
    return of_tokenizer[key]


class _Rules:
    """The grammar of some tools: a matcher at its beginning, and how long calls are.

    longest: a bound of the tokens of any tool's shortest call. growth: how many tokens one more
    token may cost. call_tokens: how many a call needs that begins now.
    """

    def __init__(self, vocabulary: _Vocabulary, schemas: Any, kind: str) -> None:
        from llguidance import LLMatcher

        self.matcher = LLMatcher(
            vocabulary.inner, LLMatcher.grammar_from_lark(lark(schemas, kind, vocabulary.tags))
        )
        if self.matcher.is_error():
            reason = " ".join(self.matcher.get_error().split())[:200]
            raise SchemaGrammarError(f"llguidance cannot follow the schemas of the tools: {reason}")
        parameters = [(name, _closed(json.loads(text))) for name, text in schemas]
        self.longest = max(
            _FRAME_BYTES + len(json.dumps(name)) + closing.least_bytes(schema)
            for name, schema in parameters
        )
        self.growth = max(closing.growth_bytes(schema) for _, schema in parameters)
        required = LLMatcher(
            vocabulary.inner, LLMatcher.grammar_from_lark(lark(schemas, REQUIRED, vocabulary.tags))
        )
        self.call_tokens = len(closing.plan(required, vocabulary.closers))
        if any(tag.startswith('"') for tag in vocabulary.tags):
            # A token of text may close one call and begin the next.
            self.growth = max(self.growth, self.call_tokens)


@lru_cache(maxsize=64)
def _rules(vocabulary: _Vocabulary, schemas: tuple[tuple[str, str], ...], kind: str) -> _Rules:
    return _Rules(vocabulary, schemas, kind)


def _closed(schema: Any, *, part: bool = False) -> Any:
    """Return a schema that lets fewer values through, so that each is one that tools take.

    Numbers have bounds, because no tool takes 1e999; an object that names its entries has no
    others; what is open is a plain value or a list of them. part: one of several schemas that a
    value fits at once, which may have entries of the others.
    """
    if schema is True or (isinstance(schema, dict) and set(schema) <= _NOTES):
        return _ANYTHING
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            inner = part or key == "allOf"
            result[key] = [_closed(one, part=inner) for one in schema[key]]
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        if key in schema:
            result[key] = {name: _closed(one) for name, one in schema[key].items()}
    if "items" in schema or schema.get("type") == "array":
        result["items"] = _closed(schema.get("items", True))
    if schema.get("type") == "object" or "properties" in schema:
        named = {"properties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"} & set(schema)
        more = schema.get("additionalProperties", True)
        if more is not True:
            result["additionalProperties"] = _closed(more)
        elif not part:
            result["additionalProperties"] = False if named else _ANYTHING
    if {"number", "integer"} & set(_types(schema)):
        result.setdefault("minimum", -LARGEST)
        result.setdefault("maximum", LARGEST)
    return result


def _types(schema: Mapping[str, Any]) -> list[Any]:
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]


def _tag(inner: Any, tokenizer: "PreTrainedTokenizerFast", tag: str) -> str:
    """Return a tag as Lark writes it: bare where it is one token, else as text."""
    number = tokenizer.convert_tokens_to_ids(tag)
    is_token = any(token.content == tag for token in tokenizer.added_tokens_decoder.values())
    return tag if is_token and inner.is_special_token(number) else f'"{tag}"'
