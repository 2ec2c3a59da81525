"""Traces of the user's own tools: questions from their schemas, calls that really ran, answers.

A question is drawn from a tool's schema (`data.schemas`): its names and descriptions split into
words, and values of its types. The call then runs here, and the answer says its result. A tool
without code, and a destructive one that is not allowed, gives traces that end with the call. A call
that fails gives no trace, unless errors are to be learned too. Questions that no tool answers get a
plain answer. Some traces list the tools on the system turn, among others as distractors; without a
listing the tools are in the weights alone.

A tool that answers nearly every drawn question alike ({"zipcode": "00000"} for all cities that it
does not know) would teach that answer by heart. Half of such traces show another result of the same
form to learn from, so that results are read; none of these is measured.

A trace has also "calls", the right calls; "results", what they returned (None where
nothing ran); and "prompt_turns", how many messages stand before the turn that is measured.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agent_forge.agent import Call, Tool, Toolbox, ToolContext, format_call, format_response
from agent_forge.agent import load_tools as load
from agent_forge.core.errors import PhaseError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data.documents import split_of
from agent_forge.data.schemas import (
    asking,
    canonical,
    draw,
    listed,
    requests,
    values,
    wording,
    words,
)
from agent_forge.data.schemas.values import SpokenValue, pick
from agent_forge.data.synthetic import schemas
from agent_forge.evaluate import calling
from agent_forge.evaluate.tasks.own_tools import LEAVES, LONGEST_ANSWER, cut, leaves, says

if TYPE_CHECKING:
    from agent_forge.agent import Turn

Trace = dict[str, Any]
_log = logging.getLogger("agent_forge")
KIND = "own"
MISSES = 300  # draws without a new question after which a tool is taken to have no more
PATIENCE = 60  # failing calls in a row after which a tool is taken to fail always
JOINTS = ("Also, ", "And ", "Then ", "")
CONSTANT_SHARE = 0.5  # a result that more of a tool's traces have is taken to be always the same
REDRAWN_SHARE = 0.5  # traces that show another result, among those with such a one
DISTRACTORS = 3  # most other tools in a listing
SHARES = {"single": 0.65, "parallel": 0.25, "missing": 0.1}  # kinds of question that need a tool
OPTIONAL_SHARE = 0.35
UNIT_SHARE = 0.35  # numbers with a unit behind them
WHOLE_SHARE = 0.6  # questions in a whole form, where the tool has one
EVERYDAY_SHARE = 0.6  # numbers of few digits, among those without bounds
GROUPED_SHARE = 0.1  # whole numbers of four digits and more that are written with commas
# Of questions that no tool answers: small talk and knowledge, and other requests; the rest asks for
# random tools.
GENERAL_SHARE, REQUEST_SHARE = 0.3, 0.5


class TraceSort(Protocol):
    """Which traces are made: shares of those without a tool and with a listing; whether failing
    calls are learned, and whether traces whose call does not help are dropped.
    """

    none_share: float
    listed_share: float
    errors: bool
    filter: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A tool with the words of its questions."""

    tool: Tool
    actions: tuple[str, ...]
    phrases: Mapping[str, tuple[str, ...]]
    whole: asking.WholeForms


@dataclass(frozen=True, slots=True)
class _TraceDrawing:
    """What one set of traces is drawn with, and the tools that run its calls."""

    generator: np.random.Generator
    box: Toolbox
    config: TraceSort
    split: str

    def question(self, one: Asked, said: Mapping[str, SpokenValue]) -> str:
        """Return a question for a tool with these values, in the words of the split."""
        held = self.split != "train"
        if self.generator.random() < WHOLE_SHARE:
            action = pick(self.generator, [text for text in one.actions if "{" not in text])
            text = one.whole.question(self.generator, said, one.phrases, action, held_out=held)
            if text is not None:
                return text
        return wording.question(self.generator, one.actions, one.phrases, said, held_out=held)

    def dressed(self, question: str, said: Mapping[str, SpokenValue]) -> str:
        """Return a question with what people write around it."""
        value_texts = [value.text for value in said.values()]
        return requests.dressed(
            self.generator, question, value_texts, held_out=self.split != "train"
        )


