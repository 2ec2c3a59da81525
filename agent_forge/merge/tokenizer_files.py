"""Read a model directory's tokenizer, however it is stored, and compare tokenizers by meaning.

Two tokenizer.json files are brought to one form by the `tokenizers` library, which fills in
defaults that a file leaves out; it is imported only where two files differ or a new one is made. A
vocabulary stored otherwise (vocab.json with merges.txt, SentencePiece, tiktoken, tekken, vocab.txt)
is compared token by token.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from agent_forge.core.errors import CheckpointError

TOKENIZER, SETTINGS, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
# Parts of tokenizer.json about cutting text to length or putting it together: they change no
# token's id.
USAGE = ("truncation", "padding", "version", "post_processor", "decoder")
NOTED = ("post_processor", "decoder")
SPM_PIECE, SPM_TEXT = 1, 1  # field numbers of SentencePiece's model file: a piece, and its text


@dataclass(kw_only=True)
class TokenizerFiles:
    """A model's tokenizer.

    file: where the vocabulary is; content: tokenizer.json, if there is one, not to be changed.

    own: token -> id where there is no tokenizer.json. added: tokens that only the settings beside
    it name, as entries of tokenizer.json's added_tokens. merges: of a byte-pair encoding that is
    stored as text.
    """

    file: Path
    content: dict[str, Any] | None = None
    own: dict[str, int] = field(default_factory=dict)
    added: list[dict[str, Any]] = field(default_factory=list)
    merges: list[list[str]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Return the id of every token."""
        if self.content is not None:
            return token_ids(self.canonical)
        return self.own | {entry["content"]: entry["id"] for entry in self.added}

    @cached_property
    def canonical(self) -> dict[str, Any]:
        """Return tokenizer.json with the added tokens, as the `tokenizers` library writes it.

        Raises CheckpointError when the library cannot load it.
        """
        assert self.content is not None, "only a tokenizer.json has a canonical form"
        entries = [*(self.content.get("added_tokens") or []), *self.added]
        return canonical(json.dumps({**self.content, "added_tokens": entries}), self.file)


def read_tokenizer(directory: Path) -> TokenizerFiles | None:
    """Return the tokenizer of a directory, None when there is no file of a known form.

    Raises CheckpointError when a file is damaged.
    """
    readers: tuple[tuple[str, Callable[[Path], TokenizerFiles]], ...] = (
        (TOKENIZER, lambda path: TokenizerFiles(file=path, content=_json(path))),
        ("vocab.json", _byte_pairs), ("tekken.json", _tekken), ("*.tiktoken", _tiktoken),
        ("tokenizer.model*", _model), ("spiece.model", _model), ("sentencepiece*.model", _model),
        ("vocab.txt", _lines),
    )  # fmt: skip
    for pattern, reader in readers:
        path = next(iter(sorted(directory.glob(pattern))), None)
        if path is not None:
            try:
                tokenizer = reader(path)
                tokenizer.settings = (
                    _json(directory / SETTINGS) if (directory / SETTINGS).is_file() else {}
                )
                tokenizer.added = _added(directory, tokenizer)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"{path} cannot be read ({error}); restore it from a copy"
                ) from None
            return tokenizer
    return None


def difference(one: TokenizerFiles, two: TokenizerFiles) -> str:
    """Return the place of the first difference that changes what token ids mean, "" when there is
    none.
    """
    if one.content is not None and two.content is not None:
        if one.content == two.content and one.added == two.added:
            return ""
        return _difference(_meaning(one.canonical), _meaning(two.canonical), "")
    if one.ids != two.ids:
        return _of_ids(one.ids, two.ids)
    mine, theirs = _merges(one), _merges(two)
    return _difference(mine, theirs, "merges") if mine is not None and theirs is not None else ""


def usage_difference(one: TokenizerFiles, two: TokenizerFiles) -> str:
    """Return which parts differ among those without influence on ids, "" when none does."""
    if one.content is None or two.content is None or one.content == two.content:
        return ""
    pair = [_without_defaults(tokenizer.canonical) for tokenizer in (one, two)]
    return ", ".join(part for part in NOTED if pair[0].get(part) != pair[1].get(part))


