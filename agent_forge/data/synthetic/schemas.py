"""Calls of tools that were never seen before: random schemas, questions, and the right calls.

The tools of a row stand on its system turn, as chat templates take them. Kinds: one tool and one
call (single), several tools offered (multiple), several calls at once (parallel), a further turn
that changes the call (follow-up), a required argument that the question leaves out, so that the
answer is a question back (missing), and questions that no offered tool answers (none). Tools of two
splits share no object, no name, no description and no structure of arguments (`schemas.draw`).

A row has also "calls", the calls of the turn that is scored ([] where none is right), and
"prompt_turns", how many messages stand before that turn.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agent_forge.core.seeds import numpy_generator
from agent_forge.data.calls import write_call, write_response
from agent_forge.data.documents import split_of
from agent_forge.data.schemas import canonical, draw, listed, values, wording
from agent_forge.data.schemas.draw import DrawnTool
from agent_forge.data.schemas.values import SpokenValue, pick

SHARES = {
    "single": 0.27, "multiple": 0.23, "parallel": 0.12, "follow-up": 0.08, "missing": 0.08,
    "none": 0.22,
}  # fmt: skip
ANSWERED_SHARE = 0.5  # rows that go on to the tool's result and an answer
OPTIONAL_SHARE = 0.5  # how often an optional argument is given
GENERAL_SHARE = 0.3  # questions of kind "none" that no tool at all could answer
CANNOT = "I have no tool that can {action}."
# What needs no tool, and a plain answer.
GENERAL = (
    ("Hello!", "Hello! What can I do for you?"),
    ("Good morning.", "Good morning! How can I help?"),
    ("Thank you very much.", "You are welcome."),
    ("Who are you?", "I am an assistant that can call tools."),
    ("How are you today?", "I am well, thank you. How can I help?"),
    ("What colour is the sky on a clear day?", "The sky is blue."),
    ("How many days are in a week?", "A week has seven days."),
    ("How many months are in a year?", "A year has twelve months."),
    ("What do bees make?", "Bees make honey."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("Which planet do we live on?", "We live on Earth."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is the opposite of early?", "The opposite of early is late."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("Where does the sun rise?", "The sun rises in the east."),
    ("What do cows drink?", "Cows drink water."),
    ("Name a primary colour.", "Red is a primary colour."),
    ("Name a season.", "Spring is a season."),
    ("Which month follows May?", "June follows May."),
    ("Which day follows Monday?", "Tuesday follows Monday."),
    ("What do you call a baby cat?", "A baby cat is called a kitten."),
    ("What do you call a baby dog?", "A baby dog is called a puppy."),
    ("What is the largest ocean?", "The Pacific is the largest ocean."),
    ("What is honey made from?", "Honey is made from nectar."),
    ("Is ice cold?", "Yes, ice is cold."),
    ("Can fish swim?", "Yes, fish can swim."),
    ("Please say something nice.", "You ask good questions."),
    ("Goodbye.", "Goodbye! Come back any time."),
    ("That is all for today.", "All right. Have a nice day."),
)
RESULTS = ("reference", "status", "total", "value")
_log = logging.getLogger("agent_forge")


def rows(count: int, split: str, seed: int) -> list[dict[str, Any]]:
    """Return `count` rows of `split`, its kinds in their shares; held-out rows are distinct."""
    generator = numpy_generator(seed, "synthetic", "schemas", split)
    kinds, shares = list(SHARES), np.array(list(SHARES.values()))
    chosen: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(chosen) < count:
        kind = kinds[int(generator.choice(len(kinds), p=shares / shares.sum()))]
        made_row = _MAKERS[kind](generator, split)
        row = _row(kind, *made_row)
        if split != "train" and row["canonical"] in seen:
            continue
        seen.add(row["canonical"])
        chosen.append(row)
    return chosen


def arguments(generator: np.random.Generator, tool: DrawnTool) -> dict[str, SpokenValue]:
    """Return values for the required arguments, and for some of the optional ones."""
    properties = tool.declaration["parameters"]["properties"]
    return {
        name: values.draw(generator, tool.kinds[name], schema)
        for name, schema in properties.items()
        if name in tool.required or generator.random() < OPTIONAL_SHARE
    }


def call_of(tool: DrawnTool, said: Mapping[str, SpokenValue]) -> dict[str, Any]:
    """Return the call as {"name", "arguments"}."""
    return {"name": tool.declaration["name"], "arguments": wording.arguments_of(said)}


def said_calls(calls: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the assistant's turn that makes these calls."""
    text = "\n".join(write_call(call["name"], call["arguments"]) for call in calls)
    return {"role": "assistant", "content": text}


