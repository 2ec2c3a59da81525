"""Tokenizers in both forms: the `tokenizer.*` metadata of a GGUF file and tokenizer.json.

Two of GGUF's tokenizer models are known: `gpt2`, byte-level BPE with merges, and `llama`,
SentencePiece's BPE, whose merges follow from scores: the pair whose union has the best score is
merged first. Reads metadata or a tokenizer, and writes no file.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.models.gguf_format import pre_tokenizers
from agent_forge.models.gguf_format.metadata import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
SPACE = "▁"
_PADDING = re.compile(r"\[PAD\d+\]")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SPECIAL = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id",
    "pad": "padding_token_id", "sep": "seperator_token_id", "cls": "cls_token_id",
    "mask": "mask_token_id",
}  # fmt: skip
_log = logging.getLogger("agent_forge")


def read(meta: Metadata) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """Return the tokenizer of a file, and the ids that end a turn or text, eos first.

    Raises CheckpointError naming what the file lacks, or a value that is not known.
    """
    kind = str(meta.get("tokenizer.ggml.model", ""))
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(
            f"{meta.path}: tokenizer.ggml.model is '{kind}'; known: gpt2 (byte-level "
            "BPE), llama (SentencePiece). "
            "Import the original directory instead"
        )
    tokens = [str(token) for token in meta.get("tokenizer.ggml.tokens") or []]
    types = [int(kind) for kind in meta.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)]
    if not tokens or len(types) != len(tokens):
        raise CheckpointError(
            f"{meta.path}: {len(tokens)} tokens and {len(types)} token types; the file is damaged"
        )
    # These rows of the embedding have no token.
    while _PADDING.fullmatch(tokens[-1]) and types[-1] == UNUSED:
        tokens.pop()
        types.pop()
    ids = {name: meta.get(f"tokenizer.ggml.{key}") for name, key in _SPECIAL.items()}
    special = {
        name: tokens[int(i)]
        for name, i in ids.items()
        if i is not None and 0 <= int(i) < len(tokens)
    }
    content = (
        _byte_level(meta, tokens)
        if kind == "gpt2"
        else _sentence_piece(meta, tokens, types, special)
    )
    content["added_tokens"] = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": types[i] != USER_DEFINED}
        for i, token in enumerate(tokens)
        if types[i] in (CONTROL, USER_DEFINED, UNKNOWN) or token in special.values()
    ]  # fmt: skip
    _add_ends(meta, content, kind, tokens, special)
    stops = [meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return _tokenizer(meta, content, special), list(
        dict.fromkeys(int(i) for i in stops if i is not None)
    )


def _tokenizer(
    meta: Metadata, content: dict[str, Any], special: dict[str, str]
) -> PreTrainedTokenizerFast:
    whole = meta.get("tokenizer.huggingface.json")
    text = str(whole) if whole else json.dumps(content)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), clean_up_tokenization_spaces=False,
        **{f"{name}_token": token for name, token in special.items()},
    )  # fmt: skip
    templates = {
        name: meta.get(f"tokenizer.chat_template.{name}")
        for name in meta.get("tokenizer.chat_templates") or []
    }
    default = meta.get("tokenizer.chat_template")
    if templates:
        templates = {**({"default": default} if default else {}), **templates}
    tokenizer.chat_template = templates or default
    return tokenizer


def _base(model: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "model": model,
        "post_processor": None,
    }


def _byte_level(meta: Metadata, tokens: list[str]) -> dict[str, Any]:
    name = meta.get("tokenizer.ggml.pre")
    if name is None or name == "default":
        _log.warning(
            "%s does not say how text is cut (tokenizer.ggml.pre): as GPT-2 does is taken",
            meta.path,
        )
        name = "gpt-2"
    rule = pre_tokenizers.rule_named(str(name))
    for key in ("add_space_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        if meta.get(f"tokenizer.ggml.{key}"):
            raise CheckpointError(
                f"{meta.path}: tokenizer.ggml.{key} is true in a byte-level BPE, which "
                "is not known here"
            )
    for key in ("token_type_count", "scores"):
        # BPE does not use BERT's segments and SentencePiece's scores.
        meta.get(f"tokenizer.ggml.{key}")
    merges = [str(merge) for merge in meta.get("tokenizer.ggml.merges") or []]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": rule.ignore_merges, "vocab": vocabulary,
        "merges": [_split(merge) for merge in merges],
    }  # fmt: skip
    normalizer = {"type": "NFC"} if rule.names[0] == "qwen2" else None
    decoder = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        **_base(model),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizers.as_json(rule),
        "decoder": decoder,
    }


def _split(merge: str) -> list[str]:
    left, _, right = merge.partition(" ")
    return [left, right]


def _sentence_piece(
    meta: Metadata, tokens: list[str], types: list[int], special: Mapping[str, str]
) -> dict[str, Any]:
    scores = meta.get("tokenizer.ggml.scores")
    if scores is None or len(scores) < len(tokens):
        raise CheckpointError(
            f"{meta.path}: tokenizer.ggml.scores is missing or shorter than its "
            f"{len(tokens)} tokens"
        )
    meta.get("tokenizer.ggml.pre")  # usually "default"; this model does not cut text
    if meta.get("tokenizer.ggml.remove_extra_whitespaces"):
        raise CheckpointError(
            f"{meta.path}: tokenizer.ggml.remove_extra_whitespaces is true, which is not known here"
        )
    meta.get("tokenizer.ggml.merges")  # the merges follow from the scores
    prefixed = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    plain = {
        t: float(scores[i])
        for i, t in enumerate(tokens)
        if types[i] in (NORMAL, USER_DEFINED, UNUSED)
    }
    model = {
        "type": "BPE", "dropout": None, "unk_token": special.get("unk"),
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
        "byte_fallback": any(kind == BYTE for kind in types), "ignore_merges": False,
        "vocab": vocabulary, "merges": [list(pair) for pair in merges_of(plain, vocabulary)],
    }  # fmt: skip
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = {"type": "Prepend", "prepend": SPACE}
    steps = [
        {**spaces, "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefixed:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizer = {"type": "Sequence", "normalizers": [before, spaces]} if prefixed else spaces
    decoder = {"type": "Sequence", "decoders": steps}
    return {**_base(model), "normalizer": normalizer, "pre_tokenizer": None, "decoder": decoder}


def merges_of(scores: Mapping[str, float], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges of SentencePiece's scores: all pairs that form tokens, best first."""
    merges: list[tuple[float, int, int, str, str]] = []
    for token, score in scores.items():
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in scores and right in scores:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges, key=lambda one: one[:3])]


