"""Traces of the user's own tools as a phase makes them: `evaluate.own_traces` under its settings."""

from dataclasses import replace
from typing import Any

from agent_forge.data.chat import encode_content
from agent_forge.data.schemas import canonical
from agent_forge.evaluate.own_traces import (
    Trace,
    load_tools,
    make,
    say,
    system_turn,
    toolbox,
)
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import OWN, Config, OwnConfig

KIND = OWN
HELDOUT = "validation"
SPARE_TOKENS = 16  # the end of a turn, and values written in more tokens
__all__ = [
    "HELDOUT", "KIND", "heldout", "load_tools", "make", "of_config", "reply_tokens", "say",
    "system_turn", "toolbox", "training",
]  # fmt: skip


def of_config(config: Config, sort: OwnConfig, count: int, split: str, **how: Any) -> list[Trace]:
    """Return traces of the tools of a configuration; `sort` takes the place of its traces.own.

    how: as in `make`.
    """
    tools = load_tools(tuple(config.tools))
    return make(tools, sort, config.allow, count, split, config.seed, **how)


def heldout(phase: PhaseRun[Config]) -> tuple[list[Trace], list[Trace]]:
    """Return the held-out questions that a tool answers, and a third as many that none answers.

    Drawn once per run, because a tool may answer differently the next time.
    """
    config = phase.config
    items = config.measure.items
    sort = replace(config.traces.own, listed_share=0.0, errors=False)
    with_tool, without = phase.out.remember(
        "own-heldout",
        lambda: [
            of_config(config, replace(sort, none_share=0.0), items, HELDOUT),
            of_config(config, replace(sort, none_share=1.0), max(items // 3, 1), HELDOUT),
        ],
    )
    return with_tool, without


def reply_tokens(phase: PhaseRun[Config]) -> int:
    """Return how many tokens one turn of the agent may have: as set, or as the longest turn of a
    held-out trace needs, because a call that is cut off is wrong.
    """
    turns = [
        message["content"]
        for part in heldout(phase)
        for trace in part
        for message in trace["messages"]
        if message["role"] == "assistant"
    ]
    longest = max(len(encode_content(phase.tokenizer, "assistant", turn)) for turn in turns)
    return max(phase.config.measure.max_new_tokens, longest + SPARE_TOKENS)


def training(phase: PhaseRun[Config]) -> list[Trace]:
    """Return the training traces, without any question that is measured.

    Where the parent's voice is kept there is no small talk among them: its ready answers are not
    the parent's.
    """
    refused = {
        canonical.question_key(trace["messages"]) for part in heldout(phase) for trace in part
    }
    config = phase.config
    sort, small_talk = config.traces.own, config.voice.prompts == 0
    return of_config(config, sort, sort.count, "train", refused=refused, small_talk=small_talk)
