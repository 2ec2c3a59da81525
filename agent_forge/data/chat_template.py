"""Our own chat templates, and conversations rendered by any template, with what is learned marked.

CHAT_TEMPLATE is ChatML with tools, for transformers' apply_chat_template. PLAIN_TEMPLATE is for a
tokenizer without tokens for turns: roles are written by name, and the end of text ends an answer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent_forge.core.errors import DataError
from agent_forge.data import call_dialects
from agent_forge.data.calls import BrokenCall, Call, read_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]

TOOLS_SENTENCE = "You may call these tools: <tools>{tools}</tools>"

_ESCAPED = "".join(
    f" | replace('<{tag}>', '\\\\u003c{tag}>')"
    for tag in ("tool_call", "/tool_call", "tool_response", "/tool_response")
)
# Line ends stand inside expressions only: Jinja, as transformers sets it up, removes the ones after
# a block.
CHAT_TEMPLATE = (
    "{%- macro text(content) %}{%- if content is string %}{{ content }}"
    "{%- elif content %}{%- for part in content %}{{ part.text }}{%- endfor %}{%- endif %}{%- "
    "endmacro %}"
    "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages and messages[0].role == 'system' and messages[0].content %}"
    "{{- text(messages[0].content) + '\n' }}{%- endif %}"
    "{{- 'You may call these tools: <tools>' + (tools | tojson) + '</tools><|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (tools and loop.first and message.role == 'system') %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}"
    "{%- if message.reasoning_content %}{{- '<think>\n' + message.reasoning_content + "
    "'\n</think>\n\n' }}{%- endif %}"
    "{{- text(message.content) }}"
    "{%- for call in message.tool_calls or [] %}"
    "{%- set call = call.function or call %}"
    "{{- '\n' if message.content or not loop.first }}"
    "{{- '<tool_call>' + (('{\"name\": ' + (call.name | tojson) + ', \"arguments\": ' "
    "+ (call.arguments if call.arguments is string else (call.arguments or {}) | tojson) + '}')"
    + _ESCAPED
    + ") + '</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>' }}{% endgeneration %}"
    "{%- elif message.role == 'tool' and not text(message.content).startswith('<tool_response>') %}"
    "{{- '<tool_response>' + text(message.content) + '</tool_response><|im_end|>' }}"
    "{%- else %}{{- text(message.content) + '<|im_end|>' }}{%- endif %}{{- '\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
PLAIN_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}{{- 'Assistant: ' + message.content + eos_token + '\n' }}"
    "{%- elif message.role == 'system' %}{{- message.content + '\n' }}"
    "{%- else %}{{- ('Tool' if message.role == 'tool' else 'User') + ': ' + message.content + '\n' "
    "}}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)
# Mistral's templates take ids of nine letters and digits alone.
CALL_ID = "call00000"
# Llama 3's own default date; the current date would make training differ from day to day.
DATE = "26 Jul 2024"
# Characters of private use mark where learned text starts with its turn, where it ends with it,
# where a forged control token is cut, and where learned text stops and starts inside its turn.
_MARKS = ("\uf8d0", "\uf8d1", "\uf8d2", "\uf8d3", "\uf8d4")


@dataclass(slots=True)
class Rendered:
    """A conversation as text.

    learned: (start, end) of each learned turn, or of each learned span of it. cuts: the places
    where the encoding begins anew.
    """

    text: str
    learned: list[tuple[int, int]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)


def with_tools(messages: Sequence[Message]) -> list[Message]:
    """Return the messages, the first one's tools written into its text as in CHAT_TEMPLATE."""
    if not messages or not messages[0].get("tools"):
        return list(messages)
    first = {key: value for key, value in messages[0].items() if key != "tools"}
    sentence = TOOLS_SENTENCE.format(tools=json.dumps(messages[0]["tools"], ensure_ascii=False))
    first["content"] = f"{first['content']}\n{sentence}" if first["content"] else sentence
    return [first, *messages[1:]]


