"""A reply of an agent: the events of a LiveTurn, drafts and votes where the scaffold has them, and
the memories.

Reads and writes the agent's episodic memory: a question and its answer are kept together, and
neither is where nothing was said.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

from agent_forge.agent import scaffolds
from agent_forge.agent.events import AgentEvent, Done, Thought, Usage
from agent_forge.agent.live import LiveTurn
from agent_forge.agent.memory import Memory
from agent_forge.agent.settings import AgentSettings
from agent_forge.agent.turn import Turn


class Replier(Protocol):
    """What a turn needs of its agent."""

    memory: Memory
    session: str
    settings: AgentSettings

    def shown(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """Return what the model is shown of a conversation."""

    def sample(
        self, conversation: Sequence[Any], number: int = 0, stops: Sequence[str] = ()
    ) -> LiveTurn:
        """Return one reply to what the model is shown."""

    def draft(self, conversation: Sequence[Any], number: int) -> LiveTurn:
        """Return one message of the model that is not an answer yet."""


class AgentTurn:
    """A reply of an agent; iterate it once for its events.

    Where several replies vote, all are generated first, and the events are those of the winner. A
    first reply whose calls changed something stands: what is done cannot be voted away. Drafts are
    thoughts.
    """

    def __init__(
        self, agent: Replier, messages: Sequence[Mapping[str, str]], stops: Sequence[str] = ()
    ) -> None:
        self.agent, self.stops = agent, stops
        self._shown = agent.shown(messages)
        self._live = agent.sample(self._shown, stops=stops)
        self._drafting = False
        is_asked = bool(messages) and messages[-1]["role"] == "user"
        self._question = messages[-1]["content"] if is_asked else None

    @property
    def turn(self) -> Turn:
        """Return what there is of the reply so far."""
        return self._live.turn

    def __iter__(self) -> Iterator[AgentEvent]:
        """Yield the events of the reply; the last is Done."""
        memory, session = self.agent.memory, self.agent.session
        try:
            with (
                nullcontext()
                if self._question is None
                else memory.answering(session, self._question)
            ):
                for event in self._events():
                    if isinstance(event, Done):
                        if not event.messages:
                            raise _UnansweredError(event)
                        self._keep(event)
                    yield event
        except _UnansweredError as unanswered:
            yield unanswered.done

    def stop(self) -> None:
        """End the reply before its next token or call; any thread may ask for it."""
        self._live.stop()

    def interrupted(self) -> Done:
        """Return the end of a reply whose iteration was broken off, for instance by Ctrl-C.

        What was said until then is kept, with the question that it answers.
        """
        if self._drafting:
            return Done("cancelled", "", self.turn.usage)
        done = self._live.interrupted()
        if done.messages and self._question is not None:
            self.agent.memory.episodic.add(self.agent.session, "user", self._question)
        self._keep(done)
        return done

    def _events(self) -> Iterator[AgentEvent]:
        settings = self.agent.settings
        if (samples := scaffolds.votes(settings)) > 1:
            return self._vote(samples)
        drafts = settings.scaffold_drafts if settings.scaffold == "drafts" else []
        return self._after_drafts(drafts) if drafts else iter(self._live)

    def _vote(self, samples: int) -> Iterator[AgentEvent]:
        replies: list[tuple[LiveTurn, list[AgentEvent]]] = []
        ballots: list[str | None] = []
        settings = self.agent.settings
        for number in range(samples):
            self._live = live = self.agent.sample(self._shown, number, self.stops)
            replies.append((live, list(live)))
            if isinstance(done := replies[-1][1][-1], Done) and done.finish == "cancelled":
                yield done
                return
            ballots.append(scaffolds.ballot(settings, live.turn))
            stands = number == 0 and live.toolbox.has_changed_things(live.turn.results)
            if stands or scaffolds.decided(ballots, settings.scaffold_stop_after) is not None:
                break
        self._live, events = replies[scaffolds.winner(ballots)]
        yield from events

    def _after_drafts(self, drafts: Sequence[str]) -> Iterator[AgentEvent]:
        """Yield the drafts as thoughts, then the events of the answer that follows them."""
        *before, question = self._shown
        draft, usages, self._drafting = "", list[Usage](), True
        for number, template in enumerate(drafts):
            asking = [*before, scaffolds.filled(template, question, draft)]
            self._live = live = self.agent.draft(asking, number)
            *_, end = live
            if isinstance(end, Done) and end.finish == "cancelled":
                yield Done("cancelled", "", live.turn.usage)
                return
            draft = draft_of(live.turn)
            usages.append(live.turn.usage)
            yield Thought(f"{draft}\n")
        prompt = scaffolds.filled(self.agent.settings.scaffold_prompt, question, draft)
        self._live, self._drafting = self.agent.sample([*before, prompt], stops=self.stops), False
        usage = self._live.turn.usage
        for one in usages:
            usage.prompt_tokens += one.prompt_tokens
            usage.completion_tokens += one.completion_tokens
            usage.reasoning_tokens += one.completion_tokens
        yield from self._live

    def _keep(self, done: Done) -> None:
        for message in done.messages:
            self.agent.memory.episodic.add(self.agent.session, message["role"], message["content"])


def draft_of(turn: Turn) -> str:
    """Return what a draft says; a draft that only calls tools says its calls."""
    return turn.text or turn.messages[-1]["content"]


class _UnansweredError(Exception):
    """A reply that was stopped before it said anything: its question is not kept."""

    def __init__(self, done: Done) -> None:
        super().__init__()
        self.done = done
