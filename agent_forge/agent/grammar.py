"""Decode under a grammar: what a model writes as a call is valid JSON that fits its tool's schema.

llguidance turns the schemas of the enabled tools into the tokens that may come next; the engines
mask all others (`models.sampling.TokenMask`). It mends syntax alone: which tool, and which values,
the model still chooses. When few tokens are left the mask allows only what closes the message, so
that nothing is cut off. Source: llguidance 1.9, by its Lark grammars.
"""

import json
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.agent.tool import Tool
from agent_forge.core.errors import ConfigError
from agent_forge.data.call_dialects import DEFAULT
from agent_forge.data.calls import CALL_CLOSE, CALL_OPEN
from agent_forge.data.chat import call_dialect

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LARGEST = 10**15
NONE, CALLS, REQUIRED = "none", "calls", "required"
KINDS = (NONE, CALLS, REQUIRED)
# Text that closes what is open: strings, lists, objects, calls.
_CLOSER = re.compile(r"[\"}\],:{\[]*(?:</tool_call>)?")
_TAG_BYTES = len(CALL_OPEN) + len(CALL_CLOSE) + 40


def token_mask(
    tokenizer: "PreTrainedTokenizerFast",
    tools: Sequence[Tool],
    kind: str,
    stop_ids: Collection[int],
    max_new_tokens: int,
) -> "GrammarMask | None":
    """Return the mask of one message; None where nothing is to be masked.

    Raises ConfigError where llguidance is not installed, for another dialect than Hermes, and for a
    schema that llguidance cannot follow.
    """
    if kind == NONE or not tools:
        return None
    if call_dialect(tokenizer) != DEFAULT:
        raise ConfigError(
            f"agent.grammar={kind} is for calls as Hermes writes them, this model writes "
            f"{call_dialect(tokenizer)}; set agent.grammar=none"
        )
    schemas = tuple((tool.name, json.dumps(tool.parameters)) for tool in tools)
    return GrammarMask(tokenizer, schemas, kind, tuple(sorted(stop_ids)), max_new_tokens)


def lark(schemas: Sequence[tuple[str, str]], kind: str, tags: Sequence[str]) -> str:
    """Return the grammar of messages: calls alone, or words without "<" and then calls.

    tags: what opens and closes a call, as Lark writes a text or a token.
    """
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": _finite(json.loads(parameters))},
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
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise ConfigError(
                "agent.grammar needs llguidance; pip install 'agent-forge[agent]'"
            ) from None
        self._inner = _ll_tokenizer(tokenizer.backend_tokenizer.to_str(), stop_ids)
        tags = [_tag(self._inner, tokenizer, tag) for tag in (CALL_OPEN, CALL_CLOSE)]
        grammar = LLMatcher.grammar_from_lark(lark(schemas, kind, tags))
        self._matcher = LLMatcher(self._inner, grammar)
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:200]
            raise ConfigError(f"llguidance cannot follow the schemas of the tools: {reason}")
        self._closers = _closers(self._inner, stop_ids)
        self._left = max_new_tokens
        # A message that must close needs at most a token per byte of the shortest call.
        longest = max(len(name) + len(parameters) for name, parameters in schemas)
        self._reserve = _TAG_BYTES + longest

    def allowed(self, size: int) -> NDArray[np.bool_]:
        """Return which of `size` tokens may come next."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        known = self._inner.vocab_size
        words = allocate_token_bitmask(1, known)
        fill_next_token_bitmask(self._matcher, words)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:known].astype(np.bool_)
        if self._left <= self._reserve and (bits & self._closers).any():
            bits &= self._closers
        # A model may have more logits than its tokenizer has tokens.
        return np.pad(bits, (0, max(size - known, 0)))[:size]

    def take(self, token: int) -> None:
        """Note the token that was chosen."""
        self._left -= 1
        self._matcher.consume_token(token)


@lru_cache(maxsize=4)
def _ll_tokenizer(backend: str, stop_ids: tuple[int, ...]) -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer(backend, eos_token=list(stop_ids))


def _finite(schema: Any) -> Any:
    """Return a schema whose numbers have bounds, because no tool takes 1e999."""
    if isinstance(schema, list):
        return [_finite(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        key: value if key in ("enum", "const", "default", "required") else _finite(value)
        for key, value in schema.items()
    }
    if result.get("type") in ("number", "integer"):
        result.setdefault("minimum", -LARGEST)
        result.setdefault("maximum", LARGEST)
    return result


def _tag(inner: Any, tokenizer: "PreTrainedTokenizerFast", tag: str) -> str:
    """Return a tag as Lark writes it: bare where it is one token, else as text."""
    number = tokenizer.convert_tokens_to_ids(tag)
    is_token = any(token.content == tag for token in tokenizer.added_tokens_decoder.values())
    return tag if is_token and inner.is_special_token(number) else f'"{tag}"'


def _closers(inner: Any, stop_ids: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which tokens only close what is open, or end the message."""
    stops = set(stop_ids)
    texts = (inner.decode_str([token]) for token in range(inner.vocab_size))
    return np.array(
        [i in stops or (bool(text) and _CLOSER.fullmatch(text) is not None)
         for i, text in enumerate(texts)]
    )  # fmt: skip
