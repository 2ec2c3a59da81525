"""Race scaffolds and decoders by running the agent: right answers on search-split rows, paired with
the agent as it is.

The best one of a first round is accepted when the paired-bootstrap bound of its gain on fresh rows
is above zero. Its settings go into the manifest, where the agent's run time finds them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import agent as agents
from agent_forge import evaluate
from agent_forge.agent import scaffolds
from agent_forge.agent.agent_turn import draft_of
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.core.seeds import numpy_generator
from agent_forge.evaluate import own_traces
from agent_forge.evaluate.engine import asked, last_word
from agent_forge.evaluate.tasks.tools import is_right
from agent_forge.phases import PhaseRun
from agent_forge.phases.adas import Config
from agent_forge.phases.adas.objective import rows_of
from agent_forge.phases.adas.pool import RUNTIME, runtime_named

EXAMPLES = 8  # solved rows that a technique may show
TASKS = ("memory", "reasoning", "tools")
Message = Mapping[str, str]


@dataclass(slots=True)
class _Own:
    """Which questions of the user's tools techniques are raced on."""

    none_share: float = 0.2
    listed_share: float = 0.0
    errors: bool = False
    filter: bool = False


def _own_tools(config: Config) -> "tuple[agents.Tool, ...]":
    return own_traces.load_tools(tuple(config.tools)) if config.tools else ()


def check(config: Config) -> None:
    """Raise ConfigError for a technique or task that is not known."""
    for name in config.runtime_search.techniques:
        runtime_named(name)
    for task in config.runtime_search.tasks:
        if task not in TASKS:
            raise ConfigError(
                f"runtime_search.tasks: no task '{task}'{did_you_mean(task, TASKS)}; known: {', '.join(TASKS)}"
            )


def search_settings(
    phase: PhaseRun[Config], model: PreTrainedModel, inherited: Mapping[str, Any]
) -> dict[str, Any]:
    """Return {"accepted", "settings", "rows"}: the winner's name ("" for none), its settings,
    and one row per technique.
    """
    config, tokenizer, context = phase.config, phase.tokenizer, phase.eval_context
    settings = config.runtime_search
    count = settings.items + settings.final_items
    rows = {task: rows_of(task, "search", count, context) for task in settings.tasks}
    own = _own_tools(config)
    if own:
        rows[own_traces.KIND] = own_traces.make(own, _Own(), (), count, "search", config.seed)
    first = [(task, row) for task, task_rows in rows.items() for row in task_rows[: settings.items]]
    fresh = [(task, row) for task, task_rows in rows.items() for row in task_rows[settings.items :]]
    if not first or not settings.techniques:
        return {"accepted": "", "settings": {}, "rows": []}
    examples = [
        (row["messages"][0]["content"], row["answer"])
        for row in rows_of("reasoning", "train", EXAMPLES, context)
    ]

    def right(changes: Mapping[str, Any], items: Sequence[tuple[str, Any]]) -> NDArray[np.float64]:
        return score(model, tokenizer, laid_over(inherited, changes), items, own)

    before = right({}, first)
    table, best = [], ("", 0.0)
    for name in settings.techniques:
        gain = float((right(RUNTIME[name].settings(examples), first) - before).mean())
        table.append(
            {"technique": name, "family": RUNTIME[name].family, "gain": gain, "n": len(first)}
        )
        if gain > best[1]:
            best = (name, gain)
    if not best[0] or not fresh:
        return {"accepted": "", "settings": {}, "rows": table}
    changes = RUNTIME[best[0]].settings(examples)
    gains = right(changes, fresh) - right({}, fresh)
    generator = numpy_generator(config.seed, "adas", "runtime bootstrap")
    draws = evaluate.draw_from(generator, len(gains), config.search.samples)
    low = float(
        np.sort(gains[draws].mean(1))[int(config.search.samples * (1 - config.search.confidence))]
    )
    table.append(
        {
            "technique": f"{best[0]} (fresh)",
            "family": "",
            "gain": float(gains.mean()),
            "n": len(gains),
            "low": low,
        }
    )
    is_better = low > 0
    return {
        "accepted": best[0] if is_better else "",
        "settings": changes if is_better else {},
        "rows": table,
    }