def canonical(text: str, file: Path | str) -> dict[str, Any]:
    """Return a tokenizer.json in the one form that the `tokenizers` library gives it.

    Raises CheckpointError when the library cannot load it.
    """
    from tokenizers import Tokenizer

    try:
        loaded: dict[str, Any] = json.loads(Tokenizer.from_str(text).to_str())
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception
        raise CheckpointError(
            f"{file} cannot be loaded as a tokenizer ({error}); restore it from a copy"
        ) from None
    return loaded


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of every token of a tokenizer.json."""
    vocab = tokenizer["model"].get("vocab") or {}
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    ids.update({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []})
    return ids


# -- meaning ---------------------------------------------------------------------------------------


def _meaning(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the ids of a text.

    Without a normalizer, no added token is looked for in normalised text.
    """
    content = {
        key: value for key, value in _without_defaults(tokenizer).items() if key not in USAGE
    }
    if "normalizer" not in content:
        content["added_tokens"] = [
            {**entry, "normalized": False} for entry in content.get("added_tokens") or []
        ]
    return content


def _without_defaults(value: Any) -> Any:
    """Return a canonical tokenizer without nulls, empty affixes and sequences of one: they do
    nothing.
    """
    if isinstance(value, Mapping):
        steps = next(
            (
                value[key]
                for key in ("pretokenizers", "normalizers", "processors", "decoders")
                if key in value
            ),
            None,
        )
        if value.get("type") == "Sequence" and steps is not None:
            inner = [step for step in map(_without_defaults, steps) if step is not None]
            return (
                (inner[0] if inner else None)
                if len(inner) < 2
                else {"type": "Sequence", "steps": inner}
            )
        if value.get("type") == "ByteLevel":
            # places in the text only
            value = {key: entry for key, entry in value.items() if key != "trim_offsets"}
        cleaned = {
            key: entry if key == "vocab" else _without_defaults(entry)
            for key, entry in value.items()
        }
        return {
            key: entry for key, entry in cleaned.items()
            if entry is not None
            and not (key in ("continuing_subword_prefix", "end_of_word_suffix") and entry == "")
            and not (key == "dropout" and entry == 0)
        }  # fmt: skip
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [_without_defaults(entry) for entry in value]
    return value


def _difference(a: Any, b: Any, where: str) -> str:
    if a == b:
        return ""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *b]:
            if key not in a or key not in b or a[key] != b[key]:
                return _difference(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))
    if isinstance(a, list) and isinstance(b, list):
        for i, (left, right) in enumerate(zip(a, b, strict=False)):
            if left != right:
                return _difference(left, right, f"{where}[{i}]")
        return f"{where} ({len(a)} and {len(b)} entries)"
    return f"{where} ({_short(a)} and {_short(b)})"


def _of_ids(one: Mapping[str, int], two: Mapping[str, int]) -> str:
    """Return the token of lowest id that two vocabularies do not both have at one id."""
    odd = {token for token in {**one, **two} if one.get(token) != two.get(token)}
    token = min(
        odd, key=lambda token: (min(one.get(token, len(one)), two.get(token, len(two))), token)
    )
    return f"token {_short(token)} (id {one.get(token, 'none')} and {two.get(token, 'none')})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _merges(tokenizer: TokenizerFiles) -> list[list[str]] | None:
    if tokenizer.content is None:
        return tokenizer.merges
    merges: list[list[str]] | None = tokenizer.canonical["model"].get("merges")
    return merges


# -- files -----------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    return _parsed(path.read_bytes())


@lru_cache(maxsize=4)
def _parsed(content: bytes) -> dict[str, Any]:
    """Return parsed JSON, not to be changed.

    It is cached: siblings mostly have the same file, and parsing takes a tenth of a second.
    """
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("no entries in it")
    return document


