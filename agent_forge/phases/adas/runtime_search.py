"""Race scaffolds and decoders by running the agent: right answers on search-split rows, paired with
the agent as it is.

The best one of a first round is accepted when the paired-bootstrap bound of its gain on fresh rows
is above zero. Its settings go into the manifest, where the agent's run time finds them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import agent as agents
from agent_forge import evaluate
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.core.seeds import numpy_generator
from agent_forge.evaluate.engine import asked, last_word
from agent_forge.evaluate.tasks.tools import is_right
from agent_forge.phases import PhaseRun
from agent_forge.phases.adas import Config
from agent_forge.phases.adas.objective import rows_of
from agent_forge.phases.adas.pool import RUNTIME, runtime_named

TASKS = ("memory", "reasoning", "tools")
Message = Mapping[str, str]


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
    first = [(task, row) for task, task_rows in rows.items() for row in task_rows[: settings.items]]
    fresh = [(task, row) for task, task_rows in rows.items() for row in task_rows[settings.items :]]
    if not first or not settings.techniques:
        return {"accepted": "", "settings": {}, "rows": []}
    examples = [
        (row["messages"][0]["content"], row["answer"])
        for row in rows_of("reasoning", "train", 2, context)
    ]

    def right(changes: Mapping[str, Any], items: Sequence[tuple[str, Any]]) -> NDArray[np.float64]:
        return score(model, tokenizer, {**inherited, **changes}, items)

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


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: Mapping[str, Any],
    items: Sequence[tuple[str, Mapping[str, Any]]],
) -> NDArray[np.float64]:
    """Return 1 for each right answer: by the right call for tools, by the last word for the
    others.
    """
    turns = answers(model, tokenizer, settings, [asked(row["messages"]) for _, row in items])
    right = []
    for (task, row), turn in zip(items, turns, strict=True):
        right.append(
            is_right(row, turn.messages)
            if task == "tools"
            else last_word(turn.text) == row["answer"]
        )
    return np.asarray(right, np.float64)


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: Mapping[str, Any],
    conversations: Sequence[Sequence[Message]],
) -> list["agents.Turn"]:
    """Return what an agent with these manifest settings replies to each conversation, all generated
    together.

    Each answer equals the answer of one `Agent.reply` per conversation with a fresh memory, as a
    test proves.
    """
    one = agents.Agent(model, tokenizer, settings=settings)
    known = one.settings
    windows = [one.shown(messages) for messages in conversations]
    samples = known.scaffold_samples if known.scaffold == "self_consistency" else 1
    votes = [
        agents.answer_turns(
            model, tokenizer, windows, one.toolbox, known.max_rounds, known.max_new_tokens,
            temperature=known.temperature if sample == 0 else (known.temperature or 0.7), top_p=known.top_p,
            seed=known.seed + 1000 * sample,
        )
        for sample in range(samples)
    ]  # fmt: skip
    one.memory.close()
    chosen = []
    for turns in zip(*votes, strict=True):
        best = Counter(turn.text for turn in turns).most_common(1)[0][0]
        chosen.append(next(turn for turn in turns if turn.text == best))
    return chosen
