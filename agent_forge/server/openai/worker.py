"""One model's process, from inside: reads jobs from standard input, writes events to standard output.

Both are JSON, one object per line. The first line in names the checkpoint and how to run it; the
first line out says `ready` or why the model cannot be opened. Then each `{"ask": number, ...}` is
answered by `begun` and the records of its events (agent/events.py), each with that number, the last
of them `done` or `error`; `{"cancel": number}` ends one early. At the end of its input, which is when the
server is gone, the process ends at once. What libraries print goes to standard error.
"""

import importlib.util
import json
import os
import queue
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import IO, Any

from agent_forge.core.errors import ConfigError, DataError, ForgeError

OUT_OF_CONTEXT = "context_length_exceeded"
# Tokens of an answer whose request sets no bound; its finish_reason says where they ran out.
MOST_TOKENS = 1024


class Worker:
    """Answers jobs one after the other; a thread of its own reads what comes in."""

    def __init__(self, source: IO[str], target: IO[str]) -> None:
        self.source, self.target = source, target
        self._jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self._cancelled: set[int] = set()  # numbers of jobs that are still to come
        self._latest = 0  # the latest job that was begun; their numbers ascend
        self._live: tuple[int, Any] | None = None

    def run(self) -> None:
        """Open the model that the first line names, then answer until the input ends."""
        options = json.loads(self.source.readline() or "{}")
        if not options:
            return
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            model = ServedAgent(options)
        except ForgeError as error:
            self._send({"event": "failed", "message": str(error)})
            return
        self._send({"event": "ready"})
        while True:
            self._answer(model, self._jobs.get())

    def _listen(self) -> None:
        """Take jobs and cancellations; leave at the end of the input, whatever is going on."""
        for line in self.source:
            message = json.loads(line)
            if "ask" in message:
                self._jobs.put(message)
                continue
            number = message["cancel"]
            if number > self._latest:
                self._cancelled.add(number)
            live = self._live
            if live is not None and live[0] == number:
                live[1].stop()
        os._exit(0)

    def _answer(self, model: "ServedAgent", job: Mapping[str, Any]) -> None:
        number = job["ask"]
        self._send({"ask": number, "event": "begun"})
        try:
            live = model.live(job)
            self._live = (number, live)
            self._latest = number
            if number in self._cancelled:
                live.stop()
            with closing(live.agent.memory) if job["as_agent"] else nullcontext():
                for event in model.records(live, job):
                    self._send({"ask": number, **event})
        except (ConfigError, DataError) as error:
            code = OUT_OF_CONTEXT if isinstance(error, ContextError) else None
            self._send({"ask": number, "event": "error", "message": str(error), "code": code})
        finally:
            self._live = None
            self._cancelled.discard(number)

    def _send(self, message: Mapping[str, Any]) -> None:
        self.target.write(json.dumps(message) + "\n")
        self.target.flush()


class ContextError(ConfigError):
    """The conversation and its answer do not fit the model's context."""


