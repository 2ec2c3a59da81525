"""Token ids in a merged model's settings: they follow its tokenizer; it stops where its parents do.

Works on config.json, generation_config.json and tokenizer_config.json as plain dictionaries.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent_forge.merge.layers import NESTED

EOS = "eos_token_id"
# settings of one id, for which the model that the tokenizer comes from decides
ENDS = ("bos", "pad")
SUFFIX = "_token_id"
# Settings that hold token ids in other forms, which are not translated.
ID_LISTS = (
    "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids",
    "forced_decoder_ids", "sequence_bias",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Parent:
    """What the files of one model say of special tokens.

    ids: token -> id in its own vocabulary, {} if unknown.
    """

    config: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    ids: Mapping[str, int] = field(default_factory=dict)

    def numbers(self, name: str) -> list[int]:
        """Return the ids that config and generation settings call `name`, in the model's
        vocabulary.
        """
        inner: Mapping[str, Any] = next(
            (self.config[key] for key in NESTED if isinstance(self.config.get(key), dict)), {}
        )
        values = [self.config.get(name), inner.get(name), self.generation.get(name)]
        return list(dict.fromkeys(number for value in values for number in _listed(value)))


def unite_stops(
    parents: Mapping[str, Parent], documents: Iterable[dict[str, Any]], donor: str
) -> list[str]:
    """Let the donor's settings `documents` stop at every parent's end tokens; all share a
    vocabulary.

    Return notes.
    """
    united = list(
        dict.fromkeys(n for label in [donor, *parents] for n in parents[label].numbers(EOS))
    )
    if set(united) <= set(parents[donor].numbers(EOS)):
        return []
    for document in documents:
        for part in _parts(document):
            part[EOS] = united
    return [f"{EOS} is {united}: the end tokens of all models united"]


def follow(
    parents: Mapping[str, Parent],
    documents: Iterable[dict[str, Any]],
    donor: str,
    chosen: str,
    target: Mapping[str, int],
) -> list[str]:
    """Translate the token ids in the donor's settings `documents` for the tokenizer of `chosen`.

    target: token -> id of the result. bos and pad are the chosen model's; end tokens of all
    models are united, the chosen one's first; other ids keep their token. Return notes.
    """
    ends = {f"{end}{SUFFIX}": _first(parents[chosen], end, target) for end in ENDS}
    stops = [n for label in [chosen, *parents] for n in _translated(parents[label], "eos", target)]
    united = list(dict.fromkeys(stops))
    values: dict[str, Any] = {**ends, EOS: united[0] if len(united) == 1 else united or None}
    notes = []
    for document in documents:
        for part in _parts(document):
            notes += _rewritten(part, values, parents[donor], target)
    listed = ", ".join(f"{name} {value}" for name, value in values.items())
    return [*dict.fromkeys(notes), f"token ids follow the tokenizer of {chosen}: {listed}"]


def _parts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the document, and its nested part where that holds token ids of its own."""
    nested = [document[key] for key in NESTED if isinstance(document.get(key), dict)]
    return [document, *(part for part in nested if any(key.endswith(SUFFIX) for key in part))]


def _rewritten(
    part: dict[str, Any], values: Mapping[str, Any], donor: Parent, target: Mapping[str, int]
) -> list[str]:
    notes = []
    tokens = {number: token for token, number in donor.ids.items()}
    for name in [name for name in part if name.endswith(SUFFIX) and name not in values]:
        for number in _listed(part[name]):
            if tokens.get(number, "") not in target:
                notes.append(f"{name} {number} stands for no token of the result and was left out")
                part[name] = None
            elif not isinstance(part[name], list):
                part[name] = target[tokens[number]]
        if isinstance(part[name], list):
            part[name] = [target[tokens[number]] for number in part[name]]
    for name in ID_LISTS:
        if part.get(name):
            notes.append(f"{name} names tokens of another vocabulary and was left out")
            del part[name]
    part.update(values)
    return notes


def _first(parent: Parent, end: str, target: Mapping[str, int]) -> int | None:
    return next(iter(_translated(parent, end, target)), None)


def _translated(parent: Parent, end: str, target: Mapping[str, int]) -> list[int]:
    """Return the result's ids of a parent's special tokens of one kind, its tokenizer's first."""
    entry = parent.tokenizer.get(f"{end}_token")
    own = entry.get("content") if isinstance(entry, Mapping) else entry
    tokens = {number: token for token, number in parent.ids.items()}
    named = [str(own), *(tokens.get(number, "") for number in parent.numbers(f"{end}{SUFFIX}"))]
    return list(dict.fromkeys(target[token] for token in named if token in target))


def _listed(value: Any) -> list[int]:
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, int) and not isinstance(entry, bool)]
