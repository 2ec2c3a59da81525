"""The OpenAI endpoint through OpenAI's own client: real sockets, real processes, a tiny model.

What a model says is not known, so the client's view is held against `models.generate` and against
the rules of the format. Where words matter, a worker of the tests answers in the model's place.
"""

import json
import os
import queue
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import httpx2 as httpx
import openai
import psutil
import pytest
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request

from agent_forge import checkpoint, data, models
from agent_forge.checkpoint import Checkpoint
from agent_forge.core.errors import ConfigError
from agent_forge.server.doors import open_doors
from agent_forge.server.openai import ModelPool, NamedDirectories, router, worker
from agent_forge.server.openai import process as model_process
from agent_forge.server.openai.requests import ChatRequest
from agent_forge.server.serving import ServeSettings, application, opened

KEY, UNKNOWN_KEY = "sk-test", "sk-wrong"
GIB = 1 << 30
pytestmark = pytest.mark.timeout(900)
QUESTION = [{"role": "user", "content": "What is the state of the union?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SPEAKER = Path(__file__).with_name("speaking_worker.py")


def check_key(request: Request) -> None:
    """Stand in for the server's own key check."""
    if request.headers.get("Authorization") != f"Bearer {KEY}":
        raise HTTPException(401, "this key is not known", {"WWW-Authenticate": "Bearer"})


@contextmanager
def served(directories: dict[str, Path], memory_bytes: int = 8 * GIB) -> Iterator["Service"]:
    """Serve these directories on a free port of this machine's own address."""
    pool = ModelPool(memory_bytes=memory_bytes, device="cpu")
    app = FastAPI()
    app.include_router(router(NamedDirectories(directories), pool, [Depends(check_key)]))
    with on_a_port(app) as url:
        one = Service(pool, url)
        try:
            with one.client:
                yield one
        finally:
            pool.close()


@contextmanager
def on_a_port(app: Any, lifespan: Literal["on", "off"] = "off") -> Iterator[str]:
    """Run an application; yield its address."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan=lifespan))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


class Service:
    """A running server and clients for it."""

    def __init__(self, pool: ModelPool, url: str) -> None:
        self.pool, self.url = pool, url
        self.client = openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0, timeout=600)

    def post(self, body: Any, key: str = KEY) -> httpx.Response:
        """Send a body without OpenAI's client."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            f"{self.url}/chat/completions", content=content, headers=headers, timeout=600
        )

    def ask(self, model: str = "tiny", **fields: Any) -> Any:
        """Ask the question, or other messages, through OpenAI's client."""
        fields = {"messages": QUESTION, "max_tokens": 12, **fields}
        return self.client.chat.completions.create(model=model, **fields)


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Checkpoint) -> Iterator[Service]:
    with served({"tiny": tiny_checkpoint.path}) as one:
        yield one


@pytest.fixture(scope="module")
def dictated(
    tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Path]]:
    """Serve a model whose words are dictated; yield the server and the file of the words."""
    place = tmp_path_factory.mktemp("dictated")

    def fill(folder: Path) -> None:
        for name in tiny_checkpoint.manifest.files:
            os.link(tiny_checkpoint.path / name, folder / name)

    checkpoint.write(
        place / "speaking", fill, phase="import", seed=0, config={}, name="speaking",
        agent={"tools": ["calculator", "remember", "recall"]},
    )  # fmt: skip
    with served({"speaking": place / "speaking"}) as one:
        yield one, place / "words.json"


