"""ChatML turns to token ids and a mask of the tokens to train on.

`<|im_start|>role\\ncontent<|im_end|>\\n` for every model. A tool call is assistant content
`<tool_call>{json}</tool_call>`; its result is a message of role `tool` with `<tool_response>…</tool_response>`
(the convention of Hermes and Qwen).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    ids: list[int] = []
    mask: list[bool] = []
    for message in messages:
        head = _encode(tokenizer, f"{IM_START}{message['role']}\n")
        body = encode_content(tokenizer, message["role"], message["content"]) + _encode(tokenizer, IM_END)
        tail = _encode(tokenizer, "\n")
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
    if role in ("user", "tool") and "<|" in content:
        parts = content.split("<|")
        ids = _encode(tokenizer, parts[0]) if parts[0] else []
        for part in parts[1:]:
            ids += _encode(tokenizer, "<") + _encode(tokenizer, f"|{part}")
        return ids
    return _encode(tokenizer, content) if content else []


def stop_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the ids that end a turn."""
    end = tokenizer.convert_tokens_to_ids(IM_END)
    found = {tokenizer.eos_token_id, end if isinstance(end, int) and end != tokenizer.unk_token_id else None}
    return sorted(token for token in found if token is not None)


def _encode(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