Made = tuple[list[DrawnTool], list[dict[str, str]], list[dict[str, Any]], int]


def _row(
    kind: str,
    tools: Sequence[DrawnTool],
    turns: list[dict[str, str]],
    calls: list[dict[str, Any]],
    prompt: int,
) -> dict[str, Any]:
    """Return a row: tools offered, turns after the system turn, calls, and turns of the prompt."""
    system = {"role": "system", "content": "", "tools": [listed(one.declaration) for one in tools]}
    identity = f"{canonical.question_key(turns)} {json.dumps(calls, sort_keys=True)}"
    noun = tools[0].noun
    return {
        "messages": [system, *turns], "answer": turns[-1]["content"], "calls": calls,
        "prompt_turns": prompt + 1, "difficulty": min(max(len(calls), 1) + len(tools) - 1, 5),
        "canonical": f"schemas/{identity}", "cluster": f"schemas/{noun}", "kind": kind,
    }  # fmt: skip


def _single(generator: np.random.Generator, split: str) -> Made:
    return _one_call(generator, split, 1)


def _multiple(generator: np.random.Generator, split: str) -> Made:
    return _one_call(generator, split, int(generator.integers(2, 5)))


def _one_call(generator: np.random.Generator, split: str, count: int) -> Made:
    tools = offered(generator, split, count)
    said = arguments(generator, tools[0])
    question = _ask(generator, tools[0], said, split)
    calls = [call_of(tools[0], said)]
    turns = [_user(question), said_calls(calls)]
    if generator.random() < ANSWERED_SHARE:
        turns += answered(generator)
    return _shuffled(generator, tools), turns, calls, 1


def _parallel(generator: np.random.Generator, split: str) -> Made:
    """Two or three calls: of several tools, or of one tool with one argument changed."""
    count = int(generator.integers(2, 4))
    if generator.random() < 0.5:
        tools = offered(generator, split, count)
        said = [arguments(generator, tool) for tool in tools]
        questions = [_ask(generator, *pair, split) for pair in zip(tools, said, strict=True)]
        joint = pick(generator, (" Also, ", " Then ", " And "))
        text = questions[0] + "".join(f"{joint}{wording.lower(one)}" for one in questions[1:])
        calls = [call_of(*pair) for pair in zip(tools, said, strict=True)]
        return _shuffled(generator, tools), [_user(text), said_calls(calls)], calls, 1
    (tool,) = offered(generator, split, 1)
    first = arguments(generator, tool)
    text, calls = _ask(generator, tool, first, split), [call_of(tool, first)]
    for _ in range(count - 1):
        name, other = _changed(generator, tool, first)
        phrase = pick(generator, tool.phrases[name])
        text += f" Do the same with {phrase} {other[name].text}."
        calls.append(call_of(tool, other))
    return [tool], [_user(text), said_calls(calls)], calls, 1


def _follow_up(generator: np.random.Generator, split: str) -> Made:
    tools = offered(generator, split, int(generator.integers(1, 3)))
    first = arguments(generator, tools[0])
    calls = [call_of(tools[0], first)]
    name, other = _changed(generator, tools[0], first)
    phrase = pick(generator, tools[0].phrases[name])
    again = pick(generator, ("Now with {} {}.", "And with {} {}?", "Once more, but with {} {}."))
    turns = [_user(_ask(generator, tools[0], first, split)), said_calls(calls)]
    turns += [*answered(generator), _user(again.format(phrase, other[name].text))]
    calls = [call_of(tools[0], other)]
    return _shuffled(generator, tools), [*turns, said_calls(calls)], calls, len(turns)