@pytest.fixture
def speaking(
    dictated: tuple[Service, Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Service]:
    """Return a function that dictates what the model says to each prompt.

    words: a part of the last message -> what is said to it.
    """
    one, file = dictated
    monkeypatch.setattr(model_process, "WORKER", [str(SPEAKER)])

    def dictate(words: dict[str, str]) -> Service:
        file.write_text(json.dumps(words))
        return one

    return dictate


def named(tool: str) -> dict[str, Any]:
    """Return the tool_choice that names a tool."""
    return {"type": "function", "function": {"name": tool}}


def text_of(chunks: Sequence[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def wait_until(holds: Callable[[], Any], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def test_the_client_lists_models_and_their_agents(service: Service) -> None:
    ids = [model.id for model in service.client.models.list()]
    assert ids == ["tiny", "tiny:agent"]
    one = service.client.models.retrieve("tiny:agent")
    assert (one.id, one.object, one.owned_by) == ("tiny:agent", "model", "agent-forge")
    assert one.created > 1e9
    with pytest.raises(openai.NotFoundError, match="no model 'tiy'"):
        service.client.models.retrieve("tiy")


def test_a_whole_answer_is_that_of_generate_and_counts_its_tokens(
    service: Service, tiny_checkpoint: Checkpoint
) -> None:
    answer = service.ask()
    tokenizer = models.load_tokenizer(tiny_checkpoint.path)
    model = models.load(tiny_checkpoint.path)
    prompt = data.encode_prompt(tokenizer, QUESTION)
    (tokens,) = models.generate(
        model,
        [prompt],
        models.Decoding(max_new_tokens=12, stop_ids=data.stop_ids(tokenizer, model)),
    )
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert choice.finish_reason == ("length" if len(tokens) == 12 else "stop")
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(tokens)
    assert answer.usage.total_tokens == len(prompt) + len(tokens)


def test_streamed_chunks_are_the_whole_answer(service: Service) -> None:
    sampling = {"temperature": 1.0, "top_p": 0.95, "seed": 7}
    whole = service.ask(**sampling)
    chunks = list(service.ask(stream=True, stream_options={"include_usage": True}, **sampling))
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {c.id for c in chunks} == {chunks[0].id}
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert set(reasons[:-1]) == {None}
    assert reasons[-1] == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    plain = list(service.ask(stream=True, **sampling))
    assert all(chunk.choices for chunk in plain)


def test_a_stream_on_the_wire_is_events_that_end_with_done(service: Service) -> None:
    answer = service.post({"model": "tiny", "messages": QUESTION, "stream": True, "max_tokens": 3})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(json.loads(chunk.removeprefix("data: "))["choices"] for chunk in chunks)


def test_a_stop_text_ends_the_answer_and_is_not_in_it(speaking: Callable) -> None:
    one = speaking({"count": "one two three four"})
    count = [{"role": "user", "content": "count"}]
    for stop in ("three", ["thr", "fo"], ["zero", " three"]):
        answer = one.ask("speaking", messages=count, stop=stop, max_tokens=50)
        assert answer.choices[0].message.content.strip() == "one two"
        assert answer.choices[0].finish_reason == "stop"
        stream = one.ask("speaking", messages=count, stop=stop, max_tokens=50, stream=True)
        assert text_of(list(stream)).strip() == "one two"


def test_thoughts_come_as_reasoning_apart_from_the_content(speaking: Callable) -> None:
    one = speaking({"2+2": "<think>\ntwo and two\n</think>\n\nIt is 4."})
    asked_for = [{"role": "user", "content": "2+2"}]
    answer = one.ask("speaking", messages=asked_for, max_tokens=60)
    message = answer.choices[0].message
    assert (message.content, message.reasoning) == ("It is 4.", "two and two")
    assert message.reasoning_content == message.reasoning
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < 60
    chunks = list(one.ask("speaking", messages=asked_for, max_tokens=60, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "two and two"
    assert text_of(chunks) == "It is 4."


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>'


def test_tools_of_the_client_go_round(speaking: Callable) -> None:
    one = speaking({"in Zürich?": f"I look it up.\n{CALL}", "rain": "It rains."})
    messages: list[Any] = [{"role": "user", "content": "How is it in Zürich?"}]
    tools = {"tools": [WEATHER], "max_tokens": 200}
    answer = one.ask("speaking", messages=messages, **tools)
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look it up.")
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "Zürich"},
    )
    messages += [
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    final = one.ask("speaking", messages=messages, **tools)
    assert final.choices[0].message.content == "It rains."
    assert final.choices[0].finish_reason == "stop"


def test_calls_are_streamed_as_openai_streams_them(speaking: Callable) -> None:
    one = speaking({"?": CALL + CALL.replace("Zürich", "Bern")})
    messages = [{"role": "user", "content": "?"}]
    chunks = list(
        one.ask("speaking", messages=messages, tools=[WEATHER], max_tokens=200, stream=True)
    )
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    assert [call.index for call in calls] == [0, 1]
    assert [call.type for call in calls] == ["function", "function"]
    assert len({call.id for call in calls}) == 2
    cities = [json.loads(call.function.arguments)["city"] for call in calls]
    assert cities == ["Zürich", "Bern"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    first = one.ask(
        "speaking", messages=messages, tools=[WEATHER], max_tokens=200, parallel_tool_calls=False
    )
    assert len(first.choices[0].message.tool_calls) == 1
    for nothing in ({"tools": [WEATHER], "tool_choice": "none"}, {}):
        plain = one.ask("speaking", messages=messages, max_tokens=200, **nothing).choices[0]
        assert plain.message.tool_calls is None
        assert "weather" in plain.message.content
        assert plain.finish_reason == "stop"


TIME = {
    "type": "function",
    "function": {
        "name": "time",
        "description": "The time in a zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


def test_a_model_that_must_call_a_tool_calls_it_as_its_schema_says(service: Service) -> None:
    """The tiny model has learnt nothing, so that its calls can only come of the grammar."""
    pytest.importorskip("llguidance")
    for choice, tools in (("required", [TIME]), (named("time"), [WEATHER, TIME])):
        choice_fields = {"tools": tools, "tool_choice": choice, "max_tokens": 100}
        whole = service.ask(parallel_tool_calls=False, **choice_fields).choices[0]
        streamed = list(service.ask(stream=True, temperature=1.0, **choice_fields))
        chunks = [call for c in streamed for call in c.choices[0].delta.tool_calls or []]
        for call in (*whole.message.tool_calls, *chunks):
            assert call.function.name == "time"
            assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")
        assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
        assert chunks
        if choice != "required":
            assert len(chunks) == 1, "a tool that is named is called once"


@pytest.mark.parametrize(
    ("setting", "choice", "grammar"),
    [
        ("none", None, "none"), ("calls", None, "calls"), ("required", "auto", "calls"),
        ("none", "required", "required"),
    ],
)  # fmt: skip
def test_the_grammar_of_a_manifest_holds_for_the_tools_of_a_client(
    tiny_checkpoint: Checkpoint, setting: str, choice: str | None, grammar: str
) -> None:
    pytest.importorskip("llguidance")
    options = {"path": str(tiny_checkpoint.path), "device": "cpu", "engine": "auto"}
    one = worker.ServedAgent(options)
    one.agent.settings = replace(one.agent.settings, grammar=setting)
    body = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER], "tool_choice": choice}
    turn = one.live(ChatRequest.model_validate(body).job(as_agent=False))
    assert turn.limits.grammar == grammar
    assert turn.toolbox.names == (["weather"] if grammar != "none" else [])


@pytest.mark.parametrize(
    ("tools", "choice", "bound"),
    [([WEATHER], None, 0.4), ([], None, 0.0), ([WEATHER], "required", 0.0)],
)
def test_the_call_gate_of_a_manifest_holds_where_a_client_lets_the_model_choose(
    tiny_checkpoint: Checkpoint, tools: list[Any], choice: str | None, bound: float
) -> None:
    """A model without tools has nothing to begin, and one that has to call may not be held back."""
    if choice:
        pytest.importorskip("llguidance")
    one = worker.ServedAgent({"path": str(tiny_checkpoint.path), "device": "cpu", "engine": "auto"})
    one.agent.settings = replace(one.agent.settings, call_gate=0.4)
    body: dict[str, Any] = {"model": "tiny", "messages": QUESTION}
    if tools:
        body |= {"tools": tools, "tool_choice": choice}
    turn = one.live(ChatRequest.model_validate(body).job(as_agent=False))
    assert turn.limits.call_gate == bound
    gate = turn.limits.decoding_of(one.agent.tokenizer, 0, ()).gate
    assert (gate.least if gate else 0.0) == bound


def test_the_agent_of_a_checkpoint_keeps_its_call_gate_when_it_is_served(
    tiny_checkpoint: Checkpoint,
) -> None:
    one = worker.ServedAgent({"path": str(tiny_checkpoint.path), "device": "cpu", "engine": "auto"})
    one.agent.settings = replace(one.agent.settings, call_gate=0.4)
    body = {"model": "tiny", "messages": QUESTION}
    turn = one.live(ChatRequest.model_validate(body).job(as_agent=True))
    assert turn.agent.sample(QUESTION).limits.call_gate == 0.4


@pytest.mark.parametrize(
    ("dialect", "end", "reason"),
    [
        ("hermes", "assistant\n<think>\n", "begins every answer with its thoughts"),
        ("llama", "assistant\n", "writes calls as llama"),
    ],
)
def test_a_call_that_cannot_be_forced_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, dialect: str, end: str, reason: str
) -> None:
    pytest.importorskip("llguidance")
    monkeypatch.setattr("agent_forge.data.chat.call_dialect", lambda _: dialect)
    tokenizer = SimpleNamespace(decode=lambda _: end)
    with pytest.raises(ConfigError, match=reason) as caught:
        worker._check_can_be_forced(tokenizer, [1])
    assert "\n" not in str(caught.value)


def test_an_agent_begins_with_the_facts_of_its_client_and_tells_those_it_has(
    speaking: Callable,
) -> None:
    def call(name: str, **arguments: str) -> str:
        return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"

    one = speaking({
        "Keep": call("remember", about="door", fact="4821"), "stored": "Done.",
        "Which": call("recall", query="door"), "4821": "It is 4821.",
    })  # fmt: skip
    facts = [{"about": "sea", "fact": "blue"}]
    ask = {"model": "speaking:agent", "max_tokens": 80}
    stored = one.ask(
        messages=[{"role": "user", "content": "Keep it."}], extra_body={"agent_memory": facts},
        **ask,
    ).choices[0].message  # fmt: skip
    assert stored.agent_memory == [*facts, {"about": "door", "fact": "4821"}]
    question = [{"role": "user", "content": "Which one?"}]
    body = {"agent_memory": stored.agent_memory}
    chunks = list(one.ask(messages=question, stream=True, extra_body=body, **ask))
    assert text_of(chunks) == "It is 4821."
    assert chunks[-1].choices[0].delta.agent_memory == stored.agent_memory
    assert one.ask(messages=question, **ask).choices[0].message.content != "It is 4821."
    with pytest.raises(openai.BadRequestError, match="has no memory of its own"):
        one.ask("speaking", messages=question, extra_body=body)


def test_an_agent_runs_its_own_tools_here(speaking: Callable) -> None:
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "6*7"}}</tool_call>'
    one = speaking({"6*7?": call, "42": "It is 42."})
    question = [{"role": "user", "content": "6*7?"}]
    answer = one.ask("speaking:agent", messages=question, max_tokens=60)
    message = answer.choices[0].message
    assert (message.content, message.tool_calls) == ("It is 42.", None)
    assert [event["event"] for event in message.agent_events] == ["call", "result"]
    assert message.agent_events[1]["text"] == "42"
    chunks = list(one.ask("speaking:agent", messages=question, max_tokens=60, stream=True))
    assert text_of(chunks) == "It is 42."
    with pytest.raises(openai.BadRequestError, match="runs its own tools"):
        one.ask("speaking:agent", messages=question, tools=[WEATHER])


def test_a_wrong_key_is_an_authentication_error(service: Service) -> None:
    with (
        openai.OpenAI(base_url=service.url, api_key=UNKNOWN_KEY, max_retries=0) as other,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        other.models.list()
    assert caught.value.body == {
        "message": "this key is not known", "type": "authentication_error", "param": None,
        "code": "invalid_api_key",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "any", "tools": [WEATHER]}, "tool_choice"),
        ({"tool_choice": named("wether"), "tools": [WEATHER]}, "did you mean 'weather'"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "name"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"messages": [{"role": "poet", "content": "x"}]}, "role"),
    ],
)
def test_what_is_not_done_here_is_refused_by_its_name(
    service: Service, fields: dict[str, Any], param: str
) -> None:
    answer = service.post({"model": "tiny", "messages": QUESTION, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param in error["message"] or param in (error["param"] or "")


def test_values_that_ask_for_what_is_done_anyway_are_taken(service: Service) -> None:
    same = {
        "n": 1, "frequency_penalty": 0.0, "presence_penalty": 0, "logprobs": False,
        "logit_bias": {}, "response_format": {"type": "text"}, "store": False, "user": "ann",
        "stop": None, "service_tier": "auto",
    }  # fmt: skip
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    plain, full = service.ask(), service.ask(messages=parts, **same)
    assert full.choices[0].message.content == plain.choices[0].message.content


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "tiny"}'])
def test_a_body_that_is_no_request_is_a_400_in_openais_form(service: Service, body: bytes) -> None:
    answer = service.post(body)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ["none", "../tiny", "/etc", "tiny/", "tiny:agents", "TINY"])
