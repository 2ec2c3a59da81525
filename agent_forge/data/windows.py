"""How long a model's context is, and what it begins with, for data, scoring, chat and calibration.

Some tokenizers put a token for the beginning of text (BOS) before everything they encode, and their
models rely on it: Gemma needs a quarter more bits per byte without it. A window of running text
then begins with BOS, exactly one.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agent_forge.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
)
_UNLIMITED = 1 << 30  # transformers writes 1e30 where a tokenizer states no limit
_log = logging.getLogger("agent_forge")


def window_prefix(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the ids that every context begins with: what the tokenizer itself puts before a text.

    That is [BOS] or nothing for most; some put a token there without naming it bos_token.
    """
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    starts = range(len(whole) - len(plain) + 1)
    before = next((i for i in starts if whole[i : i + len(plain)] == plain), 0)
    return whole[:before]


def text_start(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Return the id that stands before a document, and between two: what the tokenizer itself puts
    there, else BOS, or the end of text where there is none.

    Raises DataError when the tokenizer has none of these.
    """
    for token in (*window_prefix(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise DataError(
        "the tokenizer has neither a bos_token nor an eos_token, one of which stands between "
        "documents; "
        "set one in tokenizer_config.json"
    )


def positions(config: Any) -> int | None:
    """Return how many tokens a model's config has positions for; None where it names no limit."""
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in _POSITIONS:
        value = getattr(inner, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def stored_positions(settings: Mapping[str, Any]) -> int | None:
    """Return how many positions a config.json names, in it or in the config of the model that it
    wraps, or None.
    """
    for part in (settings, settings.get("text_config"), settings.get("base_config")):
        for name in _POSITIONS:
            value = part.get(name) if isinstance(part, Mapping) else None
            if isinstance(value, int) and value > 0:
                return value
    return None


def begin_ids(config: Any) -> list[int]:
    """Return [BOS] as a model's config names it, which a context that is cut keeps in front, or []."""
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    bos = getattr(inner, "bos_token_id", None)
    return [] if bos is None else [int(bos)]


def longest(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """Return the model's positions as its tokenizer knows them (`models.load_tokenizer` sees to
    that), or None.
    """
    limit = tokenizer.model_max_length
    return int(limit) if limit and limit < _UNLIMITED else None


def refuse_long_window(length: int, limit: int | None) -> None:
    """Raise ConfigError when windows of `length` tokens are longer than the model's positions."""
    if limit is not None and length > limit:
        raise ConfigError(
            f"windows of {length} tokens are longer than the model's {limit} positions; "
            f"set the phase's length_tokens to at most {limit}"
        )


def cut_left(ids: Sequence[int], limit: int, prefix: Sequence[int] = ()) -> list[int]:
    """Return the last `limit` ids; a `prefix` (BOS) that they began with stays in front."""
    if len(ids) <= limit:
        return list(ids)
    begins = list(ids[: len(prefix)]) == list(prefix)
    held = list(prefix) if begins and len(prefix) < limit else []
    return held + list(ids[len(ids) - (limit - len(held)) :])


def fitting_prompt(
    ids: Sequence[int], new_tokens: int, limit: int | None, prefix: Sequence[int] = ()
) -> list[int]:
    """Return a prompt that leaves room for `new_tokens` among `limit` positions, cut on the left
    with a warning.

    prefix: as for `cut_left`. Raises ConfigError when new_tokens alone do not fit.
    """
    if limit is None or len(ids) + new_tokens <= limit:
        return list(ids)
    if new_tokens >= limit:
        raise ConfigError(
            f"{new_tokens} new tokens leave no room for a prompt among the model's {limit} "
            "positions; "
            f"ask for fewer than {limit}"
        )
    _say_cut(limit)
    return cut_left(ids, limit - new_tokens, prefix)


@functools.cache
def _say_cut(limit: int) -> None:
    """Log, once per process, that prompts are cut."""
    _log.warning(
        "prompts that do not fit the model's %d positions with their answers are cut on the left",
        limit,
    )


def scoring_windows(
    ids: Sequence[int], mask: Sequence[bool], limit: int | None, prefix: Sequence[int] = ()
) -> list[tuple[Sequence[int], Sequence[bool]]]:
    """Return (ids, mask) windows of at most `limit` tokens in which every scored token stands
    exactly once.

    A row that fits is returned as it is. A longer one is cut on the left where all scored tokens
    stand at its end; else each further window begins half a window later, and scores what the one
    before has not. prefix: BOS; where the row begins with it, every window does.
    """
    count = len(ids)
    if limit is None or count <= limit:
        return [(ids, mask)]
    begins = list(ids[: len(prefix)]) == list(prefix) and len(prefix) <= limit // 2
    held = range(len(prefix) if begins else 0)
    room = limit - len(held)
    first = next((i for i, scored in enumerate(mask) if scored), count)
    if first > count - room:
        return [_picked(ids, mask, [*held, *range(count - room, count)], count - room)]
    parts: list[tuple[Sequence[int], Sequence[bool]]] = []
    done = 0  # tokens before this one are scored
    start = 0
    while done < count:
        end = min(start + (room if start else limit), count)
        places = [*held, *range(start, end)] if start else range(end)
        window = _picked(ids, mask, places, done)
        if any(window[1]):
            parts.append(window)
        done, start = end, start + max(limit // 2, 1)
    return parts


def _picked(
    ids: Sequence[int], mask: Sequence[bool], places: Sequence[int], done: int
) -> tuple[list[int], list[bool]]:
    """Return the ids at `places`, and which of them are scored: those of the mask from `done` on."""
    return [ids[i] for i in places], [bool(mask[i]) and i >= done for i in places]
