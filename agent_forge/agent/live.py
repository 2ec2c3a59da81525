"""One reply as it comes into being: generate, run the calls, show the model their results, go on.

A `LiveTurn` is iterated for its events (events.py), token by token, on either engine. Whoever reads
them may stop it between two tokens; what was said until then stays. The terminal and the API read
it; `loop.answer_turns` does the same for many conversations at once, by the steps of turn.py.
"""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent_forge.agent.calls import THINK_OPEN, BrokenCall, Call
from agent_forge.agent.events import AgentEvent, Called, Done, Finish, Said, Thought
from agent_forge.agent.grammar import NONE, kind_of_round, token_mask
from agent_forge.agent.text_stream import Detokeniser, SpeechSplitter, StopStrings
from agent_forge.agent.toolbox import Toolbox
from agent_forge.agent.turn import Confirm, Turn, add_message, run_calls
from agent_forge.data.chat import call_dialect, call_start, encode_prompt, kept_reply, stop_ids
from agent_forge.models.sampling import Decoding, Gate
from agent_forge.runtime import talker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Tokens at the end of a prompt in which a tag that opens the thoughts fits.
TAG_TOKENS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """How one reply is generated.

    decoding: of the first message; each further one has the next seed, and the tokenizer says which
    tokens end a message. max_rounds: messages, those with calls and the final answer. stops: texts
    that end the reply. runs_calls: False leaves calls to the caller.
    grammar: as in grammar.py. call_gate: least probability of a call's first token with which the
    first message may begin as a call; 0: any.
    several_calls: False drops what follows the first call of a message.
    """

    decoding: Decoding
    max_rounds: int = 1
    stops: Sequence[str] = ()
    runs_calls: bool = True
    grammar: str = NONE
    several_calls: bool = True
    call_gate: float = 0.0

    def decoding_of(
        self, tokenizer: "PreTrainedTokenizerFast", number: int, ends: Collection[int]
    ) -> Decoding:
        """Return how message `number` is decoded, which ends with one of the tokens `ends`."""
        gated = self.call_gate > 0 and number == 0
        gate = Gate(call_start(tokenizer), self.call_gate) if gated else None
        seed = self.decoding.seed + number
        return replace(self.decoding, stop_ids=ends, seed=seed, gate=gate)


class LiveTurn:
    """One reply; iterate it once. `turn` is what there is of it so far.

    confirm: asks a person whether a destructive call may run; without it none does.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerFast",
        conversation: Sequence[Any],
        toolbox: Toolbox,
        limits: TurnLimits,
        confirm: Confirm | None = None,
    ) -> None:
        self.confirm = confirm
        self.model, self.tokenizer, self.toolbox = model, tokenizer, toolbox
        self.conversation, self.limits = list(conversation), limits
        self.turn = Turn()
        self.said = ""  # the text of the message that is being written
        self._stopped = False

    def stop(self) -> None:
        """End the reply before its next token or call; any thread may ask for it."""
        self._stopped = True

    def __iter__(self) -> Iterator[AgentEvent]:
        """Yield the events of the reply; the last is Done."""
        ends = stop_ids(self.tokenizer, self.model)
        for number in range(self.limits.max_rounds):
            calls = yield from self._message(number, ends)
            if self._stopped:
                yield self.interrupted()
                return
            if calls and not self.limits.runs_calls:
                yield from (Called(i, call) for i, call in enumerate(calls))
                yield self._done("tool_calls")
                return
            for event in run_calls(self.turn, calls, self.toolbox, self.confirm):
                yield event
                if self._stopped:
                    yield self.interrupted()
                    return
            if not calls:
                break
        yield self._done(self.turn.finish)

    def interrupted(self) -> Done:
        """Return the end of a reply that was stopped; what was said and run until then stays.

        A call without its result is taken back, so that the conversation can go on.
        """
        messages = self.turn.messages
        if self.said:
            messages.append({"role": "assistant", "content": self.said})
            self.turn.text = self.said
        elif messages and messages[-1]["role"] == "assistant":
            messages.pop()
        self.said = ""
        return self._done("cancelled")

    def _message(
        self, number: int, ends: Collection[int]
    ) -> Generator[AgentEvent, None, list[Call | BrokenCall]]:
        """Generate one message; yield what it says; return its calls."""
        limits, usage, decoding = self.limits, self.turn.usage, self.limits.decoding
        prompt = encode_prompt(self.tokenizer, [*self.conversation, *self.turn.messages])
        usage.prompt_tokens += len(prompt)
        tokens = talker.stream(
            self.model,
            prompt,
            limits.decoding_of(self.tokenizer, number, ends),
            token_mask(
                self.tokenizer,
                self.toolbox.parameters() or self._parameters(),
                kind_of_round(limits.grammar, number),
                ends,
                decoding.max_new_tokens,
            ),
        )
        words, stops = Detokeniser(self.tokenizer), StopStrings(limits.stops)
        speech = SpeechSplitter(
            thinking=self._is_thinking(prompt), dialect=call_dialect(self.tokenizer)
        )
        count = 0
        for token in tokens:
            count += 1
            usage.completion_tokens += 1
            usage.reasoning_tokens += speech.thinking
            yield from self._silent_thoughts()
            yield from self._events(speech.push(stops.push(words.push(token))))
            if self._stopped or stops.matched:
                break
        tokens.close()
        yield from self._silent_thoughts()
        if self._stopped:
            return []
        yield from self._events(speech.push(stops.push(words.end()) + stops.end()))
        yield from self._events(speech.end())
        self.turn.cut = count >= decoding.max_new_tokens and not stops.matched
        text = kept_reply(
            self.tokenizer,
            speech.text.strip(),
            cut=self.turn.cut,
            schemas=self._parameters(),
        )
        calls = add_message(self.turn, text)
        self.said = ""
        return calls if limits.several_calls else calls[:1]

    def _silent_thoughts(self) -> Iterator[AgentEvent]:
        """Yield what a model that thinks between tokens thought before the last one, where it keeps
        that.
        """
        model: Any = self.model
        if getattr(model, "keeps_thoughts", False):
            for thought in model.kept_thoughts():
                yield Thought(f"[{self.tokenizer.decode(thought)}]")

    def _events(self, pieces: Sequence[tuple[str, str]]) -> Iterator[AgentEvent]:
        for kind, text in pieces:
            if kind == "text":
                self.said += text
                yield Said(text)
            else:
                yield Thought(text)

    def _parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the schemas of the tools by name: the caller's own stand in the conversation."""
        offered = self.conversation[0].get("tools") if self.conversation else None
        if not offered:
            return self.toolbox.parameters()
        functions = [tool["function"] for tool in offered]
        return {function["name"]: function.get("parameters") or {} for function in functions}

    def _is_thinking(self, prompt: Sequence[int]) -> bool:
        """Return whether the template has opened the thoughts at the end of the prompt."""
        last = str(self.tokenizer.decode(list(prompt[-TAG_TOKENS:])))
        return last.rstrip().endswith(THINK_OPEN)

    def _done(self, finish: Finish) -> Done:
        return Done(finish, self.turn.text, self.turn.usage, list(self.turn.messages))
