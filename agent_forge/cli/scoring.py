"""Score checkpoints on held-out items: eval one, compare two."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import ConfigOption, Json, Overrides, Verbose, examples
from agent_forge.cli.render import console, print_json, say

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_GRAMMAR = "none"
Target = Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint directory.")]
Tasks = Annotated[
    str,
    typer.Option(
        "--tasks",
        "-t",
        help="Comma-separated tasks or suites (skills, domains); by default tasks that need no "
        "settings, packages or long prompts.",
    ),
]
Items = Annotated[int, typer.Option("--items", "-n", min=2, help="Held-out items per task.")]
Harness = Annotated[
    str,
    typer.Option(help="Comma-separated tasks of the lm-evaluation-harness (extra eval) instead."),
]
HarnessPath = Annotated[
    Path | None, typer.Option(help="A folder of task files, for tasks of --harness of your own.")
]
Split = Annotated[
    str, typer.Option("--split", help="validation, search, test, or (bfcl, agentdojo) whole.")
]


def add_to(app: typer.Typer) -> None:
    """Add the subcommands of this file."""
    app.command(
        "eval",
        help="Score a checkpoint on held-out items, with 95% intervals.",
        epilog=examples(
            "forge eval outputs/run_all/8-compress",
            "forge eval outputs/run_all/8-compress --tasks tools,text --items 500",
            "forge eval outputs/smollm2 -t skills -n 32",
            "forge eval outputs/smollm2 --harness forge_hellaswag --split whole",
            "forge eval outputs/bake --tasks copying,schemas eval.grammar=calls",
            "forge eval outputs/bake --tasks own_tools tools=[my_tools.py] eval.rows=[questions.jsonl]",
        ),
    )(eval_command)
    app.command(
        "compare",
        help="Score two checkpoints on the same items: what does the second keep of the first?",
        epilog=examples(
            "forge compare outputs/run_all/7-adas outputs/run_all/8-compress",
            "forge compare outputs/smollm2 outputs/mine -t skills -n 32",
            "forge compare outputs/smollm2 outputs/mine --tasks text --json",
        ),
    )(compare_command)


def eval_command(
    path: Target,
    overrides: Overrides = None,
    tasks: Tasks = "",
    items: Items = 200,
    split: Split = "test",
    harness: Harness = "",
    harness_path: HarnessPath = None,
    config: ConfigOption = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score one checkpoint."""
    with one_line_errors(verbose):
        settings = _settings(overrides, config)
        from agent_forge.core.errors import ConfigError

        if harness and tasks:
            raise ConfigError(
                "--tasks are ours and --harness are the harness's: ask for them in turn"
            )
        if harness:
            names = [name.strip() for name in harness.split(",") if name.strip()]
            _eval_by_harness(path, Scoring(settings, names, items, split), harness_path, as_json)
            return
        if harness_path:
            raise typer.BadParameter("--harness-path goes with --harness TASKS")
        scoring = Scoring(settings, _names(tasks), items, split)
        measured = _measured(path, scoring, with_tokens=False)
        rows = [
            {
                "task": name, "metric": s.metric, "value": s.mean, "low": s.interval[0],
                "high": s.interval[1], "n": s.n, "chance": s.chance,
                "at_chance": not s.above_chance, "items": s.items_hash, "grammar": grammar,
                "kinds": s.by_kind(),
            }
            for name, grammar, s in measured.rows()
        ]  # fmt: skip
        if as_json:
            print_json(rows)
            return
        from agent_forge.cli.tables import score_table

        console(stderr=False).print(score_table(rows, f"{path}, {split} split"))


@dataclass(frozen=True, slots=True)
class Scoring:
    """What is scored: so many items of a split, of each of these tasks."""

    settings: Any
    names: list[str]
    items: int
    split: str


def _eval_by_harness(path: Path, scoring: Scoring, folder: Path | None, as_json: bool) -> None:
    """Print what the lm-evaluation-harness scores."""
    from agent_forge.cli.tables import plain_table
    from agent_forge.core.events import choices_said
    from agent_forge.evaluate import harness as harness_room

    model, tokenizer, context = _opened(path, scoring)
    with choices_said(partial(say, console())):
        rows = harness_room.score(
            model, tokenizer, scoring.names, scoring.split, scoring.items, context, folder
        )
    if as_json:
        print_json(rows)
        return
    console(stderr=False).print(plain_table(rows, f"{path}, lm-evaluation-harness"))


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
        settings = _settings(overrides, config)
        scoring = Scoring(settings, _names(tasks), items, split)
        one, two = (_measured(path, scoring, with_tokens=True) for path in (first, second))
        rows = [_compared(name, grammar, one, two, settings) for name, grammar, _ in one.rows()]
        if as_json:
            print_json(rows)
            return
        from agent_forge.cli.tables import compare_table

        title = f"{second} (second) against {first} (first), {split} split"
        console(stderr=False).print(compare_table(rows, title))


