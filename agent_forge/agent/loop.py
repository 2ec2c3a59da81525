"""The agent's loop: generate, run the calls, show the model their results, until it answers.

Reads a model, a tokenizer, the tools that are enabled and the memories; writes only to the
memories. Control tokens in the text of users and tools stay plain text (`data.encode_chat`), calls
are read only from the assistant's own turns, and a tool that is not enabled is refused. This is the
loop of ReAct (Yao et al. 2022, arXiv:2210.03629) in the format of Hermes.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_forge import checkpoint, models
from agent_forge.agent import scaffolds
from agent_forge.agent.agent_turn import AgentTurn
from agent_forge.agent.documents import Documents
from agent_forge.agent.grammar import kind_of_round, token_mask
from agent_forge.agent.live import LiveTurn, TurnLimits
from agent_forge.agent.memory import Memory, new_session
from agent_forge.agent.settings import BATCH_ROWS, AgentSettings
from agent_forge.agent.sources import open_documents
from agent_forge.agent.tool import Tool, ToolContext
from agent_forge.agent.tool_sources import kept_tools
from agent_forge.agent.tool_sources.manifest import differences
from agent_forge.agent.toolbox import Toolbox
from agent_forge.agent.turn import Confirm, Turn, add_message, decode_reply, run_calls
from agent_forge.agent.working import Summariser, WorkingMemory, rolling, sum_basic
from agent_forge.data.chat import (
    chat_format,
    encode_content,
    encode_prompt,
    speak_dialect,
    stop_ids,
)
from agent_forge.data.light_tokenizer import LightTokenizer, open_light
from agent_forge.data.windows import positions
from agent_forge.models.sampling import Decoding
from agent_forge.runtime.talker import open_talker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Message = Mapping[str, str]
_log = logging.getLogger("agent_forge")
SUMMARISE = "Summarise this conversation in a few short sentences. Keep names and numbers."
CHAT_TOKENS = 512  # the longest answer where a manifest sets no other bound
BATCH_LIMITS = TurnLimits(max_rounds=3, decoding=Decoding(max_new_tokens=64, batch_rows=BATCH_ROWS))


def answer_batch(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    conversations: Sequence[Sequence[Message]],
    tools: Toolbox | Sequence[str | Tool] | Sequence[Toolbox],
    limits: TurnLimits = BATCH_LIMITS,
) -> list[list[dict[str, str]]]:
    """Return the messages that each conversation gains: calls, the tools' results, the answer."""
    turns = answer_turns(model, tokenizer, conversations, tools, limits)
    return [turn.messages for turn in turns]


def answer_turns(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    conversations: Sequence[Sequence[Message]],
    tools: Toolbox | Sequence[str | Tool] | Sequence[Toolbox],
    limits: TurnLimits = BATCH_LIMITS,
) -> list[Turn]:
    """Return the turn that answers each conversation.

    Each round generates for all unfinished conversations at once, and runs their calls.

    tools: one toolbox or list of enabled tools for all, or one toolbox per conversation, each with
    its own memories. A grammar is of the tools that each conversation may call.
    """
    assert not limits.stops, "texts that end a reply are for a LiveTurn"
    assert limits.runs_calls, "here all calls are run"
    assert limits.several_calls, "here all calls are run"
    decoding = limits.decoding
    boxes = _toolboxes(tools, len(conversations))
    stops = stop_ids(tokenizer, model)
    turns = [Turn() for _ in conversations]
    active = list(range(len(conversations)))
    for number in range(limits.max_rounds):
        if not active:
            break
        prompts = [
            encode_prompt(tokenizer, [*conversations[i], *turns[i].messages]) for i in active
        ]
        for i, prompt in zip(active, prompts, strict=True):
            turns[i].usage.prompt_tokens += len(prompt)
        bounds = (kind_of_round(limits.grammar, number), stops, decoding.max_new_tokens)
        replies = models.generate(
            model,
            prompts,
            limits.decoding_of(tokenizer, number, stops),
            [token_mask(tokenizer, boxes[i].parameters(), *bounds) for i in active],
        )
        for i, tokens in zip(active, replies, strict=True):
            turns[i].cut = len(tokens) >= decoding.max_new_tokens
            turns[i].usage.completion_tokens += len(tokens)
            calls = add_message(
                turns[i], decode_reply(tokenizer, tokens, boxes[i], cut=turns[i].cut)
            )
            for _ in run_calls(turns[i], calls, boxes[i]):
                pass  # the events of a batch are nobody's; its turns hold all of them
        active = [i for i in active if not turns[i].finished]
    return turns


