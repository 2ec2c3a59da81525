"""`forge merge`: merge models once, by a recipe in mergekit's YAML."""

from pathlib import Path
from typing import Annotated, Any

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import Json, Verbose, examples
from agent_forge.cli.render import Display, console, print_json, say

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in mergekit's YAML.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The checkpoint directory to write.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, estimate bytes and seconds, write nothing."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of random masks.")]
Threads = Annotated[
    int,
    typer.Option("--threads", min=0, help="Threads; 0 uses every core. Never changes the result."),
]
ShardBytes = Annotated[
    int,
    typer.Option("--shard-bytes", min=0, help="Most bytes of weights per file; 0 writes one file."),
]


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    app.command(
        "merge",
        help="Merge models once, as a recipe in mergekit's YAML says.",
        epilog=examples(
            "forge merge recipe.yaml --out outputs/merged", "forge merge recipe.yaml --dry-run"
        ),
    )(merge_command)


def merge_command(
    recipe: RecipeFile,
    out: Out = None,
    dry_run: DryRun = False,
    seed: Seed = 0,
    threads: Threads = 0,
    shard_bytes: ShardBytes = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Merge models."""
    with one_line_errors(verbose):
        from agent_forge.core.errors import ConfigError
        from agent_forge.merge import job as merge_job

        if out is None and not dry_run:
            raise ConfigError("name the directory to write: forge merge RECIPE --out DIR")
        job = merge_job.prepare(recipe, seed=seed, threads=threads, shard_bytes=shard_bytes)
        try:
            if dry_run:
                _show_estimate(job, as_json)
            else:
                _merge(job, out, as_json)  # type: ignore[arg-type]
        finally:
            job.close()


def _show_estimate(job: Any, as_json: bool) -> None:
    from agent_forge.merge import job as merge_job

    seconds = merge_job.estimate_seconds(job)
    estimate = {
        "method": job.recipe.method, "sources": list(job.sources), "donor": job.donor,
        "tensors": len(job.plan.tensors), "reads_bytes": job.read_bytes,
        "writes_bytes": job.layout.size_bytes, "files": list(job.layout.shards),
        "seconds": round(seconds, 2), "notes": job.notes,
    }  # fmt: skip
    if as_json:
        print_json(estimate)
        return
    show = console(stderr=False)
    say(
        show,
        f"{job.recipe.method} of {', '.join(job.sources)}: {len(job.plan.tensors)} tensors; reads "
        f"{job.read_bytes:,} bytes, writes {job.layout.size_bytes:,} bytes in "
        f"{len(job.layout.shards)} file(s), about "
        f"{seconds:.1f} s (an estimate from a small part). Nothing was written.",
    )
    for note in job.notes:
        say(show, f"note: {note}")


def _merge(job: Any, out: Path, as_json: bool) -> None:
    from agent_forge.core.events import EventLog
    from agent_forge.merge import job as merge_job

    with Display(as_json=as_json) as display:
        events = EventLog(None, "merge", (display,))
        for note in job.notes:
            events.message(note)
        total = job.layout.size_bytes
        merged = merge_job.run(
            job, out, lambda done: events.progress("bytes", min(done, total), total)
        )
        events.artefact(merged.path)
    if as_json:
        print_json(
            {
                "path": str(merged.path), "id": merged.id, "donor": job.donor,
                "bytes": job.layout.size_bytes, "parents": merged.manifest.parents,
                "notes": job.notes,
            }
        )  # fmt: skip
    else:
        say(
            console(stderr=False),
            f"merged {len(job.sources)} models as {merged.path} (id {merged.id})",
        )
