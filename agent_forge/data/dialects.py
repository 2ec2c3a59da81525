"""From a row, as people publish it, to the messages that are learned.

Every field is read, or refused by its name.

    chat       {"messages": [{"role", "content", "tool_calls", …}], "tools"}
    sharegpt   {"conversations": [{"from", "value"}], "system", "tools"}
    alpaca     {"instruction", "input", "output", "history", "system", "tools"}
    pair       {"prompt", "completion"}, {"question", "answer"}, {"prompt", "response"}; of TRL
               also two lists of messages, of which the completion is learned

"chat" is OpenAI's and Hugging Face's form; "sharegpt" is used by ShareGPT, LLaMA-Factory and
axolotl; "alpaca" is also Dolly's.

A message is {"role", "content"}, with "learn" where a mark in the row says whether it is learned,
"spans" where marks say which of its characters are (`marks.py`), and "tools" on the system turn
where the row lists tools. Nulls are absent fields already (`files.without_nulls`).
"""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from agent_forge.core.errors import DataError, did_you_mean
from agent_forge.data.calls import (
    CALL_OPEN,
    RESPONSE_CLOSE,
    RESPONSE_OPEN,
    write_call,
    write_response,
)
from agent_forge.data.marks import (
    DETAIL,
    INPUT,
    MARKS,
    PART_MARKS,
    Span,
    flag,
    learns,
    marked_text,
    turn_mark,
)

Message = dict[str, Any]

SPEAKERS = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "function_call": "assistant",
    "system": "system", "developer": "system", "tool": "tool", "function": "tool",
    "observation": "tool", "ipython": "tool",
}  # fmt: skip
PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("prompt", "response"),
    ("question", "response"),
)
ALPACA = (("instruction", "output"), ("instruction", "response"))
REASONING = ("reasoning_content", "reasoning", "thinking")
TOOLS = ("tools", "functions")
SYSTEM = ("system", "system_prompt")
# Keys that say where a row comes from and how it was made, but not what it teaches.
NO_EFFECT = frozenset({
    "id", "_id", "idx", "index", "uuid", "row_id", "conversation_id", "conv_id", "prompt_id",
    "question_id", "hash", "source", "sources", "origin", "dataset", "dataset_name", "data_source",
    "url", "license", "version", "split", "category", "categories", "subcategory", "topic",
    "domain", "subject", "task", "task_name", "task_type", "tags", "language", "lang", "metadata",
    "meta", "created", "created_at", "timestamp", "date", "num_turns", "turns", "turn_count",
    "parallel_tool_calls", "num_tokens", "token_count", "length", "model", "model_name",
    "generator", "title",
})  # fmt: skip
TURN_NO_EFFECT = NO_EFFECT | {"tool_call_id", "annotations"}
CALL_NO_EFFECT = frozenset({"id", "type", "index"})
MEDIA = ("images", "image", "videos", "video", "audios", "audio")  # an empty one has no effect
_CONTENT = ("content", "value")


def dialect(row: Mapping[str, Any]) -> str:
    """Return chat, sharegpt, alpaca or pair; "" for a row that is not a conversation."""
    if isinstance(row.get("messages"), list):
        return "chat"
    if isinstance(row.get("conversations"), list):
        return "sharegpt"
    if _pair(row, ALPACA):
        return "alpaca"
    return "pair" if _pair(row, PAIRS) else ""


def messages(row: Mapping[str, Any], ignored: Collection[str] = ()) -> list[Message]:
    """Return the turns of a row.

    ignored: keys, at any level, that the user knows to be without effect. Raises DataError when the
    row is of no known dialect, when a turn cannot be read, and for every key that is neither read
    nor known to have no effect.
    """
    row = _with_messages(row)
    kind = dialect(row)
    if kind in ("chat", "sharegpt"):
        turns = _conversation(row, "messages" if kind == "chat" else "conversations", ignored)
    elif kind:
        turns = _exercise(row, ALPACA if kind == "alpaca" else PAIRS, ignored)
    else:
        _refuse_wrong_types(row)
        raise DataError(
            f"a row with the keys {sorted(map(str, row))} is no conversation; known: messages "
            "(chat), conversations "
            "(sharegpt), instruction and output (alpaca), prompt and completion, question and "
            "answer"
        )
    turns = _with_system(row, turns)
    _apply_row_marks(row, turns)
    for number, turn in enumerate(turns, start=1):
        _refuse_half_characters(turn, number)
        if turn["role"] == "assistant" and not turn["content"].strip() and turn.get("learn", True):
            raise DataError(
                f"turn {number} (assistant) is empty, so it would teach to say nothing; remove the "
                "row"
            )
    return turns