def _toolboxes(
    tools: Toolbox | Sequence[str | Tool] | Sequence[Toolbox], count: int
) -> list[Toolbox]:
    if isinstance(tools, Toolbox):
        return [tools] * count
    boxes = [tool for tool in tools if isinstance(tool, Toolbox)]
    if boxes:
        assert len(boxes) == count, "one toolbox per conversation"
        return boxes
    return [Toolbox([tool for tool in tools if not isinstance(tool, Toolbox)])] * count


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """With what, and on what, the agent of a checkpoint is opened.

    memory: the SQLite file of its memories.
    documents: indexes of `forge index`, or text sources (as in data.text), which are indexed once
    into the memory file. encoding: of these texts.
    search_endpoint: the address that `search` asks, as in agent/endpoint.py.
    engine: auto, packed or torch, as in runtime.causal.
    settings: changes to the settings of the manifest, by name.
    """

    memory: Path | str = ":memory:"
    documents: Sequence[str] = ()
    encoding: str = "utf-8"
    search_endpoint: str = ""
    device: str = "cpu"
    engine: str = "auto"
    settings: Mapping[str, Any] | None = None


OPENING = Opening()


class Agent:
    """A model with tools and memories.

    settings: an AgentSettings, or the `agent` entry of a manifest.
    tools: the enabled tools, by name or as they are; None takes those in the settings, without the
    code of a user's.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        tools: Sequence[str | Tool] | Toolbox | None = None,
        memory: Memory | None = None,
        settings: AgentSettings | Mapping[str, Any] | None = None,
        *,
        documents: Documents | None = None,
        session: str = "default",
    ) -> None:
        if not isinstance(settings, AgentSettings):
            settings = AgentSettings.from_manifest(settings or {})
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        speak_dialect(tokenizer, settings.calls)
        self.memory = memory if memory is not None else Memory()
        self.session = session
        # Asks a person whether a destructive call may run; nobody is asked by default.
        self.confirm: Confirm | None = None
        if isinstance(tools, Toolbox):
            self.toolbox = tools
        else:
            context = ToolContext(
                memory=self.memory, documents=documents, code_sandbox=settings.code_sandbox
            )
            enabled = kept_tools(settings.tools)[0] if tools is None else list(tools)
            self.toolbox = Toolbox(enabled, context, settings.allow)
        # The template's tokens around an empty turn and its answer: no turn costs more than these
        # beside its text.
        self._turn_tokens = len(encode_prompt(tokenizer, [{"role": "user", "content": ""}]))
        context_tokens = positions(model.config) or 2048
        budget = (
            settings.working_tokens
            or context_tokens - settings.max_new_tokens * settings.max_rounds
        )
        self.working = WorkingMemory(
            max(budget, context_tokens // 4), self._count_tokens, self._summariser()
        )

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        opening: Opening = OPENING,
        tools: Sequence[str | Tool] | None = None,
    ) -> "Agent":
        """Build the agent that a checkpoint's manifest describes.

        tools: what it may call in place of the manifest's tools. Raises CheckpointError when the
        checkpoint is damaged.
        """
        checkpoint.open(path, verify=False)  # anything else is refused at once
        with ThreadPoolExecutor(2) as beside:
            # Hashing takes a second for each gigabyte; another core does it meanwhile, and reads the
            # tokenizer.
            verified = beside.submit(checkpoint.open, path)
            light = beside.submit(_light_tokenizer, Path(path))
            try:
                model: Any = open_talker(path, device=opening.device, engine=opening.engine)
            finally:
                opened = verified.result()
        chosen = _chat_settings(opened.manifest.agent, positions(model.config))
        chosen = replace(chosen, **(opening.settings or {}))
        store = Memory(opening.memory)
        index = open_documents(
            store.store, opening.documents, opening.encoding, chosen, opening.search_endpoint
        )
        named = None if tools is None else [tool for tool in tools if isinstance(tool, Tool)]
        for note in differences(chosen.tools, named):
            _log.warning(note)
        return cls(
            model,
            light.result() or models.load_tokenizer(opened.path),  # type: ignore[arg-type]
            tools,
            store,
            chosen,
            documents=index,
            session=new_session(),
        )

    def reply(self, messages: Sequence[Message]) -> Turn:
        """Answer a conversation that ends with a user's turn.

        Both the question and the answer go into the episodic memory.
        """
        live = self.live(messages)
        for _ in live:
            pass
        return live.turn

    def _summariser(self) -> Summariser | None:
        """Return what becomes of turns that leave the window."""
        if self.settings.summary == "none":
            return None
        return rolling(self._written_summary) if self.settings.summary == "model" else sum_basic

    def _written_summary(self, transcript: str) -> str:
        """Let the model summarise a transcript; without tools and in one generation."""
        question = f"{SUMMARISE}\n\n{transcript}"
        live = LiveTurn(
            self.model, self.tokenizer, [{"role": "user", "content": question}], Toolbox([]),
            TurnLimits(decoding=Decoding(max_new_tokens=self.settings.max_new_tokens)),
        )  # fmt: skip
        for _ in live:
            pass
        return live.turn.text

    def live(self, messages: Sequence[Message], stops: Sequence[str] = ()) -> AgentTurn:
        """Return the reply to a conversation as it comes into being, to be iterated.

        What it says goes into the episodic memory at its end, also where it was stopped.
        stops: texts that end it.
        """
        return AgentTurn(self, messages, stops)

    def sample(
        self, conversation: Sequence[Message], number: int = 0, stops: Sequence[str] = ()
    ) -> LiveTurn:
        """Return one reply to what the model is shown; `number` sets its random numbers.

        The first is as configured. Further ones are for votes, so they are always sampled, and no
        destructive tool runs for them: one that is allowed would run once per vote.
        """
        temperature = self.settings.temperature
        limits = self._limits(temperature if number == 0 else (temperature or 0.7), number)
        limits = replace(
            limits, max_rounds=self.settings.max_rounds, stops=stops,
            grammar=self.settings.grammar, call_gate=self.settings.call_gate,
        )  # fmt: skip
        box = self.toolbox if number == 0 else self.toolbox.read_only()
        return LiveTurn(self.model, self.tokenizer, conversation, box, limits, self.confirm)

    def draft(self, conversation: Sequence[Message], number: int) -> LiveTurn:
        """Return one message of the model that is not an answer yet; its calls are not run."""
        limits = replace(self._limits(self.settings.temperature, 1 + number), runs_calls=False)
        return LiveTurn(self.model, self.tokenizer, conversation, self.toolbox, limits)

    def _limits(self, temperature: float, number: int) -> TurnLimits:
        settings = self.settings
        return TurnLimits(
            decoding=replace(
                settings.decoding, temperature=temperature, seed=settings.seed + 1000 * number
            )
        )

    def prepared(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Return a conversation with the scaffold, and the system text where it brings none."""
        scaffolded = scaffolds.scaffolded(self.settings, messages)
        brings_its_own = bool(messages) and messages[0]["role"] == "system"
        return scaffolded if brings_its_own else self._with_system(scaffolded)

    def shown(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Return what the model is shown of a conversation: scaffold, system, and what fits."""
        scaffolded = scaffolds.scaffolded(self.settings, messages)
        shots = 2 * scaffolds.shown_examples(self.settings)
        return self.working.window(self._with_system(scaffolded), shots)

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        parts = [self.settings.system] if self.settings.system else []
        if self.settings.recall_facts and messages:
            facts = self.memory.semantic.recall(messages[-1]["content"], self.settings.recall_facts)
            parts += [
                f"{fact.about}: {fact.content}" if fact.about else fact.content for fact in facts
            ]
        return [{"role": "system", "content": "\n".join(parts)}, *messages] if parts else messages

    def _count_tokens(self, message: Message) -> int:
        return (
            len(encode_content(self.tokenizer, message["role"], message["content"]))
            + self._turn_tokens
        )

    def with_settings(self, **changes: Any) -> "Agent":
        """Return the same agent with some settings changed."""
        return Agent(
            self.model,
            self.tokenizer,
            self.toolbox,
            self.memory,
            replace(self.settings, **changes),
            session=self.session,
        )


def _light_tokenizer(path: Path) -> LightTokenizer | None:
    """Return a checkpoint's light tokenizer, its chat template compiled; None as `open_light`."""
    tokenizer = open_light(checkpoint.readable(path))
    if tokenizer is not None:
        chat_format(tokenizer)  # type: ignore[arg-type]
    return tokenizer


def _chat_settings(agent: Mapping[str, Any], context_tokens: int | None) -> AgentSettings:
    """Return the settings in a manifest; where it does not bound an answer, a person gets more."""
    settings = AgentSettings.from_manifest(agent)
    if "max_new_tokens" not in (agent.get("decoder") or {}):
        settings.max_new_tokens = min(CHAT_TOKENS, (context_tokens or 2 * CHAT_TOKENS) // 2)
    return settings