def test_models_are_ids_and_never_paths(service: Service, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        service.ask(name)
    assert caught.value.code == "model_not_found"


def test_a_conversation_that_does_not_fit_is_refused_before_any_work(service: Service) -> None:
    for fields in (
        {"messages": [{"role": "user", "content": "state " * 600}]},
        {"max_tokens": 512},
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            service.ask(**fields)
        assert caught.value.code == "context_length_exceeded"


def held(tmp_path: Path) -> tuple[dict[str, str], Path, Path]:
    """Return words of a model that stops in the middle until a file is there, that file, its log."""
    gate, log = tmp_path / "go on", tmp_path / "tokens"
    words = {"for ever": "word " * 300, "log": str(log), "gate": str(gate)}
    return words, gate, log


def is_cancelled(one: Service) -> bool:
    jobs = [seat._active for seat in one.pool._seats.values()]
    return bool(jobs) and all(job is None or job.is_cancelled for job in jobs)


FOR_EVER = [{"role": "user", "content": "for ever"}]


def test_leaving_a_stream_ends_the_work_at_once(speaking: Callable, tmp_path: Path) -> None:
    words, gate, log = held(tmp_path)
    one = speaking(words)
    with one.ask("speaking", messages=FOR_EVER, max_tokens=300, stream=True) as stream:
        next(stream)
    wait_until(lambda: is_cancelled(one))
    gate.touch()
    wait_until(lambda: "end" in log.read_text())
    assert len(log.read_text().splitlines()) < 200
    again = one.ask("speaking", messages=[{"role": "user", "content": "x"}])  # it serves on
    assert again.choices[0].finish_reason == "stop"


def test_leaving_before_the_answer_ends_the_work_too(speaking: Callable, tmp_path: Path) -> None:
    words, gate, log = held(tmp_path)
    one = speaking(words)
    body = json.dumps({"model": "speaking", "messages": FOR_EVER, "max_tokens": 300}).encode()
    address = httpx.URL(one.url)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port)) as wire:
        wire.sendall(head.encode() + body)
        wait_until(lambda: log.exists() and log.read_text())
    wait_until(lambda: is_cancelled(one))
    gate.touch()
    wait_until(lambda: "end" in log.read_text())
    assert len(log.read_text().splitlines()) < 200


