"""`forge audit`: check the audit log of the service, and print its newest record for safe keeping."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import Json, Verbose, examples
from agent_forge.cli.render import console, print_json, say

if TYPE_CHECKING:
    from agent_forge.server.audit import Head

SHOWN = 20  # problems that are printed

Log = Annotated[Path, typer.Argument(metavar="LOG", help="The file audit.jsonl.")]


def add_to(app: typer.Typer) -> None:
    """Add the group of this file."""
    group = typer.Typer(help="Check the service's audit log.", no_args_is_help=True)
    group.command(
        "verify",
        help="Check every record against the chain; exit 74 when something was changed.",
        epilog=examples(
            "forge audit verify audit.jsonl", "forge audit verify audit.jsonl --head heads.txt"
        ),
    )(verify_command)
    group.command(
        "head",
        help="Print the number and MAC of the newest record, to keep in another place.",
        epilog=examples(
            "forge audit head audit.jsonl >> /media/safe/heads.txt",
            "forge audit head audit.jsonl --json",
        ),
    )(head_command)
    app.add_typer(group, name="audit")


def verify_command(
    log: Log,
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head", help="A head (NUMBER:MAC), or a file of heads that the log must still hold."
        ),
    ] = None,
    start: Annotated[
        str, typer.Option("--start", help="The head at which moved segments ended (NUMBER:MAC).")
    ] = "",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check an audit log with its rotated segments."""
    with one_line_errors(verbose):
        from agent_forge.server.audit import EMPTY, AuditError, Head, verify

        heads = [one for text in head or () for one in _heads(text)]
        result = verify(log, heads=heads, start=Head.parse(start) if start else EMPTY)
        if as_json:
            print_json({**asdict(result), "intact": result.intact})
        else:
            out = console(stderr=False)
            for problem in result.problems[:SHOWN]:
                say(out, problem)
            if len(result.problems) > SHOWN:
                say(out, f"… and {len(result.problems) - SHOWN} more")
            checked = f", {len(heads)} heads from elsewhere" if heads else ""
            say(out, f"{log}: {result.records:,} records{checked}; head {result.head}")
        if not result.intact:
            raise AuditError(f"{log} was changed: {len(result.problems)} problems")


def _heads(text: str) -> list["Head"]:
    """Return the heads that an option names: itself, or those in a file. Raises DataError."""
    from agent_forge.core.errors import DataError
    from agent_forge.server.audit import Head, read_heads

    if not Path(text).is_file():
        return [Head.parse(text)]
    try:
        return read_heads(Path(text).read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the heads in {text}: {error}") from None


def head_command(log: Log, as_json: Json = False, verbose: Verbose = False) -> None:
    """Print the newest record's number and MAC; the log is only read."""
    with one_line_errors(verbose):
        from agent_forge.server.audit import AuditError, newest

        head = newest(log)
        if head is None:
            raise AuditError(f"no audit log at {log}; name its file (audit.jsonl)")
        if as_json:
            print_json(asdict(head))
        else:
            print(head)
