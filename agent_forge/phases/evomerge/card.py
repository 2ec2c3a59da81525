"""Write what lies beside the winner's weights: merge.yaml, which mergekit reads, and the model
card, README.md.

Both depend on the search alone: they hold no time, host or absolute path, so the same search gives
the same bytes.
"""

from typing import Any

import yaml

from agent_forge.merge import Recipe
from agent_forge.phases.evomerge import Config
from agent_forge.phases.evomerge.sources import Sources

RECIPE_FILE, CARD_FILE = "merge.yaml", "README.md"


def recipe_text(recipe: Recipe, dtype: str, seed: int) -> str:
    """Return the recipe as YAML for mergekit, which reads it from the directory that holds the
    models it names.
    """
    return (
        f"# The merge that made this model ({recipe.method}). Paths are relative to the directory that holds the sources.\n"
        f"# Random masks, where the method has any, are drawn from seed {seed}.\n"
        f"{yaml.safe_dump(recipe.to_mergekit(dtype), sort_keys=False)}"
    )


def card_text(
    config: Config,
    sources: Sources,
    recipe: Recipe,
    tested: dict[str, Any],
    search: dict[str, Any],
) -> str:
    """Return the model card: what it is, how it was found, what it scored, where it comes from.

    tested: gains and losses on the test split, with intervals. search: figures of the search, name
    -> value.
    """
    labels = sources.labels
    head = {"base_model": labels, "tags": ["merge", "evomerge"], "pipeline_tag": "text-generation"}
    merged = yaml.safe_dump(recipe.to_mergekit(sources.dtype_name), sort_keys=False)
    gains = [
        [
            row["over"],
            _interval(row["fitness"]),
            _interval(row["gain"]),
            *(_interval(row[task], "") for task in config.fitness if task in row),
        ]
        for row in tested["gains"]
    ]
    tasks = [task for task in config.fitness if task in tested["gains"][0]]
    losses = [
        [name, *(_interval(losses_by_task[task], "") for task in tasks)]
        for name, losses_by_task in tested["losses"].items()
    ]
    lineage = [
        [label, source.manifest.phase, source.manifest.role, source.id]
        for label, source in zip(labels, sources.checkpoints, strict=True)
    ]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# Merge of {', '.join(labels)}",
        f"Found by evolutionary search over merge recipes (arXiv:2403.13187); technique of the winner: `{recipe.method}`. "
        "Candidates were scored on a search split; everything below was measured on a test split that no candidate saw.",
        "## Gain on the test split",
        "Fitness is the mean logarithm of what a model keeps of the trunk's losses, less a penalty where a task falls below "
        f"{config.floor:g} of it; retention is the same without the penalty; for each task the ratio of losses (above 1: "
        f"the winner is better). Paired-bootstrap 95% intervals over {tested['gains'][0]['gain']['n']} items.",
        _table(["over", "fitness", "retention", *tasks], gains),
        "## Loss on the test split (nats per token)",
        _table(["model", *tasks], losses),
        "## Recipe",
        f"`{RECIPE_FILE}` in this directory; random masks are drawn from seed {search['mask seed']}.",
        f"```yaml\n{merged}```",
        "## Search",
        "\n".join(f"- {name}: {value}" for name, value in search.items()),
        "## Lineage",
        _table(["source", "phase", "role", "checkpoint"], lineage),
        "## Limits",
        "A merge knows what its sources know. It was chosen for the tasks above, and nothing else was checked here.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _interval(metric: dict[str, Any], sign: str = "+") -> str:
    return f"{metric['value']:{sign}.3f} [{metric['low']:{sign}.3f}, {metric['high']:{sign}.3f}]"