def _compared(
    name: str, grammar: str, one: "Measured", two: "Measured", settings: Any
) -> dict[str, Any]:
    """Return a row of `forge compare`: both scores, what the second keeps of the first, and of a
    domain of text also how often their likeliest tokens are the same.
    """
    from agent_forge import evaluate

    before, after = (
        (who.scores if grammar == NO_GRAMMAR else who.under_grammar)[name] for who in (one, two)
    )
    retention = evaluate.retention(name, before, after, settings.gate.samples, settings.seed)
    row = {
        "task": name, "metric": before.metric, "first": before.mean, "second": after.mean,
        "kept": retention.ratio, "low": retention.low, "high": retention.high, "n": before.n,
        "at_chance": not before.above_chance, "grammar": grammar,
    }  # fmt: skip
    if name in one.tokens:
        same = evaluate.agreement(one.tokens[name], two.tokens[name], settings.seed)
        return {
            **row, "perplexity_ratio": 1 / retention.ratio if retention.ratio else None,
            "same_token": same["value"], "same_token_low": same["low"],
            "same_token_high": same["high"], "tokens": same["n"],
        }  # fmt: skip
    return row


def _settings(overrides: list[str] | None, file: str | None) -> Any:
    from agent_forge.config import EvalSettings
    from agent_forge.config.compose import compose

    return compose("eval", EvalSettings, overrides or [], file)


def _names(tasks: str) -> list[str]:
    """Return the chosen tasks, a suite's tasks in its place; all default tasks for ""."""
    from agent_forge.config import suites
    from agent_forge.core import registry

    package = "agent_forge.evaluate.tasks"
    chosen, left_out = suites.expanded([name.strip() for name in tasks.split(",") if name.strip()])
    for line in left_out:
        say(console(), line)
    if chosen:
        for name in chosen:
            registry.load(package, name, "task")
        return chosen
    every = [(name, registry.load(package, name, "task")) for name in registry.names(package)]
    return [name for name, module in every if module.TASK.by_default]


def _refuse_trained_on(opened: Any, names: list[str]) -> None:
    """Raise ConfigError where a task's data were used in making the checkpoint."""
    from agent_forge.core.errors import ConfigError

    used = [name for name in opened.manifest.extra.get("benchmarks", ()) if name in names]
    if used:
        raise ConfigError(
            f"{opened.stored} was trained on data of {', '.join(used)}, which is not reported then; "
            "name the other tasks with --tasks"
        )


@dataclass(slots=True)
class Measured:
    """The scores of a checkpoint by task, and of domains of text its likeliest tokens.

    Where eval.grammar is set, tasks whose replies call tools have a second score, under it. That
    one never stands alone, because a grammar mends syntax only.
    """

    scores: dict[str, Any]
    tokens: dict[str, Any]
    under_grammar: dict[str, Any]
    grammar: str

    def rows(self) -> "Iterator[tuple[str, str, Any]]":
        """Yield (task, grammar, score), a score under a grammar after the one without."""
        for name, score in self.scores.items():
            yield name, NO_GRAMMAR, score
            if name in self.under_grammar:
                yield name, self.grammar, self.under_grammar[name]


def _measured(path: Path, scoring: Scoring, *, with_tokens: bool) -> Measured:
    """Return what a checkpoint scores.

    with_tokens: also keep the likeliest tokens of domains, which two models are compared by.
    """
    from agent_forge import evaluate
    from agent_forge.core.events import choices_said

    names, split, items = scoring.names, scoring.split, scoring.items
    model, tokenizer, context = _opened(path, scoring)
    domains = [name for name in names if with_tokens and name in evaluate.DOMAINS]
    others = [name for name in names if name not in domains]
    with choices_said(partial(say, console())):
        tokens = {
            name: evaluate.domain_scores(model, tokenizer, name, split, items, context)
            for name in domains
        }
        scores = evaluate.score(model, tokenizer, others, split, items, context)
        grammar = scoring.settings.eval.grammar
        under = evaluate.score(
            model, tokenizer, _calling(names, grammar), split, items,
            replace(context, grammar=grammar),
        )  # fmt: skip
    scores = {**{name: one.scores for name, one in tokens.items()}, **scores}
    return Measured(scores, tokens, under, grammar)


def _calling(names: list[str], grammar: str) -> list[str]:
    """Return the tasks that are scored under a grammar too. Raises ConfigError without any."""
    from agent_forge import evaluate
    from agent_forge.core.errors import ConfigError

    if grammar == NO_GRAMMAR:
        return []
    chosen = [name for name in names if evaluate.load_task(name).TASK.calls]
    if not chosen:
        raise ConfigError(
            f"eval.grammar={grammar} is for tasks whose replies call tools, and {', '.join(names)} "
            "have none; name others, for instance --tasks schemas, or leave it out"
        )
    return chosen


def _opened(path: Path, scoring: Scoring) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and context of a checkpoint.

    Raises ConfigError where one of the tasks is benchmark data that it was trained on.
    """
    from agent_forge import checkpoint, evaluate, models
    from agent_forge.core import device

    settings = scoring.settings
    device.set_threads(settings.runtime.threads)
    opened = checkpoint.open(path)
    _refuse_trained_on(opened, scoring.names)
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
    return model, tokenizer, context
