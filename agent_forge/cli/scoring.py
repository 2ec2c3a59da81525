"""Score checkpoints on held-out items: eval one, compare two."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import ConfigOption, Json, Overrides, Verbose, examples
from agent_forge.cli.render import console, print_json

Target = Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint directory.")]
Tasks = Annotated[
    str,
    typer.Option(
        "--tasks",
        "-t",
        help="Comma-separated tasks; by default those that need no settings, packages or long prompts.",
    ),
]
Items = Annotated[int, typer.Option("--items", "-n", min=2, help="Held-out items per task.")]
Split = Annotated[str, typer.Option("--split", help="validation, search, test, or (bfcl) whole.")]


def add_to(app: typer.Typer) -> None:
    """Add the subcommands of this file."""
    app.command(
        "eval",
        help="Score a checkpoint on held-out items, with 95% intervals.",
        epilog=examples(
            "forge eval outputs/run_all/8-compress",
            "forge eval outputs/run_all/8-compress --tasks tools,text --items 500",
            "forge eval outputs/bake --tasks own_tools tools=[my_tools.py] eval.rows=[questions.jsonl]",
        ),
    )(eval_command)
    app.command(
        "compare",
        help="Score two checkpoints on the same items: what does the second keep of the first?",
        epilog=examples(
            "forge compare outputs/run_all/7-adas outputs/run_all/8-compress",
            "forge compare outputs/smollm2 outputs/mine --tasks text --json",
        ),
    )(compare_command)


def eval_command(
    path: Target,
    overrides: Overrides = None,
    tasks: Tasks = "",
    items: Items = 200,
    split: Split = "test",
    config: ConfigOption = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score one checkpoint."""
    with one_line_errors(verbose):
        settings = _settings(overrides, config)
        scores = _score(path, settings, _names(tasks), items, split)
        rows = [
            {
                "task": name, "metric": s.metric, "value": s.mean, "low": s.interval[0],
                "high": s.interval[1], "n": s.n, "chance": s.chance, "items": s.items_hash,
            }
            for name, s in scores.items()
        ]  # fmt: skip
        if as_json:
            print_json(rows)
            return
        from agent_forge.cli.tables import score_table

        console(stderr=False).print(score_table(rows, f"{path}, {split} split"))


def compare_command(
    first: Target,
    second: Target,
    overrides: Overrides = None,
    tasks: Tasks = "",
    items: Items = 200,
    split: Split = "test",
    config: ConfigOption = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score two checkpoints on the same items and show the paired retention."""
    with one_line_errors(verbose):
        from agent_forge import evaluate

        settings = _settings(overrides, config)
        names = _names(tasks)
        one, two = (_score(path, settings, names, items, split) for path in (first, second))
        rows = []
        for name in names:
            retention = evaluate.retention(
                name, one[name], two[name], settings.gate.samples, settings.seed
            )
            rows.append(
                {
                    "task": name, "metric": one[name].metric, "first": one[name].mean,
                    "second": two[name].mean, "kept": retention.ratio, "low": retention.low,
                    "high": retention.high, "n": one[name].n,
                }
            )  # fmt: skip
        if as_json:
            print_json(rows)
            return
        from agent_forge.cli.tables import compare_table

        title = f"{second} (second) against {first} (first), {split} split"
        console(stderr=False).print(compare_table(rows, title))


def _settings(overrides: list[str] | None, file: str | None) -> Any:
    from agent_forge.config import EvalSettings
    from agent_forge.config.compose import compose

    return compose("eval", EvalSettings, overrides or [], file)


def _names(tasks: str) -> list[str]:
    from agent_forge.core import registry

    package = "agent_forge.evaluate.tasks"
    chosen = [name.strip() for name in tasks.split(",") if name.strip()]
    if chosen:
        for name in chosen:
            registry.load(package, name, "task")
        return chosen
    every = [(name, registry.load(package, name, "task")) for name in registry.names(package)]
    return [name for name, module in every if module.TASK.by_default]


def _score(path: Path, settings: Any, names: list[str], items: int, split: str) -> Any:
    from agent_forge import checkpoint, evaluate, models
    from agent_forge.core import device
    from agent_forge.core.events import choices_said

    device.set_threads(settings.runtime.threads)
    opened = checkpoint.open(path)
    model = models.load(
        opened,
        device=device.pick_device(settings.runtime.device),
        dtype=device.pick_dtype(settings.runtime.dtype),
    )
    tokenizer = models.load_tokenizer(opened.path)
    context = evaluate.EvalContext(
        data=settings.data, tokenizer=tokenizer, seed=settings.seed, tools=settings.tools,
        rows=settings.eval.rows,
    )  # fmt: skip
    with choices_said(lambda text: print(text, file=sys.stderr)):
        return evaluate.score(model, tokenizer, names, split, items, context)
