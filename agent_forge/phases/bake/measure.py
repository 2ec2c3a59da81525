"""Measure the agent on held-out traces of every kind, answered by generation with tools that really
run.

A calculator answer counts when the call carried the question's own expression and the reply is the
tool's result; that of a word problem when the calculator computed the number and the reply says it
(the task `word_problems`). A memory answer counts when it is the newest fact, recalled in a conversation of its
own. Any other answer counts when the tool ran and the reply is its result.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from agent_forge.agent import Call, Toolbox, Turn, TurnLimits, answer_turns
from agent_forge.agent.settings import BATCH_ROWS
from agent_forge.data.synthetic import tools
from agent_forge.evaluate.tasks import word_problems
from agent_forge.models.sampling import Decoding
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config, traces

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Z_95 = 1.959963984540054
ROUNDS = 3
# How an answer to a held-out question may end, the best first.
RIGHT, NO_CALL, NOT_NEEDED = "right", "no call", "call that was not needed"
UNREADABLE, OTHER_TOOL, OTHER_ARGUMENTS = "unreadable call", "another tool", "wrong arguments"
OTHER_ANSWER = "wrong answer"
NO_CALL_NEEDED = "called nothing where nothing is needed"
ENDINGS = (RIGHT, OTHER_ANSWER, OTHER_ARGUMENTS, OTHER_TOOL, UNREADABLE, NO_CALL, NOT_NEEDED)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of a share. Source: Wilson 1927."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    variance = share * (1 - share) / n + z2 / (4 * n * n)
    half = Z_95 * math.sqrt(variance) / (1 + z2 / n)
    # The ends are set exactly where all or none are right, for rounding must not leave [0, 1].
    return (0.0 if right == 0 else max(centre - half, 0.0)), (
        1.0 if right == n else min(centre + half, 1.0)
    )


def turn_limits(max_new_tokens: int) -> TurnLimits:
    """Return how measured turns are generated: greedily."""
    decoding = Decoding(max_new_tokens=max_new_tokens, batch_rows=BATCH_ROWS)
    return TurnLimits(max_rounds=ROUNDS, decoding=decoding)


def accuracy(
    model: "PreTrainedModel",
    phase: PhaseRun[Config],
    kind: str,
    heldout: Sequence[traces.Trace],
    split: str,
) -> tuple[dict[str, Any], list[str]]:
    """Return {"value", "low", "high", "n"} of a kind, and some conversations to look at."""
    make_box = traces.toolbox(kind, split, phase.config.data)
    boxes = [make_box() for _ in heldout]
    turns: list[Turn] = [Turn() for _ in heldout]
    limits = turn_limits(phase.config.measure.max_new_tokens)
    for stage in range(max(len(trace["stages"]) for trace in heldout)):
        active = [i for i, trace in enumerate(heldout) if stage < len(trace["stages"])]
        questions = [[{"role": "user", "content": heldout[i]["stages"][stage]}] for i in active]
        own_boxes = [boxes[i] for i in active]
        answers = answer_turns(model, phase.tokenizer, questions, own_boxes, limits)
        for i, turn in zip(active, answers, strict=True):
            turns[i] = turn
    right = [
        is_right(trace, turn, box) for trace, turn, box in zip(heldout, turns, boxes, strict=True)
    ]
    samples = [
        show(trace, turn, ok)
        for trace, turn, ok in list(zip(heldout, turns, right, strict=True))[:4]
    ]
    figure = _share(right)
    endings = Counter(map(ending, heldout, turns, right))
    figure["endings"] = {name: endings[name] for name in ENDINGS if endings[name]}
    if kind == "calculator":
        figure["kinds"] = _by_digits(heldout, right) | _without_call(heldout, turns)
    if kind == "word_problems":
        figure["kinds"] = _shares((trace["part"] for trace in heldout), right)
    return figure, samples


def _by_digits(heldout: Sequence[traces.Trace], right: Sequence[bool]) -> dict[str, Any]:
    """Return {"value", "low", "high", "n"} per number of digits of a sum's longer operand."""
    calls = list(map(wanted_call, heldout))
    lengths = [tools.longest_operand(call.arguments["expression"]) for call in calls if call]
    with_call = [ok for call, ok in zip(calls, right, strict=True) if call]
    return {
        f"{length} digit{'s' if length > 1 else ''}": share
        for length, share in _shares(lengths, with_call).items()
    }


def _without_call(heldout: Sequence[traces.Trace], turns: Sequence[Turn]) -> dict[str, Any]:
    """Return how many of the questions that need no call were answered without one."""
    silent = [
        not turn.results
        for trace, turn in zip(heldout, turns, strict=True)
        if wanted_call(trace) is None
    ]
    return {NO_CALL_NEEDED: _share(silent)} if silent else {}


def _shares(parts: Iterable[Any], right: Iterable[bool]) -> dict[Any, Any]:
    """Return {"value", "low", "high", "n"} of each part, in order; parts: one per answer."""
    by_part: dict[Any, list[bool]] = {}
    for part, ok in zip(parts, right, strict=True):
        by_part.setdefault(part, []).append(ok)
    return {part: _share(by_part[part]) for part in sorted(by_part)}


def _share(right: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(right), len(right))
    return {"value": sum(right) / len(right), "low": low, "high": high, "n": len(right)}


def is_right(trace: traces.Trace, turn: Turn, box: Toolbox) -> bool:
    """Return whether a turn answers a trace: the right reply, by a call that ran, or without a call
    where the question needs none.
    """
    if trace["kind"] == "word_problems":
        return word_problems.is_right(trace, turn)
    if not turn.finished or turn.text != trace["answer"]:
        return False
    expected = wanted_call(trace)
    calls = [
        result.call for result in turn.results if not result.error and isinstance(result.call, Call)
    ]
    if expected is None:
        return not turn.results
    if trace["kind"] == "calculator":
        expression = expected.arguments["expression"]
        return any(
            str(call.arguments.get("expression", "")).replace(" ", "") == expression
            for call in calls
        )
    return expected.name in {call.name for call in calls} and expected.name in box.names


def ending(trace: traces.Trace, turn: Turn, right: bool) -> str:
    """Return how an answer ended: one of ENDINGS, which says what to mend where it is wrong."""
    expected = wanted_call(trace)
    calls = [result.call for result in turn.results]
    readable = [call for call in calls if isinstance(call, Call)]
    same_tool = [call for call in readable if expected and call.name == expected.name]
    if right:
        return RIGHT
    if expected is None:
        return NOT_NEEDED if calls else OTHER_ANSWER
    if not calls:
        return NO_CALL
    if not readable:
        return UNREADABLE
    if not same_tool:
        return OTHER_TOOL
    is_same = any(_plain(call) == _plain(expected) for call in same_tool)
    return OTHER_ANSWER if is_same else OTHER_ARGUMENTS


def _plain(call: Call) -> dict[str, str]:
    """Return a call's arguments as text without spaces, by which they are compared."""
    return {name: str(value).replace(" ", "") for name, value in call.arguments.items()}


def wanted_call(trace: traces.Trace) -> Call | None:
    """Return the call in a trace, or None when its question needs no tool."""
    from agent_forge.agent import parse_calls

    calls = parse_calls(trace["messages"][1]["content"])
    return calls[0] if calls else None


def show(trace: traces.Trace, turn: Turn, right: bool) -> str:
    messages = " | ".join(f"{message['role']}: {message['content']}" for message in turn.messages)
    return f"[{'right' if right else 'wrong'}] user: {trace['stages'][-1]} | {messages}"
