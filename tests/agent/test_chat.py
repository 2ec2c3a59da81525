"""`forge chat`: words as they come, commands, and Ctrl-C that keeps what was said."""

import json
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import checkpoint, data, models
from agent_forge.agent import Agent, AgentSettings, Call, Memory, Tool, format_call
from agent_forge.agent.chat import Talk, chat
from agent_forge.agent.conversation import COMMANDS, Conversation
from agent_forge.agent.display import JsonDisplay, TextDisplay
from agent_forge.agent.events import Done, Said, Thought, Usage
from agent_forge.agent.loop import Opening
from agent_forge.checkpoint import Checkpoint
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.data.rows import messages as messages_of
from agent_forge.runtime import talker


def printed(run: Callable[[Console], None], *, terminal: bool = False) -> str:
    console = Console(file=StringIO(), width=80, highlight=False, force_terminal=terminal)
    run(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def lines_of(*lines: str) -> Callable[[], str]:
    """Return a reader of these lines that then raises EOFError."""
    left = iter(lines)

    def read() -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    return read


@pytest.fixture
def talk(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., tuple[Conversation, str]]:
    """Return a function that holds a conversation of these lines with an agent."""

    def hold(*lines: str, tools: tuple[str, ...] = ()) -> tuple[Conversation, str]:
        console = Console(file=StringIO(), width=80, highlight=False)
        agent = Agent(tiny_llama, tiny_tokenizer, list(tools))
        conversation = Conversation(agent, console, TextDisplay(console))
        conversation.converse("x", lines_of(*lines))
        return conversation, console.file.getvalue()  # type: ignore[attr-defined]

    return hold


def test_chat_answers_one_message_from_a_checkpoint(
    speaks: Callable, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    speaks(lambda _: "hello [bold]you[/]")
    memory = tmp_path / "memory.db"
    assert "hello [bold]you[/]" in printed(
        lambda c: chat(tiny_checkpoint.path, Talk(message="hi", console=c), Opening(memory=memory))
    )
    assert Memory(memory).episodic.search("hi", 1)[0].content == "hi"


def test_chat_reads_a_pipe(
    speaks: Callable, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = speaks(lambda _: "fine")
    monkeypatch.setattr("sys.stdin", StringIO("how are you?\n"))
    assert "fine" in printed(lambda c: chat(tiny_checkpoint.path, Talk(console=c)))
    assert "how are you?" in seen[0]


def test_chat_without_a_message_says_what_to_do(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="nothing to answer"):
        chat(tiny_checkpoint.path, Talk(message=" "))


def test_chat_with_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        chat(tmp_path / "none", Talk(message="hi"))


def test_a_damaged_tokenizer_is_named_by_its_hash_although_it_is_read_meanwhile(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    damaged = shutil.copytree(tiny_checkpoint.path, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Agent.from_checkpoint(damaged)


def test_a_message_that_is_no_utf8_is_refused_in_one_line(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="the message is not UTF-8"):
        chat(tiny_checkpoint.path, Talk(message="a\udcff"))


def test_chat_converses_shows_calls_and_obeys_commands(
    speaks: Callable,
    calculates: Callable,
    tiny_checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speaks(calculates)
    read = lines_of("6*7", "/memory", "/reset", "/tols", "/quit")
    monkeypatch.setattr("agent_forge.agent.chat.line_reader", lambda _: read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        AgentSettings, "from_manifest", classmethod(lambda cls, _: cls(tools=["calculator"]))
    )
    text = printed(lambda c: chat(tiny_checkpoint.path, Talk(console=c)))
    for expected in (
        "→ calculator(expression='6*7')",
        "← 42\n42\n",
        "nothing is remembered",
        "did you mean '/tools'",
    ):
        assert expected in text


def test_once_leaves_after_one_answer_on_a_terminal(
    speaks: Callable, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = speaks(lambda _: "fine")
    read = lines_of("first", "second")
    monkeypatch.setattr("agent_forge.agent.chat.line_reader", lambda _: read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert printed(lambda c: chat(tiny_checkpoint.path, Talk(once=True, console=c))) == "fine\n"
    assert len(seen) == 1
    assert read() == "second"
    assert printed(lambda c: chat(tiny_checkpoint.path, Talk(once=True, console=c))) == ""


def test_json_prints_one_line_per_event(
    speaks: Callable,
    calculates: Callable,
    tiny_checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speaks(calculates)
    monkeypatch.setattr(
        AgentSettings, "from_manifest", classmethod(lambda cls, _: cls(tools=["calculator"]))
    )
    text = printed(
        lambda c: chat(tiny_checkpoint.path, Talk(message="6*7", as_json=True, console=c))
    )
    events = [json.loads(line) for line in text.splitlines()]
    assert events[:2] == [
        {"event": "call", "number": 0, "name": "calculator", "arguments": {"expression": "6*7"}},
        {"event": "result", "number": 0, "text": "42", "error": False},
    ]
    assert "".join(event["text"] for event in events if event["event"] == "text") == "42"
    assert (events[-1]["event"], events[-1]["finish"], events[-1]["text"]) == ("done", "stop", "42")
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


@pytest.mark.parametrize("line", [line for line in COMMANDS if line != "/quit"])
def test_every_command_prints_something(line: str, talk: Callable) -> None:
    before = talk()[1]
    assert talk(line)[1].removeprefix(before.rstrip("\n")).strip()


def test_an_answer_stopped_before_its_first_word_drops_its_message(
    speaks: Callable, talk: Callable
) -> None:
    def reply(shown: str) -> str:
        if shown.count("second"):
            raise KeyboardInterrupt
        return "fine"

    seen = speaks(reply)
    conversation, text = talk("the first", "the second", "the third")
    assert "that message is dropped" in text
    assert "the first" in seen[-1] and "the third" in seen[-1] and "second" not in seen[-1]  # noqa: PT018
    episodes = conversation.agent.memory.episodic.recent("default", 9)
    assert [episode.content for episode in episodes] == ["the first", "fine", "the third", "fine"]


def test_ctrl_c_in_an_answer_keeps_what_was_said(
    speaks: Callable,
    talk: Callable,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = speaks(lambda _: "and then?")
    dictated = talker.stream

    def breaks_off(_: object, prompt: list[int], *settings: Any) -> Iterator[int]:
        if "second" in str(tiny_tokenizer.decode(prompt)):
            yield from dictated(_, prompt, *settings)
            return
        yield from tiny_tokenizer.encode("half a sentence", add_special_tokens=False)
        raise KeyboardInterrupt

    monkeypatch.setattr(talker, "stream", breaks_off)
    conversation, text = talk("the first", "the second")
    assert "half a sentence\nstopped; the conversation goes on" in text
    assert [m["content"] for m in conversation.messages] == [
        "the first", "half a sentence", "the second", "and then?",
    ]  # fmt: skip
    assert "half a sentence" in seen[-1]
    assert conversation.agent.memory.episodic.recent("default", 3)[0].content == "half a sentence"


def test_a_destructive_call_runs_only_when_the_person_says_yes(
    speaks: Callable,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    erased: list[str] = []
    eraser = Tool(
        "erase",
        "Erase a file.",
        {"type": "object", "properties": {"name": {"type": "string"}}},
        run=lambda arguments, _: erased.append(arguments["name"]) or "gone",
        destructive=True,
    )
    speaks(
        lambda text: "ok" if "tool_response" in text else format_call(Call("erase", {"name": "x"}))
    )
    for answer, expected in (("n", []), ("", []), ("yes", ["x"])):
        console = Console(file=StringIO(), width=80)
        monkeypatch.setattr(console, "input", lambda answer=answer: answer)
        agent = Agent(tiny_llama, tiny_tokenizer, [eraser], settings=AgentSettings(allow=["erase"]))
        conversation = Conversation(agent, console, TextDisplay(console))
        agent.confirm = conversation.confirm
        conversation.answer("erase x")
        assert erased == expected
        assert 'erase({"name": "x"}) changes things' in console.file.getvalue()  # type: ignore[attr-defined]


def test_tools_of_a_file_are_called_in_chat(
    speaks: Callable, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "my_tools.py"
    file.write_text('def double(n: int) -> int:\n    """Return twice n."""\n    return 2 * n\n')
    speaks(lambda text: "86" if "86" in text else format_call(Call("double", {"n": 43})))
    text = printed(
        lambda c: chat(
            tiny_checkpoint.path, Talk(message="twice 43?", console=c), tools=[str(file)]
        )
    )
    assert text == "→ double(n=43)\n← 86\n86\n"


def test_a_persona_is_shown_to_the_model_until_it_is_off(speaks: Callable, talk: Callable) -> None:
    seen = speaks(lambda _: "ok")
    _, text = talk("/persona Speak as a pirate.", "hello", "/persona off", "again")
    assert "Speak as a pirate." in text
    assert ["pirate" in prompt for prompt in seen] == [True, False]


def test_a_saved_conversation_is_a_row_to_train_on(
    speaks: Callable, talk: Callable, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    speaks(lambda _: "ok")
    file = tmp_path / "rows.jsonl"
    talk(f"/save {file}", "/persona Be kind.", "hello", f"/save {file}", f"/save {file}")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 2
    read = messages_of(rows[0])
    assert [m["content"] for m in read] == ["Be kind.", "hello", "ok"]
    assert any(data.encode_chat(tiny_tokenizer, read)[1])
    assert "cannot write" in talk("hello", f"/save {tmp_path / 'none' / 'x'}")[1]


def show(display: TextDisplay, *texts: str) -> None:
    for text in texts:
        display.show(Said(text) if text[0] != "~" else Thought(text[1:]))
    display.show(Done("stop", "", Usage()))


def test_thoughts_are_shown_apart_or_not_at_all() -> None:
    said = ("~let ", "~me see", "It is ", "2.")
    assert printed(lambda c: show(TextDisplay(c), *said)) == "It is 2.\n"
    shown = printed(lambda c: show(TextDisplay(c, shows_thoughts=True), *said))
    assert shown == "let me see\nIt is 2.\n"
    hidden = printed(lambda c: show(TextDisplay(c), *said), terminal=True)
    assert hidden.count("thinking …") == 1
    assert "let" not in hidden


def test_show_thoughts_shows_what_is_thought_between_tokens(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """One thought of two tokens before each of three tokens, at the same answer as without it."""
    from agent_forge.models.thought import ThoughtForCausalLM

    model = ThoughtForCausalLM.wrap(
        tiny_llama, start_ids=[1], end_ids=[2], thought_length=2, gate_entropy_nats=0.0
    )
    thinker = checkpoint.write(
        tmp_path / "thinks",
        lambda directory: models.save(model, tiny_tokenizer, directory),
        phase="quietstar", seed=0, config={}, name="t",
    )  # fmt: skip

    def answer(**more: bool) -> list[dict[str, Any]]:
        opening = Opening(settings={"max_new_tokens": 3})
        lines = printed(
            lambda c: chat(
                thinker.path, Talk(message="hi", as_json=True, console=c, **more), opening
            )
        )
        return [json.loads(line) for line in lines.splitlines()]

    silent, shown = answer(), answer(show_thoughts=True)
    thoughts = [one["text"] for one in shown if one["event"] == "thought"]
    assert not [one for one in silent if one["event"] == "thought"]
    assert len(thoughts) - shown[-1]["usage"]["completion_tokens"] in (0, 1)
    assert all(text[0] == "[" and text[-1] == "]" for text in thoughts)
    assert [one for one in shown if one["event"] != "thought"] == silent


def test_control_characters_do_nothing_on_a_terminal_and_pass_through_a_pipe() -> None:
    evil = "a\x1b]0;title\x07b\x9b2J"
    assert "a␛]0;title␇b\ufffd2J" in printed(lambda c: show(TextDisplay(c), evil), terminal=True)
    assert printed(lambda c: show(TextDisplay(c), evil)) == f"{evil}\n"


def test_ctrl_c_between_prompt_and_answer_does_not_end_the_chat(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The signal comes where no reader takes the key: while a message is taken, or a command runs."""
    console = Console(file=StringIO(), width=80, highlight=False)
    conversation = Conversation(Agent(tiny_llama, tiny_tokenizer), console, TextDisplay(console))
    messages: list[str] = []

    def interrupted(text: str) -> None:
        messages.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation, "answer", interrupted)
    monkeypatch.setattr(conversation, "run_command", interrupted)
    words: list[str | None] = ["one", None, "/memory", None, None, "never read"]

    def read() -> str:
        word = words.pop(0)
        if word is None:
            raise KeyboardInterrupt
        return word

    conversation.converse("x", read)
    assert messages == ["one", "/memory"]
    assert words == ["never read"]  # twice in a row leaves
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("stopped") == 2
    assert shown.count("Ctrl-C once more leaves") == 2


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"\\u00f6"), ("utf-8", b"\xc3\xb6")])
def test_json_loses_no_letter_on_a_stream_that_lacks_it(encoding: str, shown: bytes) -> None:
    raw = BytesIO()
    stream = TextIOWrapper(raw, encoding=encoding, errors="replace")
    JsonDisplay(Console(file=stream)).show(Said("gr\u00f6\u00dfer"))
    stream.flush()
    assert shown in raw.getvalue()
    assert json.loads(raw.getvalue())["text"] == "gr\u00f6\u00dfer"


def test_a_line_that_is_not_utf8_is_dropped_in_a_conversation(talk: Callable) -> None:
    conversation, shown = talk("gr\udcf6sse", "/memory")
    assert "that line is not UTF-8, so it is dropped" in shown
    assert "nothing is remembered" in shown
    assert not conversation.messages