def _added(directory: Path, tokenizer: TokenizerFiles) -> list[dict[str, Any]]:
    """Return the tokens outside the vocabulary's file: from added_tokens.json and the settings."""
    plain = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
    }
    tokens = dict(_json(directory / ADDED)) if (directory / ADDED).is_file() else {}
    entries = {
        token: {**plain, "id": int(number), "content": token} for token, number in tokens.items()
    }
    for number, entry in (tokenizer.settings.get("added_tokens_decoder") or {}).items():
        about = entry if isinstance(entry, dict) else {"content": str(entry)}
        flags = {key: value for key, value in about.items() if key in plain or key == "content"}
        entries[flags["content"]] = {**plain, **flags, "id": int(number)}
    if not entries:
        return []
    known = tokenizer.own if tokenizer.content is None else token_ids(tokenizer.content)
    return sorted(
        (e for token, e in entries.items() if token not in known), key=lambda entry: entry["id"]
    )


def _byte_pairs(path: Path) -> TokenizerFiles:
    merges = path.with_name("merges.txt")
    lines = merges.read_text(encoding="utf-8").splitlines() if merges.is_file() else None
    pairs = (
        None
        if lines is None
        else [line.split(" ") for line in lines if line and not line.startswith("#version")]
    )
    return TokenizerFiles(file=path, own=dict(_json(path)), merges=pairs)


def _lines(path: Path) -> TokenizerFiles:
    tokens = path.read_text(encoding="utf-8").split("\n")
    return TokenizerFiles(file=path, own={token: i for i, token in enumerate(tokens) if token})


def _model(path: Path) -> TokenizerFiles:
    """Read `tokenizer.model`, a name that SentencePiece and tiktoken both use."""
    content = path.read_bytes()
    if content[:1] == b"\n":  # the tag of SentencePiece's first field
        return TokenizerFiles(file=path, own={piece: i for i, piece in enumerate(_pieces(content))})
    return _tekken(path) if content[:1] == b"{" else _tiktoken(path)


def _tiktoken(path: Path) -> TokenizerFiles:
    rows = [line.split() for line in path.read_bytes().splitlines() if line]
    return TokenizerFiles(
        file=path, own={_spelled(base64.b64decode(token)): int(rank) for token, rank in rows}
    )


def _tekken(path: Path) -> TokenizerFiles:
    """Read Mistral's format: special tokens come first, the ids of the others follow on."""
    content = _json(path)
    special = content.get("special_tokens") or []
    settings = content["config"]
    offset = settings["default_num_special_tokens"]
    room = settings["default_vocab_size"] - offset
    own = {entry["token_str"]: entry["rank"] for entry in special}
    own |= {
        _spelled(base64.b64decode(e["token_bytes"])): e["rank"] + offset
        for e in content["vocab"][:room]
    }
    return TokenizerFiles(file=path, own=own)


def _pieces(content: bytes) -> list[str]:
    """Return the pieces of a SentencePiece model, a protocol buffer, in the order of their ids."""
    pieces = []
    for number, value in _fields(content):
        if number == SPM_PIECE and isinstance(value, bytes):
            pieces.append(
                next(
                    v.decode() for n, v in _fields(value) if n == SPM_TEXT and isinstance(v, bytes)
                )
            )
    if not pieces:
        raise ValueError("no pieces in it")
    return pieces


def _fields(content: bytes) -> list[tuple[int, bytes | int]]:
    """Return a protocol buffer message's (number, value) pairs, fixed-width numbers as bytes."""
    fields: list[tuple[int, bytes | int]] = []
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = content[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(content):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            fields.append((tag >> 3, varint()))
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        length = varint() if kind == 2 else 8 if kind == 1 else 4
        fields.append((tag >> 3, content[place : place + length]))
        place += length
    return fields


@lru_cache(maxsize=1)
def _letters() -> list[str]:
    """Return how byte-level vocabularies spell each byte.

    Printable bytes stand for themselves, others are characters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _spelled(token: bytes) -> str:
    return "".join(_letters()[byte] for byte in token)