def _missing(generator: np.random.Generator, split: str) -> Made:
    """Return a question without a required argument, the question back, its answer and the call."""
    tools = offered(generator, split, int(generator.integers(1, 3)))
    tool = tools[0]
    said = arguments(generator, tool)
    name = pick(generator, tool.required)
    question = _ask(generator, tool, {k: one for k, one in said.items() if k != name}, split)
    back = {"role": "assistant", "content": wording.clarify(tool.phrases[name][0])}
    given_text = pick(generator, ("{}", "{}.", "It is {}.", "Take {}.")).format(said[name].text)
    turns = [_user(question), back, _user(given_text), said_calls([call_of(tool, said)])]
    return _shuffled(generator, tools), turns, [], 1


def _none(generator: np.random.Generator, split: str) -> Made:
    """Return a question that no offered tool answers, and a plain answer."""
    tools = offered(generator, split, int(generator.integers(1, 4)))
    if generator.random() < GENERAL_SHARE:
        inside = [one for one in GENERAL if split_of(f"schemas/general/{one[0]}") == split]
        question, answer = pick(generator, inside or GENERAL[:1])
        return tools, [_user(question), {"role": "assistant", "content": answer}], [], 1
    nouns = {one.noun for one in tools}
    while (other := draw.tool(generator, split)).noun in nouns:
        pass
    question = _ask(generator, other, arguments(generator, other), split)
    answer = CANNOT.format(action=other.actions[0])
    return tools, [_user(question), {"role": "assistant", "content": answer}], [], 1


def offered(generator: np.random.Generator, split: str, count: int) -> list[DrawnTool]:
    """Return tools of a split that deal with different things."""
    tools: list[DrawnTool] = []
    while len(tools) < count:
        tool = draw.tool(generator, split)
        names = {one.declaration["name"] for one in tools}
        if tool.noun not in {one.noun for one in tools} and tool.declaration["name"] not in names:
            tools.append(tool)
    return tools


def answered(generator: np.random.Generator) -> list[dict[str, str]]:
    """Return a tool's result and the answer that says it."""
    name = pick(generator, RESULTS)
    value = {
        "reference": lambda: values.identifier(generator).value,
        "status": lambda: pick(generator, ("done", "accepted", "pending", "confirmed")),
        "total": lambda: values.integer(generator).value,
        "value": lambda: values.number(generator).value,
    }[name]()
    result = json.dumps({name: value}) if generator.random() < 0.5 else str(value)
    return [
        {"role": "tool", "content": write_response(result)},
        {
            "role": "assistant",
            "content": f"The {name if result[0] == '{' else 'result'} is {value}.",
        },
    ]


def _ask(
    generator: np.random.Generator, tool: DrawnTool, said: Mapping[str, SpokenValue], split: str
) -> str:
    return wording.question(generator, tool.actions, tool.phrases, said, held_out=split != "train")


def _changed(
    generator: np.random.Generator, tool: DrawnTool, said: Mapping[str, SpokenValue]
) -> tuple[str, dict[str, SpokenValue]]:
    """Return the name of one argument, and the arguments with another value of it."""
    name = pick(generator, list(said))
    schema = tool.declaration["parameters"]["properties"][name]
    while (other := values.draw(generator, tool.kinds[name], schema)).value == said[name].value:
        pass
    return name, {**said, name: other}


def _shuffled(generator: np.random.Generator, tools: Sequence[DrawnTool]) -> list[DrawnTool]:
    return [tools[i] for i in generator.permutation(len(tools))]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


_MAKERS: dict[str, Callable[[np.random.Generator, str], Made]] = {
    "single": _single, "multiple": _multiple, "parallel": _parallel, "follow-up": _follow_up,
    "missing": _missing, "none": _none,
}  # fmt: skip