def _with_messages(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row whose prompt and completion are lists of messages as one of messages.

    The prompt's turns are not learned, unless their own marks or the row's say so.
    """
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, list) or not isinstance(completion, list) or "messages" in row:
        return row
    rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    hidden = [
        {**turn, "learn": False} if isinstance(turn, Mapping) and learns(turn) is None else turn
        for turn in prompt
    ]
    return {
        **rest,
        "messages": [*(prompt if any(key in row for key in INPUT) else hidden), *completion],
    }


def _refuse_wrong_types(row: Mapping[str, Any]) -> None:
    """Raise DataError where a row has a dialect's fields with values of another type."""
    for key in ("messages", "conversations"):
        if key in row:
            raise DataError(f"'{key}' is a list of turns, got a {type(row[key]).__name__}")
    for pair in (*ALPACA, *PAIRS):
        wrong = next((key for key in pair if not isinstance(row.get(key, ""), str)), None)
        if all(key in row for key in pair) and wrong:
            raise DataError(f"'{wrong}' is text, got a {type(row[wrong]).__name__}")


def _refuse_unknown(
    where: str, keys: Iterable[object], known: Collection[str], ignored: Collection[str]
) -> None:
    for key in keys:
        if key not in known and key not in ignored:
            hint = did_you_mean(str(key), known)
            raise DataError(
                f"{where} has the unknown key '{key}'{hint or ';'} it could change what is "
                "learned, so it is not "
                f"dropped: remove it, or name it in data.ignore_keys=[{key}]"
            )


def _conversation(row: Mapping[str, Any], field: str, ignored: Collection[str]) -> list[Message]:
    known = {field, *TOOLS, *SYSTEM, *MARKS, *NO_EFFECT, *MEDIA}
    _refuse_unknown("the row", row, known, ignored)
    _refuse_media("the row", row, ignored)
    if not row[field]:
        raise DataError("a conversation without a turn")
    return [_turn(turn, number, ignored) for number, turn in enumerate(row[field], start=1)]


def _exercise(
    row: Mapping[str, Any], pairs: Iterable[tuple[str, str]], ignored: Collection[str]
) -> list[Message]:
    """Return the turns of a row of question and answer, after the exchanges of its history."""
    asks, answers = _pair(row, pairs) or ("", "")
    parts = ("input", "context")
    known = {
        asks,
        answers,
        *parts,
        "history",
        *REASONING,
        *TOOLS,
        *SYSTEM,
        *MARKS,
        *NO_EFFECT,
        *MEDIA,
    }
    _refuse_unknown("the row", row, known, ignored)
    _refuse_media("the row", row, ignored)
    for key in parts:
        if not isinstance(row.get(key, ""), str):
            raise DataError(f"'{key}' is text, got a {type(row[key]).__name__}")
    turns = []
    for number, exchange in enumerate(row.get("history") or (), start=1):
        if not (
            isinstance(exchange, list | tuple)
            and len(exchange) == 2
            and all(isinstance(t, str) for t in exchange)
        ):
            raise DataError(
                f"exchange {number} of 'history' is a [question, answer] pair, got "
                f"{str(exchange)[:60]}"
            )
        turns += [
            {"role": "user", "content": exchange[0]},
            {"role": "assistant", "content": exchange[1]},
        ]
    # Dolly's context is what the instruction is about. Before a question without an instruction it
    # stands first, as in SQuAD.
    order = [asks, "input", "context"] if asks == "instruction" else ["context", asks, "input"]
    question = "\n\n".join(row[key] for key in order if row.get(key))
    answer = _with_thoughts(row, row[answers])
    return [*turns, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _pair(row: Mapping[str, Any], pairs: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    for pair in pairs:
        if all(isinstance(row.get(key), str) for key in pair):
            return pair
    return None


def _with_thoughts(fields: Mapping[str, Any], content: str) -> str:
    """Return the content after the reasoning of a field of its own, as models write it."""
    thoughts = [key for key in REASONING if fields.get(key)]
    if len(thoughts) > 1:
        raise DataError(f"reasoning stands in two fields ({', '.join(thoughts)}); keep one")
    if not thoughts:
        return content
    text = fields[thoughts[0]]
    if not isinstance(text, str):
        raise DataError(f"'{thoughts[0]}' is text, got a {type(text).__name__}")
    return f"<think>\n{text.strip()}\n</think>\n\n{content}"


_TURN_KEYS = frozenset(
    {"role", "from", *_CONTENT, "name", "tool_calls", "function_call"}
    | {*REASONING, *MARKS, *DETAIL, *TURN_NO_EFFECT}
)


def _turn(turn: object, number: int, ignored: Collection[str]) -> Message:
    """Return one turn.

    Two spellings are in use, under either key: role/content and from/value.
    """
    if not isinstance(turn, Mapping):
        raise DataError(
            f"turn {number}: a turn is an object with role and content, got a {type(turn).__name__}"
        )
    where = f"turn {number}"
    _refuse_unknown(where, turn, {*_TURN_KEYS, *MEDIA}, ignored)
    _refuse_media(where, turn, ignored)
    spoken = str(turn.get("from", turn.get("role")))
    role = SPEAKERS.get(spoken)
    raw = turn.get("value", turn.get("content"))
    content = _text(raw, where, ignored)
    calls = _calls(turn, where, ignored)
    unread = content is None and not (calls and raw in (None, []))
    parts = raw if isinstance(raw, list) and all(isinstance(part, Mapping) for part in raw) else []
    if role is not None and unread and parts:
        kinds = sorted({str(part.get("type")) for part in parts})
        raise DataError(
            f"{where} has content in parts of type {', '.join(kinds)}; text alone is learned, as "
            '{"type": "text", "text": ...}'
        )
    if role is None or unread or all(key in turn for key in _CONTENT):
        kind = type(raw).__name__
        raise DataError(
            f"{where} has the role {spoken!r} and content of type {kind}; roles: "
            f"{', '.join(SPEAKERS)}"
        )
    text = content or ""
    marked, before = marked_text(turn, text, where, role), 0
    if role == "assistant":
        said = _calls_of_text(text, where, ignored) if spoken == "function_call" else text
        content = _with_thoughts(turn, "\n".join([*filter(None, [said]), *calls]))
        before = len(_with_thoughts(turn, ""))
    elif calls or any(turn.get(key) for key in REASONING):
        raise DataError(
            f"{where} has the role {spoken!r}; only an assistant calls tools or reasons"
        )
    elif role == "tool":
        tagged = text.strip().startswith(RESPONSE_OPEN) and text.strip().endswith(RESPONSE_CLOSE)
        content = text.strip() if tagged else write_response(text)
        before = len(text.lstrip()) - len(text) if tagged else len(RESPONSE_OPEN)
    else:
        content = text
    message: Message = {"role": role, "content": content}
    learn = turn_mark(turn, role)
    message |= {} if learn is None else {"learn": learn}
    if marked is None:
        return message
    stands = content if before < 0 else content[before : before + len(text)]
    if stands not in (text, text.strip()):
        raise DataError(
            f"{where}: its text is written anew (a call, or a result with tags inside), so marks of "
            "characters have no place in it; mark the turn as a whole"
        )
    return _with_spans(message, marked.placed(content, before, len(text)), forced=marked.forced)


def _with_spans(message: Message, spans: list[Span], *, forced: bool) -> Message:
    """Return a message of which only `spans` are learned. forced: that makes the turn learned."""
    if message.get("learn") is False:
        return message
    if not spans:
        return {**message, "learn": False}
    learn = {"learn": True} if forced else {}
    limits = {} if spans == [[0, len(message["content"])]] else {"spans": spans}
    return {**message, **learn, **limits}


def _text(content: object, where: str, ignored: Collection[str]) -> str | None:
    """Return the text of a turn: plain, or a list of text parts; None for anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content):
        for number, part in enumerate(content, start=1):
            if isinstance(part.get("text"), str):
                _refuse_unknown(
                    f"{where}, part {number}",
                    part,
                    {"type", "text", *PART_MARKS, *CALL_NO_EFFECT},
                    ignored,
                )
        if all(
            part.get("type", "text") == "text" and isinstance(part.get("text"), str)
            for part in content
        ):
            return "".join(part["text"] for part in content)
    return None


def _calls(turn: Mapping[str, Any], where: str, ignored: Collection[str]) -> list[str]:
    """Return a turn's calls as our models write them.

    Read from OpenAI's fields: `tool_calls`, or the older `function_call`.
    """
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise DataError(f"{where}: tool_calls is a list, got a {type(calls).__name__}")
    old = turn.get("function_call")
    if old and calls:
        raise DataError(f"{where} has both tool_calls and function_call; keep one")
    return [_call(call, where, ignored) for call in ([old] if old else calls)]


def _call(call: object, where: str, ignored: Collection[str]) -> str:
    """Return one call as text; arguments are often JSON in JSON, and sometimes encoded twice."""
    fields: Any = call
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        _refuse_unknown(f"{where}, a tool call", call, {"function", *CALL_NO_EFFECT}, ignored)
        fields = call["function"]
    if not isinstance(fields, Mapping) or not isinstance(fields.get("name"), str):
        raise DataError(f"{where}: a tool call has a name and arguments, got {str(call)[:60]}")
    keys = ("arguments", "parameters")
    _refuse_unknown(f"{where}, a tool call", fields, {"name", *keys, *CALL_NO_EFFECT}, ignored)
    arguments: Any = next((fields[key] for key in keys if key in fields), {})
    for _ in range(2):
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise DataError(
                    f"{where}: the arguments of the tool call '{fields['name']}' are no JSON: "
                    f"{arguments[:60]!r}"
                ) from None
    if not isinstance(arguments, Mapping):
        raise DataError(
            f"{where}: the arguments of the tool call '{fields['name']}' are a JSON object, got "
            f"{str(arguments)[:60]!r}"
        )
    return write_call(fields["name"], arguments)


def _calls_of_text(text: str, where: str, ignored: Collection[str]) -> str:
    """Return the calls of sharegpt's `function_call` turn: JSON of one or more, or tagged ones."""
    if CALL_OPEN in text:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{where} (function_call) is no JSON: {text[:60]!r}") from None
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise DataError(f"{where} (function_call) holds no call")
    return "\n".join(_call(call, where, ignored) for call in calls)


def _with_system(row: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    """Return the turns after the row's system prompt and tools, where it has some."""
    prompts = [row[key] for key in SYSTEM if row.get(key)]
    if any(not isinstance(prompt, str) for prompt in prompts):
        raise DataError("a system prompt is text")
    first = turns[0] if turns[0]["role"] == "system" else None
    if len({*prompts, *([first["content"]] if first and prompts else [])}) > 1:
        raise DataError(
            "two system prompts: one in a field of the row, another in its turns or fields; keep "
            "one"
        )
    tools = _tools(row)
    if (prompts or tools) and first is None:
        turns = [{"role": "system", "content": prompts[0] if prompts else ""}, *turns]
    if tools:
        turns = [{**turns[0], "tools": tools}, *turns[1:]]
    return turns


def _tools(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tools that a row lists, as a list or JSON text, in the form of chat templates."""
    listed = [key for key in TOOLS if row.get(key)]
    if not listed:
        return []
    if len(listed) > 1:
        raise DataError("a row has both tools and functions; keep one")
    tools = row[listed[0]]
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise DataError(f"'{listed[0]}' is no JSON: {tools[:60]!r}") from None
    tools = [tools] if isinstance(tools, Mapping) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(
            f"'{listed[0]}' is a list of tools (objects with a name), got {str(tools)[:60]}"
        )
    return [
        dict(tool)
        if isinstance(tool.get("function"), Mapping)
        else {"type": "function", "function": dict(tool)}
        for tool in tools
    ]


def _apply_row_marks(row: Mapping[str, Any], turns: list[Message]) -> None:
    """Mark the turns as the row's marks say, which are about the row, its input, or one role."""
    on_input = [flag(key, row[key]) for key in INPUT if key in row]
    hidden = row.get("mask") if isinstance(row.get("mask"), str) else None
    if hidden is not None and hidden.lower() not in SPEAKERS:
        raise DataError(f"'mask' names no role: {hidden!r}; roles: {', '.join(SPEAKERS)}")
    whole = learns(row)
    for turn in turns:
        if whole is False or (hidden is not None and turn["role"] == SPEAKERS[hidden.lower()]):
            turn["learn"] = False
        elif any(on_input) and turn["role"] != "assistant":
            turn.setdefault("learn", True)


def _refuse_media(where: str, fields: Mapping[str, Any], ignored: Collection[str]) -> None:
    for key in MEDIA:
        if fields.get(key) and key not in ignored:
            raise DataError(f"{where} has '{key}': only text is learned; remove the row")


def _refuse_half_characters(turn: Message, number: int) -> None:
    """Raise DataError when a turn holds half of a surrogate pair, which no tokenizer takes."""
    for text in (turn["content"], json.dumps(turn.get("tools", []), ensure_ascii=False)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"turn {number} holds half of a surrogate pair (at character {error.start})"
            ) from None
