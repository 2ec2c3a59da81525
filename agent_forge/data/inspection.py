"""What training would make of rows: their dialect, splits, lengths, and which tokens are learned.

Writes nothing.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from agent_forge.config.limits import Encoding
from agent_forge.config.schema import SPLITS
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.data import rows as raw
from agent_forge.data.chat import encode_chat
from agent_forge.data.documents import split_of
from agent_forge.data.files import UTF8
from agent_forge.data.windows import longest as longest_context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def inspect_rows(
    names: Sequence[str],
    tokenizer: "PreTrainedTokenizerFast",
    shown: int,
    mask_roles: Sequence[str] = ("assistant",),
    *,
    encoding: str = UTF8,
    ignored: Sequence[str] = (),
    last_turn: bool = False,
) -> dict[str, Any]:
    """Return counts over all rows and the masks of the first `shown`.

    last_turn: count as learned only the last learned turn of a row, as training.last_turn does.
    Raises DataError when no token is trained.

    A mask is a list of {"text", "trained"}: the row as the model sees it, cut where training starts
    and stops.
    """
    _check_options(mask_roles, encoding)
    dialects: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    seen: set[str] = set()
    tokens = trained = longest = count = unlearned = cut = 0
    limit = longest_context(tokenizer)
    masks: list[list[dict[str, Any]]] = []
    for name in names:
        for row, turns in raw.conversations(name, mask_roles, encoding=encoding, ignored=ignored):
            count += 1
            dialects[raw.dialect(row)] += 1
            unlearned += not raw.is_learned(turns, mask_roles)
            key = raw.key_of(turns)
            if key not in seen:
                splits[split_of(key)] += 1
            seen.add(key)
            if last_turn:
                turns = raw.last_turn_alone(turns, mask_roles)
            ids, mask = encode_chat(tokenizer, turns, mask_roles)
            tokens += len(ids)
            trained += sum(mask)
            longest = max(longest, len(ids))
            cut += limit is not None and len(ids) > limit
            if len(masks) < shown:
                masks.append(segments(tokenizer, ids, mask))
    if not trained:
        raise DataError(
            f"{', '.join(names)}: none of {tokens:,} tokens in {count} rows is trained: no row has "
            "a turn of "
            f"{', '.join(mask_roles)} that its marks let be learned; see --roles"
        )
    return {
        "rows": count, "distinct": len(seen), "marked_out": unlearned, "dialects": dict(dialects),
        "splits": {split: splits[split] for split in SPLITS}, "tokens": tokens,
        "trained_tokens": trained, "trained_share": trained / tokens, "longest_tokens": longest,
        "too_long": cut, "masks": masks,
    }  # fmt: skip


def _check_options(mask_roles: Sequence[str], encoding: str) -> None:
    """Raise ConfigError for an unknown encoding, or a role that no turn ever has."""
    if Encoding().wrong(encoding):
        raise ConfigError(f"--encoding must be {Encoding()}, got '{encoding}'")
    unknown = set(mask_roles) - set(raw.SPEAKERS.values())
    if unknown:
        known = ", ".join(sorted(set(raw.SPEAKERS.values())))
        raise ConfigError(
            f"--roles: no turn ever has the role {', '.join(sorted(unknown))}; roles: {known}"
        )


def segments(
    tokenizer: "PreTrainedTokenizerFast", ids: Sequence[int], mask: Sequence[bool]
) -> list[dict[str, Any]]:
    """Return the text of `ids` in runs of equal mask."""
    return [
        {"text": tokenizer.decode([token for token, _ in run]), "trained": learned}
        for learned, run in (
            (key, list(group))
            for key, group in groupby(zip(ids, mask, strict=True), lambda x: x[1])
        )
    ]