def _add_ends(
    meta: Metadata,
    content: dict[str, Any],
    kind: str,
    tokens: list[str],
    special: Mapping[str, str],
) -> None:
    """Add BOS first and EOS last where the file asks for it, or llama.cpp does by default."""
    name = str(meta.get("tokenizer.ggml.pre", ""))
    usual = kind == "llama" or name in pre_tokenizers.ADD_BOS
    first = bool(meta.get("tokenizer.ggml.add_bos_token", usual and "bos" in special))
    last = bool(meta.get("tokenizer.ggml.add_eos_token", False))
    meta.expect("tokenizer.ggml.add_sep_token", (False,), "no separator is added here")
    ends = [name for name, is_added in (("bos", first), ("eos", last)) if is_added]
    missing = [name for name in ends if name not in special]
    if missing:
        raise CheckpointError(
            f"{meta.path} wants {missing[0]} added to every text, and names no such token"
        )
    if not ends:
        return
    one = {name: {"SpecialToken": {"id": special[name], "type_id": 0}} for name in ends}
    pieces = [
        *([one["bos"]] if first else []),
        {"Sequence": {"id": "A", "type_id": 0}},
        *([one["eos"]] if last else []),
    ]
    second = [*([_typed(one["bos"])] if first else []), {"Sequence": {"id": "B", "type_id": 1}}]
    second += [_typed(one["eos"])] if last else []
    listed = {
        special[n]: {"id": special[n], "ids": [tokens.index(special[n])], "tokens": [special[n]]}
        for n in ends
    }
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": pieces, "pair": [*pieces, *second],
        "special_tokens": listed,
    }  # fmt: skip


def _typed(piece: dict[str, Any]) -> dict[str, Any]:
    return {"SpecialToken": {**piece["SpecialToken"], "type_id": 1}}


def write(
    put: Callable[[str, Any], None],
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: int,
    stops: list[int],
) -> list[str]:
    """Put a tokenizer's metadata; return lines for the user.

    vocabulary: rows of the embedding.
    stops: ids that end a text.

    Raises ConfigError when llama.cpp does not have this kind of tokenizer.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, lines = content["model"], []
    added = {entry["id"]: entry for entry in content.get("added_tokens", [])}
    names = {index: name for name, index in model["vocab"].items()}
    names |= {index: entry["content"] for index, entry in added.items()}
    unknown = tokenizer.unk_token_id
    tokens = [names.get(i, f"[PAD{i}]") for i in range(vocabulary)]
    pieces = _is_sentence_piece(content)
    types = [_type(i, names, added, unknown if pieces else None, pieces) for i in range(vocabulary)]
    if pieces:
        _write_pieces(put, content, tokens, types)
    else:
        lines += _write_byte_level(put, content)
    put("tokenizer.ggml.tokens", tokens)
    put("tokenizer.ggml.token_type", types)
    for name, key in _SPECIAL.items():
        index = getattr(tokenizer, f"{name}_token_id", None)
        if index is not None:
            put(f"tokenizer.ggml.{key}", int(index))
    lines += _write_ends(put, tokenizer, stops)
    _write_templates(put, tokenizer)
    return lines


def _type(
    i: int, names: Mapping[int, str], added: Mapping[int, Any], unknown: int | None, pieces: bool
) -> int:
    if i not in names:
        return UNUSED
    if i == unknown:
        return UNKNOWN
    if i in added:
        return CONTROL if added[i]["special"] else USER_DEFINED
    return BYTE if pieces and _BYTE_TOKEN.fullmatch(names[i]) else NORMAL


def _is_sentence_piece(content: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer.json is SentencePiece's BPE, which writes spaces as ▁."""
    text = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")], ensure_ascii=False)
    return content["model"]["type"] == "BPE" and SPACE in text and "ByteLevel" not in text


