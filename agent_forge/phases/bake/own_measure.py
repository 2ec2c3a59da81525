"""Measure the user's own tools end to end, on held-out questions, by tools that really run.

What is right is said by `evaluate.own_traces.is_right`. Each is measured without
a prompt, as baked, and with the tools listed on a system turn, as the parent is prompted.
"""

from typing import TYPE_CHECKING, Any

from agent_forge.agent import answer_turns
from agent_forge.evaluate.own_traces import is_right
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
    parts = zip((own.KIND, NONE_FITS), own.heldout(phase), strict=True)
    for number, (name, heldout) in enumerate(parts, start=1):
        prompts = [trace["messages"][: trace["prompt_turns"]] for trace in heldout]
        if listed:
            system = own.system_turn([tool.schema() for tool in tools])
            prompts = [[system, *prompt] for prompt in prompts]
        limits = measure.turn_limits(own.reply_tokens(phase))
        turns = answer_turns(model, phase.tokenizer, prompts, box, limits)
        right = [is_right(trace, turn, box) for trace, turn in zip(heldout, turns, strict=True)]
        low, high = measure.wilson(sum(right), len(right))
        figures[name] = {
            "value": sum(right) / len(right), "low": low, "high": high, "n": len(right),
        }  # fmt: skip
        shown = list(zip(heldout, turns, right, strict=True))[:4]
        samples += [measure.show(*one) for one in shown]
        stage = "measure, tools listed" if listed else "measure, without a prompt"
        phase.events.progress(stage, number, 2, {"right": figures[name]["value"]})
    return figures, samples


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
