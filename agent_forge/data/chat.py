"""Conversations to token ids and a mask of trained tokens: one format for training and talking.

A tokenizer's own chat template writes the turns. Where that is ChatML, or where there is none but
ChatML's tokens are in the vocabulary, turns are assembled here:
`<|im_start|>role\\ncontent<|im_end|>\\n`. For a tokenizer with neither, roles are plain words,
because it would split markers up. A tool call is assistant content `<tool_call>{json}</tool_call>`;
its result is a message of role `tool` with `<tool_response>…</tool_response>` (the convention of
Hermes and Qwen).
"""

import logging
import re
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from agent_forge.core.errors import ConfigError, DataError
from agent_forge.data import call_dialects
from agent_forge.data.calls import Call
from agent_forge.data.chat_template import (
    CHAT_TEMPLATE,
    PLAIN_TEMPLATE,
    Rendered,
    Template,
    control_tokens,
    with_tools,
)
from agent_forge.data.marks import reaching
from agent_forge.data.windows import window_prefix

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
Message = Mapping[str, Any]
_log = logging.getLogger("agent_forge")
__all__ = [
    "CHAT_TEMPLATE",
    "IM_END",
    "IM_START",
    "call_dialect",
    "call_start",
    "encode_chat",
    "encode_chats",
    "encode_prompt",
    "kept_reply",
    "speak_dialect",
    "stop_ids",
    "turn_end",
]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a tokenizer's turns are written.

    template is None for ChatML; note says in one line what is missing.
    """

    template: Template | None
    prefix: list[int]  # BOS, where every context begins with it
    end: list[int]  # ids that end an assistant's turn
    control: re.Pattern[str]  # the first character of every control token
    note: str

    def pieces(self, text: str) -> list[str]:
        """Return the text cut inside every control token, so that no piece holds a whole one."""
        ends = [match.end() for match in self.control.finditer(text)]
        return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


_formats: "weakref.WeakKeyDictionary[Any, tuple[Any, ChatFormat]]" = weakref.WeakKeyDictionary()


def chat_format(tokenizer: "PreTrainedTokenizerFast") -> ChatFormat:
    """Return how conversations are written for this tokenizer; what it lacks is logged once.

    Raises DataError for a chat template that renders no conversation, and for a tokenizer that has
    neither a template nor a token that ends a text.
    """
    known = _formats.get(tokenizer)
    if known is None or known[0] != tokenizer.chat_template:
        known = (tokenizer.chat_template, _find_format(tokenizer))
        _formats[tokenizer] = known
        if known[1].note:
            _log.warning(known[1].note)
    return known[1]


def _find_format(tokenizer: "PreTrainedTokenizerFast") -> ChatFormat:
    prefix = window_prefix(tokenizer)
    control = control_tokens(
        [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    )
    marks = [_token_id(tokenizer, token) for token in (IM_START, IM_END)]
    has_chatml = None not in marks
    if tokenizer.chat_template is None and has_chatml:
        note = (
            "the model has no chat template; "
            "its tokenizer has ChatML's tokens, so turns are written with those"
        )
        return ChatFormat(None, prefix, [marks[1]], control, note)  # type: ignore[list-item]
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise DataError(
                "the tokenizer has neither a chat template nor ChatML's tokens nor an eos_token, "
                "so no turn could end; "
                "set eos_token in tokenizer_config.json"
            )
        note = (
            "the model has no chat template and no tokens for turns: they are written as 'User: …' "
            "and 'Assistant: …', "
            f"and an answer ends with {tokenizer.eos_token}"
        )
        return ChatFormat(Template(tokenizer, PLAIN_TEMPLATE), prefix, [], control, note)
    if has_chatml and _is_chatml(tokenizer):
        return ChatFormat(None, prefix, [marks[1]], control, "")  # type: ignore[list-item]
    template = Template(tokenizer)
    end = _token_id(tokenizer, template.end_of_turn())
    if end is not None:
        return ChatFormat(template, prefix, [end], control, "")
    note = (
        "the model's chat template writes no special token after an answer, so no end is trained: "
        f"an answer ends with {tokenizer.eos_token or 'its limit of tokens'}"
    )
    return ChatFormat(template, prefix, [], control, note)


def _is_chatml(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Return whether the tokenizer's own template writes what `_assembled` does, thoughts and tools
    included.
    """
    from jinja2 import TemplateError

    thoughts = "<think>\nt\n</think>\n\nb"
    turns = [
        ("user", "a"),
        ("assistant", thoughts),
        ("tool", "<tool_response>c</tool_response>"),
        ("assistant", "d"),
    ]
    tool: dict[str, Any] = {
        "type": "function",
        "function": {"name": "n", "description": "d", "parameters": {}},
    }
    listings: tuple[Any, ...] = ((turns, None), ([("system", "s"), *turns], None), (turns, [tool]))
    for said, tools in listings:
        messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in said]
        try:
            text: Any = tokenizer.apply_chat_template(
                messages,
                tools=tools,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError, ValueError, KeyError):
            return False
        if tools is not None and "<tool_call>" not in str(text):
            # This template does not ask for calls in our tags, so our own words list the tools.
            break
        listed = with_tools(
            [{"role": "system", "content": "", "tools": tools}, *messages] if tools else messages
        )
        expected = "".join(
            f"{IM_START}{message['role']}\n{message['content']}{IM_END}\n" for message in listed
        )
        if text != f"{expected}{IM_START}assistant\n":
            return False
    return True