class ServedAgent:
    """A checkpoint that answers jobs: as a model with the client's tools, or as its own agent."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        from agent_forge.agent.loop import Agent, Opening
        from agent_forge.data.windows import positions

        self.agent = Agent.from_checkpoint(
            options["path"], Opening(device=options["device"], engine=options["engine"])
        )
        self.context_tokens = positions(self.agent.model.config) or 1 << 20

    def live(self, job: Mapping[str, Any]) -> Any:
        """Return the reply to a job, to be iterated. Raises ContextError where it does not fit."""
        return self._agent_turn(job) if job["as_agent"] else self._model_turn(job)

    def records(self, live: Any, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a reply's events as JSON; calls that nobody can run are the text that they were."""
        from agent_forge.agent.calls import Call, format_call
        from agent_forge.agent.events import Called, Done, record

        for event in live:
            entry = record(event)
            if isinstance(event, Called) and not job["as_agent"]:
                call = event.call
                if not isinstance(call, Call):
                    entry = {"event": "text", "text": call.text}
                elif not job["tools"]:
                    entry = {"event": "text", "text": format_call(call)}
            elif isinstance(event, Done) and job["as_agent"]:
                facts = live.agent.memory.semantic.all()
                entry["memory"] = [{"fact": one.content, "about": one.about} for one in facts]
            elif isinstance(event, Done) and not job["tools"]:
                entry["finish"] = "stop" if event.finish == "tool_calls" else event.finish
            yield entry

    def _model_turn(self, job: Mapping[str, Any]) -> Any:
        """Return one message of the model, with the decoder and scaffold of its manifest."""
        from agent_forge.agent import LiveTurn, Toolbox, TurnLimits
        from agent_forge.agent.grammar import CALLS, NONE, REQUIRED
        from agent_forge.data.chat import encode_prompt

        agent, settings = self.agent, self.agent.settings
        messages = agent.prepared(job["messages"])
        if job["tools"]:
            messages = _with_tools(messages, job["tools"])
        prompt = encode_prompt(agent.tokenizer, messages)
        if job["forced_tools"]:
            _check_can_be_forced(agent.tokenizer, prompt)
            grammar, names = REQUIRED, job["forced_tools"]
        else:  # the manifest's grammar holds for what is written as a call; words stay possible
            grammar = NONE if settings.grammar == NONE else CALLS
            names = [tool["function"]["name"] for tool in job["tools"] if grammar == CALLS]
        limits = TurnLimits(
            decoding=replace(
                settings.decoding,
                max_new_tokens=self._new_tokens(job, len(prompt)),
                temperature=_given(job, "temperature", settings.temperature),
                top_p=_given(job, "top_p", settings.top_p),
                seed=_given(job, "seed", settings.seed),
            ),
            stops=job["stops"],
            runs_calls=False,
            several_calls=job["several_calls"],
            grammar=grammar,
            call_gate=settings.call_gate if job["tools"] and grammar != REQUIRED else 0.0,
        )
        tools = Toolbox(_client_tools(job["tools"], names))
        return LiveTurn(agent.model, agent.tokenizer, messages, tools, limits)

    def _agent_turn(self, job: Mapping[str, Any]) -> Any:
        """Return a reply of the checkpoint's agent.

        Its memory lives as long as the reply: it begins with the job's facts, and its end tells
        the facts that the next job of the conversation begins with.
        """
        from agent_forge.agent import Agent, Memory

        agent = self.agent
        settings = replace(
            agent.settings,
            max_new_tokens=job["max_new_tokens"] or agent.settings.max_new_tokens,
            temperature=_given(job, "temperature", agent.settings.temperature),
            top_p=_given(job, "top_p", agent.settings.top_p),
            seed=_given(job, "seed", agent.settings.seed),
        )
        if settings.max_new_tokens >= self.context_tokens:
            raise self._too_long(0, settings.max_new_tokens)
        memory = Memory()
        for fact in job["memory"]:
            memory.semantic.remember(fact["fact"], fact["about"])
        one = Agent(agent.model, agent.tokenizer, memory=memory, settings=settings)
        return one.live(job["messages"], stops=job["stops"])

    def _new_tokens(self, job: Mapping[str, Any], prompt_tokens: int) -> int:
        """Return how many tokens the answer may have. Raises ContextError where they do not fit."""
        room = self.context_tokens - prompt_tokens
        count = job["max_new_tokens"] or min(MOST_TOKENS, room)
        if count > room or room <= 0:
            raise self._too_long(prompt_tokens, max(count, 0))
        return int(count)

    def _too_long(self, prompt_tokens: int, new_tokens: int) -> ContextError:
        return ContextError(
            f"this model's context is {self.context_tokens} tokens, and the request needs "
            f"{prompt_tokens} for its messages and {new_tokens} for the answer; shorten one"
        )


def _check_can_be_forced(tokenizer: Any, prompt: Sequence[int]) -> None:
    """Raise ConfigError where a model cannot be made to answer a prompt by a call."""
    from agent_forge.agent.calls import THINK_OPEN
    from agent_forge.agent.live import TAG_TOKENS
    from agent_forge.data.call_dialects import DEFAULT
    from agent_forge.data.chat import call_dialect

    because = ""
    if importlib.util.find_spec("llguidance") is None:
        because = "the server lacks llguidance (pip install 'agent-forge[agent]')"
    elif call_dialect(tokenizer) != DEFAULT:
        because = f"it writes calls as {call_dialect(tokenizer)}, and the grammar is for {DEFAULT}"
    elif str(tokenizer.decode(list(prompt[-TAG_TOKENS:]))).rstrip().endswith(THINK_OPEN):
        because = "it begins every answer with its thoughts"
    if because:
        raise ConfigError(
            f'tool_choice: this model cannot be made to call a tool: {because}; take "auto"'
        )


def _client_tools(entries: Sequence[Mapping[str, Any]], names: Collection[str]) -> list[Any]:
    """Return the named tools of a client for the grammar of their calls; nothing runs them here."""
    from agent_forge.agent.tool import ANY_ARGUMENTS, Tool

    functions = [entry["function"] for entry in entries]
    return [
        Tool(one["name"], one["description"], one["parameters"] or ANY_ARGUMENTS)
        for one in functions if one["name"] in names
    ]  # fmt: skip


def _with_tools(messages: list[dict[str, Any]], tools: list[Any]) -> list[dict[str, Any]]:
    """Return the messages with the tools on their system turn, which is made where there is none."""
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    return [{**messages[0], "tools": tools}, *messages[1:]]


def _given(job: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    return otherwise if job[name] is None else job[name]


def main() -> None:
    """Serve on the standard streams; anything else that is printed goes to standard error."""
    target = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    source = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what tools start must not read our jobs
    Worker(source, target).run()


if __name__ == "__main__":
    main()