def test_a_process_that_crashes_costs_one_answer(
    speaking: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, gate, _ = held(tmp_path)
    one = speaking(words)
    with one.ask("speaking", messages=FOR_EVER, max_tokens=300, stream=True) as stream:
        next(stream)
        (pid,) = one.pool.loaded().values()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="ended by signal 9"):
            list(stream)
    gate.touch()
    assert one.ask("speaking").choices
    (other,) = one.pool.loaded().values()
    assert other != pid
    # One that died between two answers costs none, even while its threads are still ending.
    os.kill(other, signal.SIGKILL)
    monkeypatch.setattr(model_process.ModelProcess, "is_alive", True)
    assert one.ask("speaking").choices
    assert other not in one.pool.loaded().values()


def test_a_model_that_cannot_be_opened_is_a_500_with_its_reason(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    for name in (*tiny_checkpoint.manifest.files, "forge.json"):
        content = (tiny_checkpoint.path / name).read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1]) if name.endswith("tensors") else content
        (tmp_path / "model" / name).write_bytes(flipped)
    with served({"broken": tmp_path / "model"}) as one:
        with pytest.raises(openai.InternalServerError, match="is damaged") as caught:
            one.ask("broken")
        assert caught.value.code == "model_failed"


def test_a_process_knows_nothing_of_the_servers_environment_and_sockets(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_MASTER_KEY", "secret")
    service.ask()
    (pid,) = service.pool.loaded().values()
    os.kill(pid, signal.SIGKILL)
    service.ask()
    (pid,) = service.pool.loaded().values()
    child = psutil.Process(pid)
    assert "FORGE_MASTER_KEY" not in child.environ()
    assert KEY not in json.dumps([child.environ(), child.cmdline()])
    assert os.getsid(pid) == pid
    assert child.net_connections() == []


class PretendedProcess:
    """A model's process that answers at once, and holds as much memory as it is said to."""

    memory_mib = 300
    pid = 0

    def __init__(self, path: Path, **_: str) -> None:
        self.path, self.is_alive, self.memory_bytes = path, True, 0

    def start(self) -> None:
        self.memory_bytes = self.memory_mib << 20

    def ask(self, _number: int, _job: Any, tell: Callable[[Any], None]) -> None:
        tell({"event": "done"})

    def end(self) -> None:
        self.is_alive, self.memory_bytes = False, 0

    release = end


def test_models_leave_for_memory_the_least_recently_used_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_forge.server.openai.pool.ModelProcess", PretendedProcess)
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "forge.json").touch()
    pool = ModelPool(memory_bytes=700 << 20)
    events: queue.Queue[dict[str, Any]] = queue.Queue()

    def answer(name: str) -> dict[str, Any]:
        pool.submit(tmp_path / name, {}, events.put)
        event = events.get()
        wait_until(lambda: all(seat.is_idle for seat in pool._seats.values()))
        return event

    # Two processes and the estimate of a third do not fit, a process and the estimate do.
    for name in "abac":
        assert answer(name) == {"event": "done"}
    assert sorted(pool.loaded()) == ["a", "c"]
    # A process that outgrows the limit makes the others leave.
    monkeypatch.setattr(PretendedProcess, "memory_mib", 500)
    assert answer("b") == {"event": "done"}
    wait_until(lambda: sorted(pool.loaded()) == ["b"])
    pool.memory_bytes = 100 << 20
    assert "needs about 150 MiB of memory" in answer("a")["message"]
    pool.close()


