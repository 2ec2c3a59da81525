"""Output heads that share the embedding's weights in one model and are stored apart in another.

What a model has follows from its files and its config as transformers reads them: without a stored
head the embedding serves; a stored head that equals the embedding is a duplicate, unless the config
says that the two are apart.
"""

from collections.abc import Mapping
from typing import Any

from agent_forge.merge.files import ModelFiles
from agent_forge.merge.layers import NESTED

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
TIE = "tie_word_embeddings"
CHUNK_ENTRIES = 1 << 20


def embedding_name(files: ModelFiles) -> str:
    """Return the name of the input embedding, "" when no tensor is called like one."""
    return _named_like(files, EMBEDDINGS)


def head_name(files: ModelFiles) -> str:
    """Return the name of the stored output head, "" when there is none."""
    return _named_like(files, HEADS)


def ties(config: Mapping[str, Any]) -> bool | None:
    """Return whether a config shares the embedding with the head; None when it does not say."""
    inner: Mapping[str, Any] = next(
        (config[key] for key in NESTED if isinstance(config.get(key), dict)), {}
    )
    value = config.get(TIE, inner.get(TIE))
    return value if isinstance(value, bool) else None


def settle(
    models: Mapping[str, tuple[ModelFiles, Mapping[str, Any]]],
) -> tuple[bool | None, list[str]]:
    """Make all models (files and config) alike: all with a head of their own, or all without.

    Duplicates of the embedding are left out. Where some models have a head of their own, the others
    get a copy of their embedding as one. Return what the result's config must say about shared
    weights (None where it may stay as it is), and notes.
    """
    notes = []
    dropped = False
    for label, (files, config) in models.items():
        head, embedding = head_name(files), embedding_name(files)
        if head and embedding and ties(config) is not False and _equal(files, head, embedding):
            files.drop(head)
            dropped = True
            notes.append(f"{label} stores {head}, which repeats {embedding}: the two stay one")
    heads = {label: head_name(files) for label, (files, _) in models.items()}
    owner = next((label for label, head in heads.items() if head), None)
    if owner is None:
        return (True if dropped else None), notes
    for label, (files, config) in models.items():
        embedding = embedding_name(files)
        if not heads[label] and embedding and ties(config) is not False:
            files.put(heads[owner], files.stored(embedding))
            notes.append(
                f"{label} ties its head to its embedding, {owner} does not: the result has both "
                "apart"
            )
    return False, notes


def _named_like(files: ModelFiles, endings: tuple[str, ...]) -> str:
    return next(
        (name for ending in endings for name in files.forms if f".{name}".endswith(f".{ending}")),
        "",
    )


def _equal(files: ModelFiles, one: str, other: str) -> bool:
    """Return whether two tensors hold the same bytes."""
    if files.forms[one] != files.forms[other]:
        return False
    left, right = files.stored(one), files.stored(other)
    entries = left.shape[0] * left.shape[1] if len(left.shape) == 2 else 0
    return all(
        left.read(start, min(start + CHUNK_ENTRIES, entries)).tobytes()
        == right.read(start, min(start + CHUNK_ENTRIES, entries)).tobytes()
        for start in range(0, entries, CHUNK_ENTRIES)
    )
