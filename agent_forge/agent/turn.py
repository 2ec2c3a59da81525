"""One reply of an agent in the making: what each message of the model adds to it.

`add_message` is the step between two generations, for one conversation that is streamed (live.py)
and for many at once (loop.py): it takes a message of the model, runs its calls and adds their
results, as events.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent_forge.agent.calls import (
    BrokenCall,
    Call,
    format_response,
    scan_calls,
    text_without_calls,
)
from agent_forge.agent.events import Called, Finish, Ran, Usage
from agent_forge.agent.text_stream import hidden_ids
from agent_forge.agent.tool import Confirmation, Result
from agent_forge.agent.toolbox import Toolbox
from agent_forge.data.chat import kept_reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Confirm = Callable[[Confirmation], bool]


@dataclass(slots=True)
class Turn:
    """An agent's reply: its words, the tools it ran, and all new messages with calls and results.

    finished: False where the rounds ran out while the model still called tools.
    cut: True where the last message ended because its tokens ran out.
    """

    text: str = ""
    results: list[Result] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    finished: bool = False
    cut: bool = False
    usage: Usage = field(default_factory=Usage)

    @property
    def finish(self) -> Finish:
        """Return why the reply ended, unless somebody ended it."""
        if not self.finished:
            return "rounds"
        return "length" if self.cut else "stop"


def add_message(turn: Turn, text: str) -> list[Call | BrokenCall]:
    """Add a message of the model to its turn; return the calls in it."""
    turn.messages.append({"role": "assistant", "content": text})
    turn.text = text_without_calls(text)
    calls = scan_calls(text, cut=turn.cut)
    turn.finished = not calls
    return calls


def run_calls(
    turn: Turn,
    calls: Sequence[Call | BrokenCall],
    toolbox: Toolbox,
    confirm: Confirm | None = None,
) -> Iterator[Called | Ran]:
    """Run calls one after the other and add their results to the turn, each as two events.

    confirm: asks a person whether a destructive call may run; without it none does.
    """
    for call in calls:
        number = len(turn.results)
        yield Called(number, call)
        result = toolbox.run(call)
        question = result.confirmation
        if question is not None and confirm is not None and confirm(question):
            result = toolbox.run(call, confirmed=question.digest)
        turn.results.append(result)
        turn.messages.append({"role": "tool", "content": format_response(result.text)})
        yield Ran(number, result)


def decode_reply(
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[int],
    toolbox: Toolbox | None = None,
    *,
    cut: bool = False,
) -> str:
    """Return the text of a reply without control tokens, except the tags of calls and thoughts.

    Calls are written as Hermes writes them, whatever the model's own dialect is. toolbox: gives
    values their types where the dialect writes all of them as text. cut: the tokens ran out.
    """
    hidden = hidden_ids(tokenizer)
    text = str(tokenizer.decode([token for token in tokens if token not in hidden])).strip()
    schemas = None if toolbox is None else toolbox.parameters()
    return kept_reply(tokenizer, text, cut=cut, schemas=schemas)