def laid_over(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return an agent's settings with changes; what a decoder's changes do not name stays."""
    merged = {**settings, **changes}
    if "decoder" in changes:
        merged["decoder"] = {**(settings.get("decoder") or {}), **changes["decoder"]}
    return merged


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: Mapping[str, Any],
    items: Sequence[tuple[str, Mapping[str, Any]]],
    own: Sequence["agents.Tool"] = (),
) -> NDArray[np.float64]:
    """Return 1 for each right answer: by the right calls for tools, by the last word for the
    others. own: the user's tools, which the agent has beside the ones in its settings.
    """
    talks = [
        row["messages"][: row["prompt_turns"]]
        if task == own_traces.KIND
        else asked(row["messages"])
        for task, row in items
    ]
    turns = answers(model, tokenizer, settings, talks, own)
    box = agents.Toolbox(list(own))
    right = []
    for (task, row), turn in zip(items, turns, strict=True):
        if task == own_traces.KIND:
            right.append(own_traces.is_right(dict(row), turn, box))
        elif task == "tools":
            right.append(is_right(row, turn.messages))
        else:
            right.append(last_word(turn.text) == row["answer"])
    return np.asarray(right, np.float64)


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: Mapping[str, Any],
    conversations: Sequence[Sequence[Message]],
    own: Sequence["agents.Tool"] = (),
) -> list["agents.Turn"]:
    """Return what an agent with these manifest settings replies to each conversation, all generated
    together.

    Each answer equals the answer of one `Agent.reply` per conversation with a fresh memory, as a
    test proves.
    """
    names = {tool.name for tool in own}
    enabled = [
        tool for tool in agents.kept_tools(settings.get("tools", []))[0] if tool.name not in names
    ]
    tools = [*enabled, *own] if own else None
    one = agents.Agent(model, tokenizer, tools, settings=settings)
    known = one.settings

    def turns_of(windows: Sequence[Any], number: int, *, draft: bool = False) -> list[Any]:
        sampled = number > 0 and not draft and scaffolds.votes(known) > 1
        decoding = replace(
            known.decoding,
            temperature=known.temperature or (0.7 if sampled else 0.0),
            seed=known.seed + 1000 * number,
        )
        # A draft is one message without tools, as `Agent.draft` writes it.
        limits = agents.TurnLimits(
            max_rounds=1 if draft else known.max_rounds,
            decoding=decoding,
            grammar="none" if draft else known.grammar,
            call_gate=0.0 if draft else known.call_gate,
        )
        # As `Agent.sample` does: nothing destructive runs for a further vote.
        voting = one.toolbox if number == 0 else one.toolbox.read_only()
        box = agents.Toolbox([]) if draft else voting
        return agents.answer_turns(model, tokenizer, windows, box, limits)

    windows = [one.shown(messages) for messages in conversations]
    if known.scaffold == "drafts" and known.scaffold_drafts:
        windows = _after_drafts(known, windows, turns_of)
    votes = [turns_of(windows, sample) for sample in range(scaffolds.votes(known))]
    one.memory.close()
    return [_winner(known, turns, one.toolbox) for turns in zip(*votes, strict=True)]


def _after_drafts(
    known: "agents.AgentSettings", windows: Sequence[Any], turns_of: Callable[..., Any]
) -> list[Any]:
    """Return the conversations with the question that follows their drafts."""
    drafts = [""] * len(windows)
    for number, template in enumerate(known.scaffold_drafts, start=1):
        asking = _filled(template, windows, drafts)
        turns = turns_of(asking, number, draft=True)
        drafts = [draft_of(turn) for turn in turns]
    return _filled(known.scaffold_prompt, windows, drafts)


def _filled(template: str, windows: Sequence[Any], drafts: Sequence[str]) -> list[Any]:
    return [
        [*window[:-1], scaffolds.filled(template, window[-1], draft)]
        for window, draft in zip(windows, drafts, strict=True)
    ]


def _winner(
    known: "agents.AgentSettings", turns: Sequence["agents.Turn"], toolbox: "agents.Toolbox"
) -> "agents.Turn":
    """Return the turn that wins, as if the votes had been cast one after the other."""
    if toolbox.has_changed_things(turns[0].results):
        return turns[0]
    ballots = [scaffolds.ballot(known, turn) for turn in turns]
    for count in range(1, len(ballots)):
        place = scaffolds.decided(ballots[:count], known.scaffold_stop_after)
        if place is not None:
            return turns[place]
    return turns[scaffolds.winner(ballots)]
