"""The model card of a merge: what was merged and how, parents and their hashes, whose config."""

from agent_forge.merge.prepared import MergeJob


def merge_card(job: MergeJob, parents: list[dict[str, str]]) -> str:
    """Return README.md of a merged model."""
    method = job.recipe.method
    names = ", ".join(parent["name"] for parent in parents)
    rows = "\n".join(
        f"| {parent['name']} | `{parent['id']}` | {_role(job, i)} |"
        for i, parent in enumerate(parents)
    )
    notes = "\n".join(f"- {note}" for note in job.notes)
    parameters = sum(output.size_bytes // output.dtype.itemsize for output in job.layout.outputs)
    seed = job.settings.seed
    return f"""---
tags: [merge, agent-forge, {method}]
---
# A merge of {names}

Method: {method} ({job.plan.method.METHOD.summary}). {parameters:,} stored numbers,
{job.layout.size_bytes:,} bytes. Random masks, where the method has any, are drawn from seed {seed}.

| parent | content id | role |
|---|---|---|
{rows}

## Notes
{notes}

## Recipe
```yaml
{job.text.rstrip()}
```
"""


def _role(job: MergeJob, place: int) -> str:
    label = list(job.sources)[place]
    roles = ["base"] if label == job.recipe.base else ["merged"]
    return ", ".join([*roles, "config"] if label == job.donor else roles)
