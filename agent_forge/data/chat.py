"""ChatML turns to token ids and a mask of the tokens to train on.

`<|im_start|>role\\ncontent<|im_end|>\\n` for every model. A tool call is assistant content
`<tool_call>{json}</tool_call>`; its result is a message of role `tool` with `<tool_response>…</tool_response>`
(the convention of Hermes and Qwen).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

# The same format for transformers' apply_chat_template: tools are listed in a system turn, and
# {% generation %} marks the tokens to train on.
CHAT_TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n"
    "{%- if messages and messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "You may call these tools: <tools>{{ tools | tojson }}</tools><|im_end|>\n"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (tools and loop.first and message.role == 'system') %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def encode_chat(
    tokenizer: "PreTrainedTokenizerFast",
    messages: Sequence[Mapping[str, str]],
    mask_roles: Collection[str] = ("assistant",),
) -> tuple[list[int], list[bool]]:
    """Return ids and a mask that is True on the content and end token of turns whose role is in `mask_roles`.

    Text of users and tools cannot forge turn borders: control tokens inside it are encoded as plain text.
    """
    return _assembled(partial(_encode, tokenizer), messages, mask_roles)


def encode_chats(
    tokenizer: "PreTrainedTokenizerFast",
    conversations: Sequence[Sequence[Mapping[str, str]]],
    mask_roles: Collection[str] = ("assistant",),
) -> list[tuple[list[int], list[bool]]]:
    """Return `encode_chat` of every conversation. Each distinct text is encoded once, all of them on all cores."""
    texts: dict[str, list[int]] = {}

    def note(text: str) -> list[int]:
        return texts.setdefault(text, [])

    for messages in conversations:
        _assembled(note, messages, mask_roles)
    backend = _plain_backend(tokenizer)
    if backend is None:
        texts = {text: _encode(tokenizer, text) for text in texts}
    else:
        found = backend.encode_batch(list(texts), add_special_tokens=False)
        texts = {text: encoded.ids for text, encoded in zip(texts, found, strict=True)}
    return [_assembled(texts.__getitem__, messages, mask_roles) for messages in conversations]


def _assembled(
    encode: Callable[[str], list[int]], messages: Sequence[Mapping[str, str]], mask_roles: Collection[str]
) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    mask: list[bool] = []
    for message in messages:
        head = encode(f"{IM_START}{message['role']}\n")
        body = _content(encode, message["role"], message["content"]) + encode(IM_END)
        tail = encode("\n")
        trained = message["role"] in mask_roles
        ids += head + body + tail
        mask += [False] * len(head) + [trained] * len(body) + [False] * len(tail)
    return ids, mask


def encode_prompt(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the ids of a conversation that ends where the assistant is to speak."""
    ids, _ = encode_chat(tokenizer, messages)
    return ids + _encode(tokenizer, f"{IM_START}assistant\n")


def encode_content(tokenizer: "PreTrainedTokenizerFast", role: str, content: str) -> list[int]:
    """Return the ids of one turn's text; control tokens in text that we did not write stay plain text."""
    return _content(partial(_encode, tokenizer), role, content)


def _content(encode: Callable[[str], list[int]], role: str, content: str) -> list[int]:
    if role in ("user", "tool") and "<|" in content:
        parts = content.split("<|")
        ids = list(encode(parts[0])) if parts[0] else []
        for part in parts[1:]:
            ids += encode("<") + encode(f"|{part}")
        return ids
    return encode(content) if content else []


def stop_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the ids that end a turn."""
    end = tokenizer.convert_tokens_to_ids(IM_END)
    found = {tokenizer.eos_token_id, end if isinstance(end, int) and end != tokenizer.unk_token_id else None}
    return sorted(token for token in found if token is not None)


def _encode(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Return the ids of a text. The Rust tokenizer is asked directly: its wrapper takes several times as long."""
    backend = _plain_backend(tokenizer)
    if backend is None:
        return tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def _plain_backend(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer | None":
    """Return the Rust tokenizer, or None where the wrapper does more than call it (truncation, padding)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None or backend.truncation is not None or backend.padding is not None else backend