class Template:
    """The chat template of a tokenizer; what it can render is found out by trying.

    native_tools: it lists tools and says how to call them. dialect: how its model writes calls.
    Kept conversations have calls and results as Hermes writes them; where the template has a tools
    branch, they are rendered as it writes them itself.

    Raises DataError when it cannot even render a question and its answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", source: str | None = None) -> None:
        self.tokenizer, self.source = tokenizer, source
        self.special = sorted(
            (token.content for token in tokenizer.added_tokens_decoder.values() if token.special),
            key=len,
            reverse=True,
        )
        self._control = control_tokens(self.special)
        self.takes_system = self._keeps(("system", "user", "assistant"))
        self.takes_tool = self._keeps(("user", "assistant", "tool", "assistant"))
        self.takes_repeats = self._keeps(("user", "user", "assistant"))
        self.dialect = call_dialects.detect(source or str(tokenizer.chat_template))
        self.native_tools = self._lists_tools()
        if not self.native_tools:
            self.dialect = call_dialects.DEFAULT
        self.wraps_results = self.native_tools and self._wraps_results()
        # Some templates ask for the tool's name or the call's id beside a result.
        self.takes_tool = self.takes_tool or self.wraps_results
        if not self._keeps(("user", "assistant")):
            raise DataError(
                "the model's chat template cannot render a question and its answer; mend "
                "chat_template"
            )

    def render(
        self, messages: Sequence[Message], learned: Sequence[bool], *, prompt: bool
    ) -> Rendered:
        """Return messages as the template writes them; prompt=True ends where the assistant is to
        speak.

        learned: whether each turn is; of one with spans, those are. Raises DataError where the
        template refuses or drops a turn.
        """
        tools = messages[0].get("tools") if messages and self.native_tools else None
        if self.native_tools:
            messages = self._translated(messages)
        marked = self._adapted(messages if tools else with_tools(messages), learned)
        if tools and not marked[0]["content"] and marked[0]["role"] == "system":
            marked = marked[1:]
        turns = [{"role": m["role"], "content": self._marked(m), **m["keys"]} for m in marked]
        ends = sum(turn["content"].count(mark) for turn in turns for mark in _MARKS[1:4:2])
        return self._read(self._apply(turns, tools, prompt), ends)

    def end_of_turn(self) -> str | None:
        """Return the control token that ends an assistant's turn, or None."""
        text = self._apply(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARKS[1]}],
            None,
            False,
        )
        rest = text.partition(_MARKS[1])[2].lstrip()
        return next((token for token in self.special if rest.startswith(token)), None)

    def _apply(self, messages: list[dict[str, Any]], tools: Any, prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=self.source, tokenize=False,
                add_generation_prompt=prompt, date_string=DATE,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"the model's chat template refuses this conversation: {reason}"
            ) from None
        return str(text)

    def _keeps(self, roles: Sequence[str]) -> bool:
        """Return whether the template renders a conversation of these roles without losing any
        text.
        """
        words = [f"word{i}word" for i in range(len(roles))]
        turns = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
        try:
            text = self._apply(turns, None, False)
        except DataError:
            return False
        return all(text.count(word) == 1 for word in words)

    def _lists_tools(self) -> bool:
        """Return whether the template lists tools and asks for calls in a dialect that is known."""
        tool = {
            "type": "function",
            "function": {
                "name": "toolname",
                "description": "d",
                "parameters": {"type": "object", "properties": {}},
            },
        }
        turns = [{"role": "user", "content": "x"}]
        try:
            with_one = self._apply(turns, [tool], False)
        except DataError:
            return False
        if "toolname" not in with_one:
            return False
        if self.dialect == call_dialects.DEFAULT:
            return "<tool_call>" in with_one
        return True

    def _wraps_results(self) -> bool:
        """Return whether a turn of role tool gets the model's own marks from the template."""
        result = {"role": "tool", "content": "wordword", **_answering("toolname")}
        turns = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": self.spoken_calls([Call("toolname")])},
            result,
        ]
        try:
            text = self._apply(turns, None, True)
        except DataError:
            return False
        return text.count("wordword") == 1 and (
            self.dialect != call_dialects.DEFAULT or "<tool_response>" in text
        )

    def spoken_calls(self, calls: Sequence[Call]) -> str:
        """Return calls as the template writes them itself, else as the dialect's own file does."""
        speaker = call_dialects.dialect(self.dialect)
        entries = [
            {
                "id": CALL_ID,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
        turns: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
        try:
            before = self._apply(turns, None, True)
            after = self._apply(
                [*turns, {"role": "assistant", "content": "", "tool_calls": entries}], None, False
            )
        except DataError:  # such as "only one call at once"
            return speaker.write(calls)
        text = after[len(before) :] if after.startswith(before) else ""
        text = text.partition(self.end_of_turn() or "\0")[0].strip()
        return text if speaker.scan(text).calls == list(calls) else speaker.write(calls)

    def _translated(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return kept messages with calls and results as the template itself writes them."""
        hermes = call_dialects.dialect(call_dialects.DEFAULT)
        waiting: list[str] = []
        result: list[dict[str, Any]] = []
        for message in messages:
            turn = dict(message)
            if message["role"] == "assistant":
                scan = hermes.scan(message["content"])
                calls = [call for call in scan.calls if isinstance(call, Call)]
                waiting = [call.name for call in calls]
                if calls and not any(isinstance(call, BrokenCall) for call in scan.calls):
                    written = self.spoken_calls(calls)
                    turn["content"] = f"{scan.words}\n{written}" if scan.words else written
                    _check_spans(message, scan.words)
            elif message["role"] == "tool" and self.wraps_results:
                turn["content"] = read_response(message["content"])
                _check_spans(message, "")
                turn |= _answering(waiting.pop(0) if waiting else "tool")
            result.append(turn)
        return result

    def _adapted(
        self, messages: Sequence[Message], learned: Sequence[bool]
    ) -> list[dict[str, Any]]:
        """Return the turns in roles that the template renders: results and system prompts become
        the user's.
        """
        turns: list[dict[str, Any]] = []
        for message, learn in zip(messages, learned, strict=True):
            role = message["role"]
            if (role == "tool" and not self.takes_tool) or (
                role == "system" and not self.takes_system
            ):
                role = "user"
            turn = {
                "role": role,
                "from": message["role"],
                "content": message["content"],
                "learn": learn,
                "spans": message.get("spans"),
                "keys": {key: message[key] for key in ("name", "tool_call_id") if key in message},
            }
            if turns and turns[-1]["role"] == role != "system" and not self.takes_repeats:
                if turns[-1]["learn"] != learn:
                    raise DataError(
                        f"two turns of {role} in a row become one here: both are learned, or "
                        "neither"
                    )
                turns[-1] = _joined(turns[-1], turn)
            else:
                turns.append(turn)
        return turns

    def _marked(self, turn: Mapping[str, Any]) -> str:
        """Return a turn's text with marks inside its outer white space."""
        text = str(turn["content"])
        if any(mark in text for mark in _MARKS):
            raise DataError(
                f"a turn holds a character of private use ({', '.join(map(ascii, _MARKS))}); "
                "remove it"
            )
        marks: list[tuple[int, str]] = []
        if turn["from"] in ("user", "tool", "system"):
            marks += [(match.end(), _MARKS[2]) for match in self._control.finditer(text)]
        if turn["learn"]:
            marks += _borders(text, turn["spans"] or [[0, len(text)]])
        result, done = "", 0
        for place, mark in sorted(marks, key=lambda one: one[0]):
            result, done = result + text[done:place] + mark, place
        return result + text[done:]

    def _read(self, marked: str, count: int) -> Rendered:
        """Take the marks out of rendered text and note where they stood.

        count: how many pieces of learned text were marked.
        """
        begin_mark, end_mark, cut_mark, stop_mark, start_mark = _MARKS
        result = Rendered("")
        pieces: list[str] = []
        with_turn: list[tuple[bool, bool]] = []
        length, start, begins = 0, None, False
        for piece in re.split(f"([{''.join(_MARKS)}])", marked):
            if piece in (begin_mark, start_mark):
                if start is None:
                    start, begins = length, piece == begin_mark
            elif piece in (end_mark, stop_mark):
                if start is None:
                    raise DataError(
                        "the model's chat template leaves out the beginning of a learned turn "
                        "(thoughts of earlier "
                        "turns, as a rule); mark that turn as not to be learned"
                    )
                result.learned.append((start, length))
                with_turn.append((begins, piece == end_mark))
                start = None
            elif piece == cut_mark:
                result.cuts.append(length)
            else:
                pieces.append(piece)
                length += len(piece)
        result.text = "".join(pieces)
        if len(result.learned) < count:
            raise DataError("the model's chat template drops a learned turn of this conversation")
        result.learned = [
            (
                _with_think(result.text, first) if begins else first,
                self._with_end(result.text, last) if ends else last,
            )
            for (first, last), (begins, ends) in zip(result.learned, with_turn, strict=True)
        ]
        return result

    def _with_end(self, text: str, end: int) -> int:
        """Return where a learned turn ends with its end-of-turn token, if one follows."""
        gap = len(text) - end - len(text[end:].lstrip())
        token = next((token for token in self.special if text.startswith(token, end + gap)), None)
        return end if token is None else end + gap + len(token)


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return two turns of one role as one."""
    content = f"{first['content']}\n\n{second['content']}"
    spans = None
    if first["spans"] or second["spans"]:
        shift = len(content) - len(second["content"])
        before = first["spans"] or [[0, len(first["content"])]]
        after = second["spans"] or [[0, len(second["content"])]]
        spans = [*before, *([start + shift, end + shift] for start, end in after)]
    return {**first, "content": content, "spans": spans}


def _borders(text: str, spans: Sequence[Sequence[int]]) -> list[tuple[int, str]]:
    """Return the places of marks around spans of a turn's text, inside its outer white space."""
    begin, end, _, stop, inner = _MARKS
    first = len(text) - len(text.lstrip())
    last = max(first, len(text.rstrip()))
    # Templates treat thoughts separately and leave earlier turns' thoughts out, so there is one
    # mark in them and one after them.
    thoughts = re.compile(r"(<think>\s*).*?</think>\s*", re.DOTALL).match(text, first, last)
    marks: list[tuple[int, str]] = []
    for start, finish in spans:
        start = max(start, first)
        finish = max(start, min(finish, last))
        if start == finish and first < last:  # white space alone
            continue
        opening = begin if start == first else inner
        if thoughts and finish > thoughts.end(1):
            start = max(start, thoughts.end(1))
        marks.append((start, opening))
        if thoughts and start < thoughts.end() <= finish:
            marks.append((thoughts.end(), begin))
        marks.append((finish, end if finish == last else stop))
    return marks


def _check_spans(message: Message, words: str) -> None:
    """Raise DataError where spans reach beyond `words`, the part of a message that stays as it is
    when its template writes its calls or its result.
    """
    spans = message.get("spans")
    if spans and not (message["content"].startswith(words) and spans[-1][1] <= len(words)):
        raise DataError(
            "the model's chat template writes calls and results in its own form, in which marks of "
            "characters have no place; mark the turn as a whole"
        )


def _answering(name: str) -> dict[str, str]:
    """Return what some templates want to know of a result: the tool, and the id of its call."""
    return {"name": name, "tool_call_id": CALL_ID}


def _with_think(text: str, start: int) -> int:
    """Return where a learned turn starts: at the tag that opens its thoughts, where it has one."""
    head = text[:start].rstrip()
    return len(head) - len("<think>") if head.endswith("<think>") else start


def control_tokens(special: Sequence[str]) -> "re.Pattern[str]":
    """Return a pattern of the first characters of control tokens in a text, and of each `<|`."""
    heads = [
        f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in special if len(token) > 1
    ]
    return re.compile(
        "|".join([r"<(?=\|)", *(head for head in heads if not head.startswith("<(?=\\|"))])
    )
