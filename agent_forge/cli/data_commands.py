"""`forge data`: inspect training rows, compare splits, build data sets."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.layout import short_id
from agent_forge.cli.phase_commands import (
    ConfigOption,
    FileEncoding,
    Json,
    Overrides,
    Verbose,
    examples,
)
from agent_forge.cli.render import console, print_json, say

BYTE_VOCABULARY = 264  # 256 bytes and the fixed tokens
Rows = Annotated[
    list[str],
    typer.Argument(metavar="ROWS...", help=".jsonl, .json, .parquet, a folder, or hf:NAME."),
]
ShowMask = Annotated[
    bool, typer.Option("--show-mask", help="Show the first rows with their trained text.")
]
RowCount = Annotated[int, typer.Option(min=1, help="How many rows --show-mask shows.")]
Tokenizer = Annotated[
    Path | None, typer.Option(help="A checkpoint whose tokenizer counts; else bytes count.")
]
Roles = Annotated[str, typer.Option(help="Roles that are learned, with commas.")]
LastTurn = Annotated[
    bool, typer.Option("--last-turn", help="Count as bake does with training.last_turn=true.")
]
IgnoredKeys = Annotated[
    list[str] | None,
    typer.Option(help="A key without effect, as in data.ignore_keys; may be repeated."),
]


def add_to(app: typer.Typer) -> None:
    """Add the group of this file."""
    group = typer.Typer(help="Look at training data, and build sets of it.", no_args_is_help=True)
    group.command(
        "inspect",
        help="Count rows, tokens and trained tokens; show which text is learned.",
        epilog=examples(
            "forge data inspect rows.jsonl --show-mask",
            "forge data inspect rows.jsonl --tokenizer outputs/smollm2",
        ),
    )(inspect_command)
    group.command(
        "splits",
        help="Print what held-out splits share with training; refuse above a limit.",
        epilog=examples(
            "forge data splits", "forge data splits data.text=[speeches/] data.rows=[rows.jsonl]"
        ),
    )(splits_command)
    group.command(
        "build",
        help="Build a data set of five domains, from packages and in a model's own words.",
        epilog=examples(
            "forge data build broad",
            "forge data build broad own.parent=outputs/smollm2 size_bytes=200000",
        ),
    )(build_command)
    app.add_typer(group, name="data")


def inspect_command(
    sources: Rows,
    show_mask: ShowMask = False,
    rows: RowCount = 3,
    tokenizer: Tokenizer = None,
    roles: Roles = "assistant",
    encoding: FileEncoding = "utf-8",
    ignore_key: IgnoredKeys = None,
    last_turn: LastTurn = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Inspect rows of chat, sharegpt, alpaca or pair form. Fails when no token would be trained."""
    with one_line_errors(verbose):
        from agent_forge import data, models
        from agent_forge.data.inspection import inspect_rows

        counter = (
            models.load_tokenizer(tokenizer)
            if tokenizer
            else data.train_tokenizer([], BYTE_VOCABULARY)
        )
        summary = inspect_rows(
            sources, counter, rows if show_mask else 0, roles.split(","),
            encoding=encoding, ignored=ignore_key or (), last_turn=last_turn,
        )  # fmt: skip
        if as_json:
            print_json(summary)
            return
        _print_rows(summary, counter.model_max_length if tokenizer else 0)
        _print_masks(summary["masks"])


def _print_rows(summary: dict[str, Any], positions: int) -> None:
    """Print what the rows hold. positions: the most tokens of a row; 0 where bytes were counted."""
    out = console(stderr=False)
    unit = "tokens" if positions else "bytes (no --tokenizer)"
    dialects = ", ".join(f"{name} {count}" for name, count in summary["dialects"].items())
    splits = ", ".join(f"{name} {count}" for name, count in summary["splits"].items())
    say(out, f"{summary['rows']:,} rows ({dialects}), {summary['distinct']:,} distinct; {splits}")
    say(
        out,
        f"{summary['tokens']:,} {unit}, {summary['trained_tokens']:,} trained "
        f"({summary['trained_share']:.1%}); the longest row has {summary['longest_tokens']:,}",
    )
    if positions and summary["too_long"]:
        say(
            out,
            f"{summary['too_long']:,} rows are longer than the model's {positions:,} "
            "positions: cut on the left",
        )
    if summary["marked_out"]:
        say(
            out,
            f"{summary['marked_out']:,} rows are marked as not to be learned: training "
            "passes them over",
        )


def _print_masks(masks: list[list[dict[str, Any]]]) -> None:
    """Print each row, its trained text between » and «."""
    out = console(stderr=False)
    if masks:
        say(out, "Trained text stands between » and «.", "dim")
    for number, mask in enumerate(masks, start=1):
        say(out, f"row {number}", "bold")
        for part in mask:
            text = f"»{part['text']}«" if part["trained"] else part["text"]
            out.print(text, style="green" if part["trained"] else "", markup=False, end="")
        out.print()


def build_command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A file of conf/data: broad.")],
    settings: Overrides = None,
    config: ConfigOption = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Build a data set, or name the one that an earlier build of the same recipe left.

    A killed build goes on with the same command.
    """
    with one_line_errors(verbose):
        from agent_forge.core.events import choices_said
        from agent_forge.pipeline.data_set import build, compose_recipe

        log = partial(say, console())
        with choices_said(log):
            data_set = build(recipe, compose_recipe(recipe, settings or [], config), log)
        if as_json:
            print_json({"path": str(data_set.path), **data_set.manifest})
            return
        out = console(stderr=False)
        for domain, sources in data_set.manifest["counts"].items():
            parts = ", ".join(
                f"{name} {count.get('bytes', 0):,}" for name, count in sources.items()
            )
            say(out, f"{domain}: {parts} bytes")
        say(out, f"{data_set.path}  (id {short_id(data_set.id)}; its README.md is the card)")


def splits_command(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE...]", help="Settings of `data`, and seed."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Generated rows per split and task.")] = 1000,
    limit: Annotated[
        float,
        typer.Option(min=0, max=1, help="Largest share of a split that may stand in another."),
    ] = 0.01,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print the overlap of every source.

    Exits 2 when a share exceeds the limit or an item repeats.
    """
    with one_line_errors(verbose):
        from agent_forge.config.compose import compose
        from agent_forge.core.errors import ConfigError
        from agent_forge.data.overlap import above, overlaps
        from agent_forge.phases.train import Config

        config = compose("train", Config, ["out=unused", *(settings or [])])
        rows = overlaps(config.data, count, config.seed)
        if as_json:
            print_json(rows)
        else:
            out = console(stderr=False)
            for row in rows:
                note = "" if row["limited"] else " (templates: not limited)"
                say(
                    out,
                    f"{row['source']:<10}{row['split']:<11}{row['items']:>6,} items, "
                    f"{row['distinct']:,} distinct; "
                    f"{row['in other splits']:.2%} in other splits; "
                    f"{row['runs in train']:.2%} of their runs of 13 words "
                    f"in train{note}",
                )
        refused = above(rows, limit)
        if refused:
            raise ConfigError(
                f"held-out items are not held out beyond {limit:.2%}: "
                f"{'; '.join(refused)}; remove repeated text, try "
                "data.near_duplicates=0.8, or allow more with --limit"
            )