@lru_cache(maxsize=8)
def load_tools(sources: tuple[str, ...]) -> tuple[Tool, ...]:
    """Return the tools of sources, loaded once per process, so that a server starts once."""
    return tuple(load(list(sources)))


def toolbox(tools: Sequence[Tool], allow: Sequence[str]) -> Toolbox:
    """Return a toolbox that runs the tools; a destructive one only where it is allowed by name."""
    return Toolbox(list(tools), ToolContext(), allow=tuple(allow), confirm=False)


def make(
    tools: Sequence[Tool],
    config: TraceSort,
    allow: Sequence[str],
    count: int,
    split: str,
    seed: int,
    *,
    refused: Iterable[str] = (),
    small_talk: bool = True,
) -> list[Trace]:
    """Return `count` traces of a split; held-out ones are distinct and phrased in other words.

    Where the tools have fewer distinct questions there are fewer, and a warning says so.
    refused: canonical questions that are measured elsewhere and so must not be trained.
    small_talk: whether small talk and knowledge are among the questions that no tool answers. Raises
    PhaseError for a tool that fails on every question.
    """
    generator = numpy_generator(seed, "bake", "own", split)
    drawing = _TraceDrawing(generator, toolbox(tools, allow), config, split)
    verbs = [words.split_words(tool.name)[0] for tool in tools]
    makers = [asked_of(tool, verbs) for tool in tools]
    refused = set(refused)
    seen, failures = set(refused), dict.fromkeys((tool.name for tool in tools), 0)
    traces: list[Trace] = []
    turn = misses = 0
    is_plain = generator.random() < config.none_share
    while len(traces) < count and misses < MISSES * len(makers):
        if is_plain:
            trace: Trace | None = _without_tool(generator, tools, split, small_talk=small_talk)
        else:
            # A tool without a new question left gives its turn to the next one.
            one = makers[(turn + misses // MISSES) % len(makers)]
            trace = _with_tool(drawing, one, makers)
            _count_failure(failures, one.tool.name, trace)
        if trace is None:
            continue
        key = canonical.question_key(trace["messages"])
        # Training may meet a question again: there are few ways to greet.
        if key in seen and (split != "train" or key in refused):
            misses += 1
            # Of a kind that is used up nothing new comes.
            is_plain = generator.random() < config.none_share
            continue
        turn, misses = turn + 1, 0
        # Drawn anew only now, or calls that fail would leave more than a share without a tool.
        is_plain = generator.random() < config.none_share
        if split != "train":
            seen.add(key)
        traces.append(_listed(generator, trace, tools, config.listed_share, split))
    if len(traces) < count:
        _log.warning(
            "the tools have %d distinct questions (%s), not %d; more values in their schemas give "
            "more (enum, examples)",
            len(traces),
            split,
            count,
        )
    return _with_other_results(generator, traces) if split == "train" else traces


def _with_other_results(generator: np.random.Generator, traces: list[Trace]) -> list[Trace]:
    """Return the traces; where a tool answers nearly always the same, some show other results."""
    counts: dict[str, Counter[str]] = {}
    for trace in traces:
        for call, result in zip(trace["calls"], trace["results"], strict=True):
            if result is not None:
                counts.setdefault(call["name"], Counter())[result] += 1
    constant = {
        (name, result)
        for name, results in counts.items()
        for result, count in results.most_common(1)
        if count > CONSTANT_SHARE * results.total()
    }
    changed = []
    for trace in traces:
        pairs = [
            (call["name"], result)
            for call, result in zip(trace["calls"], trace["results"], strict=True)
        ]
        is_same = len(pairs) == 1 and pairs[0] in constant and not trace["failed"]
        if is_same and generator.random() < REDRAWN_SHARE:
            trace = _showing(trace, values.like(generator, trace["results"][0]))
        changed.append(trace)
    return changed


def _showing(trace: Trace, result: str) -> Trace:
    """Return a trace of one call that shows another result."""
    *before, _, _ = trace["messages"]
    shown = {"role": "tool", "content": format_response(result)}
    answer = say(result)
    return {
        **trace, "messages": [*before, shown, _assistant(answer)], "answer": answer,
        "results": [result],
    }  # fmt: skip


def _count_failure(failures: dict[str, int], name: str, trace: Trace | None) -> None:
    failures[name] = 0 if trace is not None else failures[name] + 1
    if failures[name] >= PATIENCE:
        raise PhaseError(
            f"tool '{name}' failed on {PATIENCE} questions in a row, so nothing can be learned of "
            "it; give its arguments an enum, examples or bounds in their schema, or learn its "
            "errors too (traces.own.errors=true)"
        )


def asked_of(tool: Tool, verbs: Sequence[str]) -> Asked:
    """Return a tool with its words; verbs: the first word of every tool's name."""
    declaration = {
        "name": tool.name, "description": tool.description, "parameters": tool.parameters,
    }  # fmt: skip
    compact = wording.compact_actions(declaration)
    # A verb alone names the tool only where no other tool has the same verb.
    own_verb = compact and verbs.count(compact[0].partition(" ")[0]) <= 1
    actions = (*wording.actions_of(declaration), *(2 * compact if own_verb else ()))
    return Asked(tool, actions, wording.phrases_of(declaration), asking.whole_forms(declaration))


def _with_tool(drawing: _TraceDrawing, one: Asked, others: Sequence[Asked]) -> Trace | None:
    """Return a trace of a tool's call, or None where it fails."""
    generator = drawing.generator
    kind = list(SHARES)[int(generator.choice(len(SHARES), p=list(SHARES.values())))]
    said = draw_arguments(generator, one.tool)
    if kind == "missing" and one.tool.parameters.get("required"):
        return _missing(drawing, one, said)
    question = drawing.question(one, said)
    calls = [Call(one.tool.name, wording.arguments_of(said))]
    if kind == "parallel":
        other = pick(generator, others)
        more = draw_arguments(generator, other.tool)
        second = drawing.question(other, more)
        if not question.endswith((".", "?", "!")):
            question += "."
        joint = pick(generator, JOINTS)
        value_texts = [value.text for value in more.values()]
        question += f" {joint}{requests.lower_start(second, value_texts) if joint else second}"
        calls.append(Call(other.tool.name, wording.arguments_of(more)))
    return _ran(drawing, [_user(drawing.dressed(question, said))], calls)


def _missing(drawing: _TraceDrawing, one: Asked, said: dict[str, SpokenValue]) -> Trace | None:
    """Return a question that lacks an argument, the question back, the value, and the call."""
    generator = drawing.generator
    name = pick(generator, list(one.tool.parameters["required"]))
    question = drawing.question(one, {k: v for k, v in said.items() if k != name})
    back = wording.clarify(one.phrases[name][0])
    value = pick(generator, ("{}", "{}.", "It is {}.")).format(said[name].text)
    turns = [_user(drawing.dressed(question, said)), _assistant(back), _user(value)]
    return _ran(drawing, turns, [Call(one.tool.name, wording.arguments_of(said))])


def _ran(
    drawing: _TraceDrawing, turns: list[dict[str, str]], calls: Sequence[Call]
) -> Trace | None:
    """Run the calls and return the whole trace; None where one fails and errors are not learned."""
    box, config, prompt = drawing.box, drawing.config, len(turns)
    by_name = {tool.name: tool for tool in box.enabled()}
    runnable = all(_runs(by_name[call.name], box.allow) for call in calls)
    messages = [*turns, _assistant("\n".join(map(format_call, calls)))]
    results: list[str | None] = [None] * len(calls)
    answer = ""
    failed = False
    if runnable:
        ran = [box.run(call) for call in calls]
        failed = any(one.error for one in ran)
        if failed and not config.errors:
            return None
        results = [one.text for one in ran]
        answer = " ".join(say(one.text, error=one.error) for one in ran)
        messages += [{"role": "tool", "content": format_response(one.text)} for one in ran]
        messages.append(_assistant(answer))
    single = prompt == 1 and len(calls) == 1 and runnable
    return {
        "kind": KIND, "messages": messages, "answer": answer, "results": results,
        "calls": [{"name": call.name, "arguments": call.arguments} for call in calls],
        "filtered": single and config.filter, "stages": [turns[-1]["content"]],
        "prompt_turns": prompt, "failed": failed,
    }  # fmt: skip


def _runs(tool: Tool, allow: Iterable[str]) -> bool:
    return tool.run is not None and (not tool.destructive or tool.name in allow)


def _without_tool(
    generator: np.random.Generator, tools: Sequence[Tool], split: str, *, small_talk: bool
) -> Trace:
    """Return a question that none of the tools answers, and a plain answer."""
    sort = generator.random()
    if not small_talk:
        sort = GENERAL_SHARE + (1 - GENERAL_SHARE) * sort
    request = None
    if sort < GENERAL_SHARE:
        inside = [one for one in schemas.GENERAL if split_of(f"own/general/{one[0]}") == split]
        request = pick(generator, inside or schemas.GENERAL)
    elif sort < GENERAL_SHARE + REQUEST_SHARE:
        request = requests.draw(generator, split, _words_of(tools))
    question, answer = request or _of_random_tool(generator, tools, split)
    if sort >= GENERAL_SHARE:
        question = requests.dressed(generator, question, (), held_out=split != "train")
    return {
        "kind": KIND, "messages": [_user(question), _assistant(answer)], "answer": answer,
        "calls": [], "results": [], "filtered": False, "stages": [question], "prompt_turns": 1,
        "failed": False,
    }  # fmt: skip


def _words_of(tools: Sequence[Tool]) -> set[str]:
    """Return the words in which tools describe themselves."""
    properties = [
        text
        for tool in tools
        for name, schema in tool.parameters.get("properties", {}).items()
        for text in (name, str(schema.get("description", "")))
    ]
    return requests.words_of(*(f"{tool.name} {tool.description}" for tool in tools), *properties)


def _of_random_tool(
    generator: np.random.Generator, tools: Sequence[Tool], split: str
) -> tuple[str, str]:
    """Return a question for a random tool that is not there, and a plain answer."""
    names = {canonical.name_key(tool.name) for tool in tools}
    other = draw.tool(generator, split)
    while canonical.name_key(other.declaration["name"]) in names:
        other = draw.tool(generator, split)
    said = schemas.arguments(generator, other)
    held = split != "train"
    question = wording.question(generator, other.actions, other.phrases, said, held_out=held)
    return question, schemas.CANNOT.format(action=other.actions[0])


def _listed(
    generator: np.random.Generator, trace: Trace, tools: Sequence[Tool], share: float, split: str
) -> Trace:
    """Return the trace, with the tools and some distractors on a system turn in a share of them."""
    if generator.random() >= share:
        return trace
    names = {tool.name for tool in tools}
    count = int(generator.integers(DISTRACTORS + 1))
    others = [
        one.declaration
        for one in schemas.offered(generator, split, count)
        if one.declaration["name"] not in names
    ]
    every = [*(tool.schema() for tool in tools), *map(listed, others)]
    order = generator.permutation(len(every))
    return {
        **trace, "messages": [system_turn([every[i] for i in order]), *trace["messages"]],
        "prompt_turns": trace["prompt_turns"] + 1, "filtered": False,
    }  # fmt: skip


def system_turn(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the turn that lists tools."""
    return {"role": "system", "content": "", "tools": list(tools)}


def draw_arguments(generator: np.random.Generator, tool: Tool) -> dict[str, SpokenValue]:
    """Return values for the required arguments of a tool, and for some of the optional ones.

    A schema's examples are taken half of the time, and names that its description quotes or lists
    always.
    """
    required = set(tool.parameters.get("required", ()))
    said: dict[str, SpokenValue] = {}
    # Where an argument holds the unit, a unit behind the number would be that argument's.
    has_unit = any(
        values.kind_of(name, schema) in ("unit", "currency", "enum")
        or wording.named_options(str(schema.get("description", "")))
        for name, schema in tool.parameters.get("properties", {}).items()
    )
    for name, schema in tool.parameters.get("properties", {}).items():
        if name not in required and generator.random() >= OPTIONAL_SHARE:
            continue
        options = wording.named_options(str(schema.get("description", "")))
        examples = [one for one in schema.get("examples", ()) if isinstance(one, str | int | float)]
        kind = values.kind_of(name, schema)
        if options and kind not in ("enum", "integer", "number", "boolean"):
            value: Any = pick(generator, options)
            said[name] = SpokenValue(value, str(value))
        elif examples and generator.random() < 0.5:
            value = pick(generator, examples)
            said[name] = SpokenValue(value, value if isinstance(value, str) else json.dumps(value))
        else:
            said[name] = _drawn(generator, kind, schema)
        if kind in ("integer", "number") and not has_unit:
            said[name] = _with_unit(generator, name, said[name], str(schema.get("description", "")))
    return said


def _drawn(generator: np.random.Generator, kind: str, schema: Mapping[str, Any]) -> SpokenValue:
    """Return a value of a kind; most numbers without bounds are as short as those of every day."""
    unbounded = "minimum" not in schema and "maximum" not in schema
    if kind not in ("integer", "number") or not unbounded:
        return values.draw(generator, kind, schema)
    if generator.random() >= EVERYDAY_SHARE:
        one = values.draw(generator, kind, schema)
        if isinstance(one.value, int) and one.value > 999 and generator.random() < GROUPED_SHARE:
            return SpokenValue(one.value, f"{one.value:,}")
        return one
    whole = int(generator.integers(1, pick(generator, (10, 100, 1000))))
    places = int(generator.integers(3)) if kind == "number" else 0
    if not places:
        return SpokenValue(whole, str(whole))
    tail = int(generator.integers(10 ** (places - 1), 10**places))
    text = f"{whole}.{tail}".rstrip("0")
    return SpokenValue(float(text), text)


def _with_unit(
    generator: np.random.Generator, name: str, said: SpokenValue, description: str = ""
) -> SpokenValue:
    """Return a number with a unit behind it, as people write it, in a share of the cases: the unit
    that the description names, else one that fits the argument's name.
    """
    units = [
        unit for word in words.split_words(description) for unit in words.SPOKEN_UNITS.get(word, ())
    ] or [unit for word in words.split_words(name) for unit in words.UNITS.get(word, ())]
    if not units or generator.random() >= UNIT_SHARE:
        return said
    unit = pick(generator, units)
    return SpokenValue(said.value, f"{said.text}{unit}" if unit == "%" else f"{said.text} {unit}")


def is_right(trace: Trace, turn: "Turn", box: Toolbox) -> bool:
    """Return whether a turn answers a trace.

    A question that needs a tool is answered when the calls that ran are the expected ones (the same
    tools, the same results) and the answer says the results. Where nothing can run, the calls
    themselves are compared. A question that no tool answers is answered when nothing was called.
    """
    expected = trace["calls"]
    if not expected:
        return turn.finished and not turn.results
    if None in trace["results"]:
        calls = [result.call for result in turn.results if isinstance(result.call, Call)]
        parameters = {tool.name: tool.parameters for tool in box.enabled()}
        return calling.calls_right(
            calls[: len(expected)], [calling.expected_call(one) for one in expected], parameters
        )
    ran = [
        (result.call.name, result.text)
        for result in turn.results
        if not result.error and isinstance(result.call, Call)
    ]
    names = [one["name"] for one in expected]
    if Counter(ran) != Counter(zip(names, trace["results"], strict=True)):
        return False
    return turn.finished and says(turn.text, trace["results"])


def say(result: str, *, error: bool = False) -> str:
    """Return the sentence that says a result."""
    if error:
        return f"That failed: {result.removeprefix('error: ')[:LONGEST_ANSWER]}"
    text = _readable(result)
    return f"The result is {text}" if text.endswith((".", "!", "?")) else f"The result is {text}."


def _readable(result: str) -> str:
    try:
        value = json.loads(result)
    except ValueError:
        return cut(result)
    if isinstance(value, Mapping | list):
        return "; ".join(f"{name} {leaf}".strip() for name, leaf in list(leaves(value))[:LEAVES])
    return cut(result)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
