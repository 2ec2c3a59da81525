"""`forge index`: build the document index that chat, bake and the tools search in."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import FileEncoding, Json, Verbose, examples
from agent_forge.cli.render import Display, console, print_json_line, say

if TYPE_CHECKING:
    from agent_forge.agent.indexing import IndexReport

Sources = Annotated[
    list[str], typer.Argument(metavar="DIR|FILE...", help="Files, folders, or a packaged text.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The index file.")]
Query = Annotated[
    str, typer.Option("--query", "-q", help="Then show the passages that fit this best.")
]
Count = Annotated[int, typer.Option(min=1, max=100, help="How many passages to show.")]
PassageWords = Annotated[int, typer.Option(min=1, help="Most new words per passage.")]
OverlapWords = Annotated[
    int, typer.Option(min=0, help="Words that a passage shares with the one before.")
]


def add_to(app: typer.Typer) -> None:
    """Add the subcommand of this file."""
    app.command(
        "index",
        help="Index files and folders of text for search and retrieval; again, only what changed.",
        epilog=examples(
            "forge index docs/ notes.md --out outputs/index.db",
            "forge index sotu --query 'treaty with Spain'",
        ),
    )(index_command)


def index_command(
    sources: Sources,
    out: Out = Path("outputs/index.db"),
    query: Query = "",
    count: Count = 3,
    passage_words: PassageWords = 80,
    overlap_words: OverlapWords = 16,
    encoding: FileEncoding = "utf-8",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Bring an index up to date. Exits 74 where a file could not be read; the others are in it."""
    with one_line_errors(verbose):
        from agent_forge.agent.documents import open_index
        from agent_forge.agent.indexing import build
        from agent_forge.config.limits import Encoding
        from agent_forge.core.errors import ConfigError, DataError
        from agent_forge.core.events import EventLog

        if Encoding().wrong(encoding):
            raise ConfigError(f"--encoding must be {Encoding()}, got '{encoding}'")
        with Display(as_json=as_json) as display:
            report = build(
                sources, out, events=EventLog(None, "index", (display,)), encoding=encoding,
                passage_words=passage_words, overlap_words=overlap_words,
            )  # fmt: skip
        passages = open_index(out).retrieve(query, count) if query else []
        if as_json:
            print_json_line(
                {"out": str(out), **asdict(report), "results": [asdict(p) for p in passages]}
            )
        else:
            show = console(stderr=False)
            say(
                show,
                f"{out}: {report.passages:,} passages; {report.added:,} files added, "
                f"{report.changed:,} changed, {report.unchanged:,} unchanged, "
                f"{report.removed:,} removed",
            )
            for passage in passages:
                say(show, f"\n{passage.cited()}")
        _print_left_out(report)
        if report.refused:
            raise DataError(f"{len(report.refused)} of the files could not be indexed")
        if not report.passages:
            raise DataError(f"{out} holds no passage: no file of {', '.join(sources)} has text")


def _print_left_out(report: "IndexReport") -> None:
    """Print which files are not in the index, and why, to standard error."""
    from agent_forge.agent.indexing import KINDS

    for suffix, files in report.unknown.items():
        line = f"passed over: {files} file{'s' * (files != 1)} of kind {suffix}"
        say(console(), line)
    if report.unknown:
        say(console(), f"known kinds: {' '.join(KINDS)}")
    for line in report.refused:
        say(console(), f"refused: {line}")