def _token_id(tokenizer: "PreTrainedTokenizerFast", token: str | None) -> int | None:
    """Return the id of a token that the vocabulary holds whole, else None."""
    if token is None:
        return None
    number = tokenizer.convert_tokens_to_ids(token)
    return (
        number
        if isinstance(number, int) and number >= 0 and number != tokenizer.unk_token_id
        else None
    )


def call_dialect(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return how the model of a tokenizer writes tool calls: a name of `call_dialects`."""
    template = chat_format(tokenizer).template
    return call_dialects.DEFAULT if template is None else template.dialect


def call_start(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Return the token that every tool call of a tokenizer's model begins with."""
    text = call_dialects.dialect(call_dialect(tokenizer)).write([Call("f", {})])
    return encode_content(tokenizer, "assistant", text)[0]


def speak_dialect(tokenizer: "PreTrainedTokenizerFast", name: str) -> None:
    """Set how the model of a tokenizer writes tool calls, in place of what its template tells.

    `auto` changes nothing. Raises ConfigError for an unknown name, and where turns are assembled as
    ChatML, for which only Hermes is written.
    """
    if call_dialects.check_name(name) in (call_dialects.AUTO, call_dialect(tokenizer)):
        return
    template = chat_format(tokenizer).template
    if template is None:
        raise ConfigError(
            f"agent.calls={name}: this model's turns are ChatML, where calls are written as "
            f"{call_dialects.DEFAULT}; set agent.calls=auto"
        )
    template.dialect, template.native_tools = name, True
    template.wraps_results = False


def kept_reply(
    tokenizer: "PreTrainedTokenizerFast",
    text: str,
    *,
    cut: bool = False,
    schemas: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return a model's message as conversations keep it, with its calls as Hermes writes them.

    cut: its tokens ran out. schemas: the parameters of the tools by name.
    """
    name = call_dialect(tokenizer)
    if name == call_dialects.DEFAULT:
        return text
    return call_dialects.canonical(
        text, call_dialects.dialect(name).scan(text, cut=cut, schemas=schemas)
    )


def encode_chat(
    tokenizer: "PreTrainedTokenizerFast",
    messages: Sequence[Message],
    mask_roles: Collection[str] = ("assistant",),
) -> tuple[list[int], list[bool]]:
    """Return ids and a mask that is True on the content and end token of turns that are learned.

    A turn is learned as its "learn" says, else where its role is in `mask_roles`; of one with
    "spans", only the tokens that reach into them, and the end token where the last of them reaches
    the end. Text of users and tools cannot forge turn borders: control tokens inside it are encoded as plain text. Raises
    DataError where the tokenizer's chat template refuses the conversation.
    """
    return encode_chats(tokenizer, [messages], mask_roles)[0]


def encode_chats(
    tokenizer: "PreTrainedTokenizerFast",
    conversations: Sequence[Sequence[Message]],
    mask_roles: Collection[str] = ("assistant",),
) -> list[tuple[list[int], list[bool]]]:
    """Return `encode_chat` of every conversation; distinct texts are encoded once, on all cores."""
    form = chat_format(tokenizer)
    if form.template is not None:
        rendered = [
            form.template.render(c, _learned(c, mask_roles), prompt=False) for c in conversations
        ]
        return [_with_prefix(form, *one) for one in _encode_rendered(tokenizer, rendered)]
    conversations = [with_tools(messages) for messages in conversations]
    texts: dict[str, list[int]] = {}

    def note(text: str) -> list[int]:
        return texts.setdefault(text, [])

    def measure(pieces: Sequence[str], spans: Sequence[Sequence[int]]) -> list[bool]:
        return _tokens_in(tokenizer, pieces, spans)

    for messages in conversations:
        _assembled(note, lambda *_: [], form.pieces, messages, mask_roles)
    texts = dict(zip(texts, _encode_all(tokenizer, list(texts)), strict=True))
    return [
        _with_prefix(
            form, *_assembled(texts.__getitem__, measure, form.pieces, messages, mask_roles)
        )
        for messages in conversations
    ]


def _learned(messages: Sequence[Message], mask_roles: Collection[str]) -> list[bool]:
    return [bool(message.get("learn", message["role"] in mask_roles)) for message in messages]


def _with_prefix(
    form: ChatFormat, ids: list[int], mask: list[bool]
) -> tuple[list[int], list[bool]]:
    """Return ids and mask after BOS, where contexts begin with it and the template did not write
    it.
    """
    if form.prefix and ids[: len(form.prefix)] != form.prefix:
        return [*form.prefix, *ids], [*[False] * len(form.prefix), *mask]
    return ids, mask


def _assembled(
    encode: Callable[[str], list[int]],
    measure: Callable[[Sequence[str], Sequence[Sequence[int]]], list[bool]],
    split: Callable[[str], list[str]],
    messages: Sequence[Message],
    mask_roles: Collection[str],
) -> tuple[list[int], list[bool]]:
    """Return ids and mask of ChatML turns. measure: which tokens of a turn reach into its spans."""
    ids: list[int] = []
    mask: list[bool] = []
    for message, trained in zip(messages, _learned(messages, mask_roles), strict=True):
        content, spans = message["content"], message.get("spans")
        pieces = _pieces(split, message["role"], content)
        head, end, tail = encode(f"{IM_START}{message['role']}\n"), encode(IM_END), encode("\n")
        body = [token for piece in pieces for token in encode(piece)]
        learned, ended = [trained] * len(body), trained
        if trained and spans:
            learned, ended = measure(pieces, spans), spans[-1][1] >= len(content)
        ids += head + body + end + tail
        mask += [False] * len(head) + learned + [ended] * len(end) + [False] * len(tail)
    return ids, mask


def _tokens_in(
    tokenizer: "PreTrainedTokenizerFast", pieces: Sequence[str], spans: Sequence[Sequence[int]]
) -> list[bool]:
    """Return of each token of a text in pieces whether it reaches into `spans` of that text."""
    backend = _plain_backend(tokenizer) or tokenizer.backend_tokenizer
    learned: list[bool] = []
    shift = 0
    for piece in pieces:
        encoded = backend.encode(piece, add_special_tokens=False)
        learned += reaching(encoded.offsets, spans, shift)
        shift += len(piece)
    return learned


def encode_prompt(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation that ends where the assistant is to speak."""
    form = chat_format(tokenizer)
    if form.template is not None:
        rendered = form.template.render(messages, [False] * len(messages), prompt=True)
        return _with_prefix(form, *_encode_rendered(tokenizer, [rendered])[0])[0]
    ids, _ = encode_chat(tokenizer, messages)
    return ids + _encode(tokenizer, f"{IM_START}assistant\n")


def encode_content(tokenizer: "PreTrainedTokenizerFast", role: str, content: str) -> list[int]:
    """Return the ids of one turn's text; control tokens in other people's text stay plain text."""
    pieces = _pieces(chat_format(tokenizer).pieces, role, content)
    return [token for piece in pieces for token in _encode(tokenizer, piece)]


def _pieces(split: Callable[[str], list[str]], role: str, content: str) -> list[str]:
    """Return the pieces of one turn's text that are encoded by themselves."""
    pieces = split(content) if role in ("user", "tool") else [content]
    return [piece for piece in pieces if piece]


def turn_end(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the ids to write after an assistant's text, as training rows do."""
    end = chat_format(tokenizer).end or [tokenizer.eos_token_id]
    return [token for token in end if token is not None]


def stop_ids(tokenizer: "PreTrainedTokenizerFast", model: Any = None) -> list[int]:
    """Return the ids that end a turn: by the template, by the tokenizer, and by the model's files.

    model: anything with a `generation_config` or `config` that may hold `eos_token_id` (an id or a
    list).
    """
    ids = {tokenizer.eos_token_id, *chat_format(tokenizer).end}
    for part in ("generation_config", "config"):
        ends = getattr(getattr(model, part, None), "eos_token_id", None)
        ids.update(ends if isinstance(ends, list | tuple) else [ends])
    return sorted(token for token in ids if token is not None)


def _encode_rendered(
    tokenizer: "PreTrainedTokenizerFast", rendered: Sequence[Rendered]
) -> list[tuple[list[int], list[bool]]]:
    """Return ids and mask of rendered conversations: tokens that reach into a learned turn are
    learned.
    """
    pieces: list[str] = []
    for one in rendered:
        borders = [0, *one.cuts, len(one.text)]
        pieces += [one.text[start:end] for start, end in pairwise(borders)]
    backend = _plain_backend(tokenizer) or tokenizer.backend_tokenizer
    encoded = iter(backend.encode_batch(pieces, add_special_tokens=False))
    result = []
    for one in rendered:
        ids: list[int] = []
        mask: list[bool] = []
        for offset in [0, *one.cuts]:
            part = next(encoded)
            ids += part.ids
            mask += reaching(part.offsets, one.learned, offset)
        result.append((ids, mask))
    return result


def _encode_all(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> list[list[int]]:
    backend = _plain_backend(tokenizer)
    if backend is None:
        return [_encode(tokenizer, text) for text in texts]
    return [encoded.ids for encoded in backend.encode_batch(texts, add_special_tokens=False)]


def _encode(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Return the ids of a text from the Rust tokenizer, whose wrapper is several times slower."""
    backend = _plain_backend(tokenizer)
    if backend is None:
        return tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def _plain_backend(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer | None":
    """Return the Rust tokenizer; None where the wrapper does more, such as padding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return (
        None
        if backend is None or backend.truncation is not None or backend.padding is not None
        else backend
    )
