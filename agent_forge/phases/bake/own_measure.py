"""Measure the user's own tools end to end, on held-out questions, by tools that really run.

A question that needs a tool is right when the calls that ran are the expected ones (the same tools,
the same results) and the answer says the results. Where nothing can run, the calls themselves are
compared. A question that no tool answers is right when nothing was called. Each is measured without
a prompt, as baked, and with the tools listed on a system turn, as the parent is prompted.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

from agent_forge.agent import Call, Toolbox, Turn, answer_turns
from agent_forge.evaluate import calling
from agent_forge.evaluate.tasks import own_tools
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config, measure, own

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NONE_FITS = "own: no tool fits"


def figures(
    phase: PhaseRun[Config], model: "PreTrainedModel", *, baked: bool
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Return the figures without a prompt, samples, and the figures with the tools listed.

    The latter are {} where measure.listed is off; else they stand for both in the parent, which
    knows the tools from a listing alone.
    """
    listed: dict[str, Any] = {}
    shown: list[str] = []
    if phase.config.measure.listed:
        listed, shown = accuracy(model, phase, listed=True)
        if not baked:
            return listed, shown, listed
    bare, shown = accuracy(model, phase, listed=False)
    return bare, shown, listed


def accuracy(
    model: "PreTrainedModel", phase: PhaseRun[Config], *, listed: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return {"own": figure, "own: no tool fits": figure}, and some conversations to look at."""
    config = phase.config
    tools = own.load_tools(tuple(config.tools))
    box = own.toolbox(tools, config.allow)
    figures: dict[str, Any] = {}
    samples: list[str] = []
    for name, heldout in zip((own.KIND, NONE_FITS), own.heldout(phase), strict=True):
        prompts = [trace["messages"][: trace["prompt_turns"]] for trace in heldout]
        if listed:
            system = own.system_turn([tool.schema() for tool in tools])
            prompts = [[system, *prompt] for prompt in prompts]
        turns = answer_turns(
            model, phase.tokenizer, prompts, box, measure.ROUNDS, config.measure.max_new_tokens
        )
        right = [is_right(trace, turn, box) for trace, turn in zip(heldout, turns, strict=True)]
        low, high = measure.wilson(sum(right), len(right))
        figures[name] = {
            "value": sum(right) / len(right), "low": low, "high": high, "n": len(right),
        }  # fmt: skip
        shown = list(zip(heldout, turns, right, strict=True))[:4]
        samples += [measure.show(*one) for one in shown]
    return figures, samples


def is_right(trace: own.Trace, turn: Turn, box: Toolbox) -> bool:
    """Return whether a turn answers a trace."""
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
    return turn.finished and own_tools.says(turn.text, trace["results"])


def table(before: Any, after: Any, plain: Any | None) -> list[dict[str, Any]]:
    """Return the report's table: baked, the prompted parent, plain training on the same rows."""
    rows = [
        ("baked, without a prompt", after["own"]), ("baked, tools listed", after["own listed"]),
        ("parent, tools listed", before["own listed"]),
    ]  # fmt: skip
    if plain is not None:
        rows.append(("plain training on the same rows, without a prompt", plain["own"]))
    return [
        {"model": name, "questions": kind, "right": figure["value"], "low": figure["low"],
         "high": figure["high"], "n": figure["n"]}
        for name, figures in rows
        for kind, figure in figures.items()
    ]  # fmt: skip