def _write_byte_level(put: Callable[[str, Any], None], content: Mapping[str, Any]) -> list[str]:
    model, normalizer, lines = content["model"], content.get("normalizer"), []
    if model["type"] != "BPE":
        raise ConfigError(
            f"this tokenizer is a {model['type']} model; GGUF export knows BPE of bytes "
            "and of SentencePiece. "
            "Use --format hf"
        )
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise ConfigError(
            f"this tokenizer rewrites text first ({normalizer.get('type')}), which "
            "llama.cpp does not do; use --format hf"
        )
    if normalizer is not None:
        lines.append(
            "the tokenizer composes letters and accents first (NFC); llama.cpp takes text "
            "as it comes"
        )
    put("tokenizer.ggml.model", "gpt2")
    name = pre_tokenizers.name_of(
        content.get("pre_tokenizer"), ignore_merges=bool(model.get("ignore_merges"))
    )
    put("tokenizer.ggml.pre", name)
    put("tokenizer.ggml.add_space_prefix", False)
    if not model["merges"]:
        lines.append(
            "the tokenizer has no merges, and llama.cpp opens no byte-level BPE without: "
            "`forge import` does"
        )
    put(
        "tokenizer.ggml.merges", [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    )
    return lines


def _write_pieces(
    put: Callable[[str, Any], None], content: Mapping[str, Any], tokens: list[str], types: list[int]
) -> None:
    """Put SentencePiece's scores, which fall with the rank of a token's merge.

    Raises ConfigError when scores cannot express the merges.
    """
    model = content["model"]
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    scores = [float(-rank.get(token, len(merges))) for token in tokens]
    plain = {t: scores[i] for i, t in enumerate(tokens) if types[i] in (NORMAL, USER_DEFINED)}
    meant = merges_of(plain, model["vocab"])
    lost = set(meant) ^ set(merges)
    if lost:
        raise ConfigError(
            "llama.cpp merges SentencePiece tokens by the score of their union, and "
            "this tokenizer's "
            f"{len(merges):,} merges are others than that gives "
            f"({' + '.join(next(iter(lost)))}, ...); use --format hf"
        )
    normalizer = json.dumps(content.get("normalizer"), ensure_ascii=False)
    metaspace = content.get("pre_tokenizer") or {}
    prefixed = "Prepend" in normalizer or metaspace.get("prepend_scheme") in ("always", "first")
    put("tokenizer.ggml.model", "llama")
    put("tokenizer.ggml.pre", "default")
    put("tokenizer.ggml.scores", scores)
    put("tokenizer.ggml.add_space_prefix", prefixed)


def _write_ends(
    put: Callable[[str, Any], None], tokenizer: PreTrainedTokenizerFast, stops: list[int]
) -> list[str]:
    """Put the tokens that the tokenizer adds to a text, and the ones that end a text."""
    inside = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    at = next((i for i in range(len(whole)) if whole[i : i + len(inside)] == inside), 0)
    first, last = whole[:at], whole[at + len(inside) :]
    if first not in ([], [tokenizer.bos_token_id]) or last not in ([], [tokenizer.eos_token_id]):
        raise ConfigError(
            f"this tokenizer puts {tokenizer.convert_ids_to_tokens(first)} before a text and "
            f"{tokenizer.convert_ids_to_tokens(last)} after it; llama.cpp adds bos and "
            "eos alone. Use --format hf"
        )
    put("tokenizer.ggml.add_bos_token", bool(first))
    put("tokenizer.ggml.add_eos_token", bool(last))
    others = [i for i in stops if i != tokenizer.eos_token_id]
    for name, index in zip(("eot", "eom"), others, strict=False):
        put(f"tokenizer.ggml.{name}_token_id", index)
    if len(others) > 2:
        return [
            "GGUF names three tokens that end a text; "
            f"{tokenizer.convert_ids_to_tokens(others[2:])} are left out"
        ]
    return []


def _write_templates(put: Callable[[str, Any], None], tokenizer: PreTrainedTokenizerFast) -> None:
    templates: Any = tokenizer.chat_template
    if isinstance(templates, dict):
        named = {name: text for name, text in templates.items() if name != "default"}
        put("tokenizer.chat_templates", list(named))
        for name, text in named.items():
            put(f"tokenizer.chat_template.{name}", text)
        templates = templates.get("default")
    if templates:
        put("tokenizer.chat_template", templates)