def test_processes_end_with_the_server(tiny_checkpoint: Checkpoint) -> None:
    one = model_process.ModelProcess(tiny_checkpoint.path, device="cpu", engine="auto")
    one.start()
    child = psutil.Process(one.pid)
    assert one.memory_bytes > 1 << 20
    assert one._child.stdin is not None
    one._child.stdin.close()  # what the kernel does when the server is killed
    assert child.wait(300) == 0
    one.release()
    assert one.memory_bytes == 0


def test_the_service_serves_chat_to_keys_of_that_scope(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    watched = tmp_path / "watched"
    shutil.copytree(tiny_checkpoint.path, watched / "tiny")
    settings = ServeSettings(state=tmp_path / "state", watch=[watched], requests_per_minute=1000)
    with opened(settings) as one:
        doors = open_doors(one)
        _, token = one.ring.create("chat", ["chat"])
        _, other = one.ring.create("read", ["read"])
        wait_until(lambda: one.registry.list())
        with on_a_port(application(one, settings, doors), lifespan="on") as url:
            with openai.OpenAI(base_url=url, api_key=token, max_retries=0, timeout=600) as client:
                assert tiny_checkpoint.id in [model.id for model in client.models.list()]
                for name in (tiny_checkpoint.id, "tiny"):
                    answer = client.chat.completions.create(
                        model=name, messages=QUESTION, max_tokens=3
                    )
                    assert answer.usage.completion_tokens <= 3
            for key, refusal in (
                (other, openai.PermissionDeniedError), (UNKNOWN_KEY, openai.AuthenticationError),
            ):  # fmt: skip
                with (
                    openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client,
                    pytest.raises(refusal),
                ):
                    client.models.list()


def test_the_client_waits_as_long_as_a_429_tells_it_to(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint.path, tmp_path / "watched" / "tiny")
    settings = ServeSettings(
        state=tmp_path / "state", watch=[tmp_path / "watched"], requests_per_minute=2
    )
    with opened(settings) as one:
        _, token = one.ring.create("chat", ["chat"])
        with (
            on_a_port(application(one, settings, open_doors(one)), lifespan="on") as url,
            openai.OpenAI(base_url=url, api_key=token, max_retries=0) as client,
        ):
            with pytest.raises(openai.RateLimitError) as caught:
                [client.models.list() for _ in range(9)]
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
