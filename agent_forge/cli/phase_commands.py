"""`forge <phase>` for every phase, and `forge run-all`: compose, check, run, show."""

import inspect
import json
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from agent_forge.cli.completion import complete_config, complete_override
from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.layout import wrapped
from agent_forge.cli.render import Display, console, print_json, print_json_line, say
from agent_forge.config import Phase
from agent_forge.core import ranks
from agent_forge.core.errors import ConfigError
from agent_forge.pipeline.catalogue import phase_named, phases

if TYPE_CHECKING:
    from agent_forge.config.explain import Setting

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings, Hydra's grammar.",
        autocompletion=complete_override,
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        help="A YAML file, or the name of an experiment.",
        autocompletion=complete_config,
    ),
]
Multirun = Annotated[
    bool, typer.Option("--multirun", "-m", help="Hydra multirun: KEY=a,b,c sweeps.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, estimate, write nothing.")
]
Resume = Annotated[
    bool,
    typer.Option("--resume/--no-resume", help="Go on with an earlier run (default), or drop it."),
]
PhaseName = Annotated[
    str,
    typer.Argument(
        metavar="PHASE", help="One of the phases.", autocompletion=lambda: list(phases())
    ),
]
All = Annotated[bool, typer.Option("--all", help="Also list what few people change.")]
Json = Annotated[bool, typer.Option("--json", help="Events and result as JSON lines on stdout.")]
FileEncoding = Annotated[str, typer.Option(help="Encoding of the files, as data.encoding.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")]


def add_to(app: typer.Typer) -> None:
    """Add one subcommand per phase, run-all and settings."""
    for phase in phases().values():
        app.command(
            phase.name,
            help=phase.summary[:1].upper() + phase.summary[1:],
            epilog=_examples(phase),
            rich_help_panel="Phases",
        )(_command(phase))
    app.command(
        "run-all",
        help="Run all phases with gates between them; the same command again goes on.",
        epilog=examples(
            "forge run-all --dry-run", "forge run-all experiment=tiny bitnet.train.steps=10"
        ),
    )(run_all_command)
    app.command(
        "settings",
        help="List the settings of a phase: default, unit, what is allowed, what it does.",
        epilog=examples("forge settings bitnet", "forge settings train --all"),
    )(settings_command)


def examples(*lines: str) -> str:
    """Return examples as the last part of a command's help."""
    return "\n\n".join(["Examples:", *map(escape, lines)])


def _examples(phase: Phase) -> str:
    source = "" if phase.order == 1 else " sources=[outputs/smollm2]"
    return examples(
        f"forge {phase.name}{source} --dry-run",
        f"forge {phase.name}{source} out=outputs/mine {phase.example}".rstrip(),
    )


@dataclass(frozen=True, slots=True)
class Typed:
    """What was typed behind a command that runs phases: settings, a file of them, and options."""

    overrides: list[str]
    file: str | None
    _: KW_ONLY
    dry_run: bool
    resume: bool
    as_json: bool


def _command(phase: Phase) -> Any:
    def command(
        overrides: Overrides = None,
        config: ConfigOption = None,
        multirun: Multirun = False,
        dry_run: DryRun = False,
        resume: Resume = True,
        as_json: Json = False,
        verbose: Verbose = False,
        **flags: bool,
    ) -> None:
        settings = [
            *(overrides or []),
            *(flag.override for flag in phase.flags if flags[flag.name] and flag.override),
        ]
        shown = next((flag.shows for flag in phase.flags if flags[flag.name] and flag.shows), "")
        with one_line_errors(verbose):
            if shown:
                _show_list(shown, as_json)
                return
            typed = Typed(settings, config, dry_run=dry_run, resume=resume, as_json=as_json)
            if multirun:
                raise typer.Exit(_sweep(phase.name, typed))
            _run_phase(phase, typed)

    command.__name__ = phase.name
    signature = inspect.signature(command)
    options = [
        inspect.Parameter(
            flag.name, inspect.Parameter.KEYWORD_ONLY, default=False,
            annotation=Annotated[bool, typer.Option(f"--{flag.name}", help=flag.help)],
        )
        for flag in phase.flags
    ]  # fmt: skip
    shared = [
        p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    command.__signature__ = signature.replace(parameters=[*shared, *options])  # type: ignore[attr-defined]
    return command


def _show_list(place: str, as_json: bool) -> None:
    """Print the rows that MODULE:FUNCTION returns: one JSON object per line, or text by kind."""
    from importlib import import_module

    module, _, function = place.partition(":")
    rows = getattr(import_module(module), function)()
    if as_json:
        print_json(rows)
        return
    out, kind = console(stderr=False), ""
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            count = sum(other["kind"] == kind for other in rows)
            out.print(f"\n[bold]{escape(kind)}[/] ({count})")
        say(out, f"  {row['name']}: {row['text']}. {row['source']}")
    out.print(f"\n{len(rows)} techniques")


def settings_command(
    phase: PhaseName, show_all: All = False, as_json: Json = False, verbose: Verbose = False
) -> None:
    """Print the settings of a phase, from conf/ and the limits beside its fields."""
    from agent_forge.config.explain import settings

    with one_line_errors(verbose):
        chosen = phase_named(phase)
        rows = settings(phase, chosen.config, {one.name: one.config for one in phases().values()})
        listed = [row for row in rows if show_all or not row.expert]
        if as_json:
            print_json([asdict(row) for row in listed])
            return
        for row in listed:
            _print_setting(row)
        if len(listed) < len(rows):
            hidden = len(rows) - len(listed)
            say(console(), f"{hidden} more that few people change: forge settings {phase} --all")


def _print_setting(row: "Setting") -> None:
    """Print key, default, unit and limits in one line without cutting it, and explain below."""
    from rich.text import Text

    default = json.dumps(row.default, ensure_ascii=False)
    mark = "; expert" if row.expert else ""
    out = console(stderr=False)
    whole = f"{row.key} = {default}  ({row.unit}; {row.allowed}{mark})"
    first, *others = wrapped(whole, out.width, indent=2) if out.is_terminal else [whole]
    out.print(Text.assemble((row.key, "bold"), first.removeprefix(row.key)))
    for line in [*others, *wrapped(f"    {row.explanation}", out.width)]:
        out.print(Text(line))


def _run_phase(phase: Phase, typed: Typed) -> None:
    from agent_forge.checkpoint import record_dir
    from agent_forge.cli.layout import short_id
    from agent_forge.cli.resuming import NotedCommand, command_line
    from agent_forge.config.compose import compose
    from agent_forge.pipeline.run_phase import run_phase

    config = compose(phase.name, phase.config, typed.overrides, typed.file)
    if typed.dry_run:
        from agent_forge.pipeline.estimate import estimate_phase

        _show_estimates([estimate_phase(phase.name, config)], typed.as_json)
        return
    if ranks.rank():  # only rank 0 prints
        followed = run_phase(phase.name, config, resume=typed.resume)
        raise typer.Exit(followed.exit_code)
    with Display(as_json=typed.as_json) as display:
        command = command_line(phase.name, typed.overrides, typed.file)
        listener = NotedCommand(record_dir(config.out), command).before(display)
        outcome = run_phase(phase.name, config, listener=listener, resume=typed.resume)
    if typed.as_json:
        print_json_line(asdict(outcome))
    elif outcome.status == "done":
        _show_curves(outcome)
        identity = short_id(outcome.checkpoint_id)
        say(console(stderr=False), f"{phase.name}: {', '.join(outcome.outputs)} (id {identity})")
    _leave(outcome.exit_code, outcome.message)


def _show_curves(outcome: Any) -> None:
    """Print the tables that have a plot in the report, because the user asked for these curves."""
    from agent_forge.cli.tables import plain_table

    for title, rows in outcome.report.get("tables", {}).items():
        if title in outcome.report.get("plots", {}):
            console(stderr=False).print(plain_table(rows, title))


def run_all_command(
    overrides: Overrides = None,
    config: ConfigOption = None,
    multirun: Multirun = False,
    dry_run: DryRun = False,
    resume: Resume = True,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run all phases; print the gate table and what the run has made."""
    from agent_forge.cli.resuming import command_line
    from agent_forge.pipeline import run_all

    with one_line_errors(verbose):
        if ranks.size() > 1:
            raise ConfigError(
                "run-all starts its processes itself: leave torchrun out and set runtime.processes"
            )
        typed = Typed(overrides or [], config, dry_run=dry_run, resume=resume, as_json=as_json)
        if multirun:
            raise typer.Exit(_sweep(run_all.COMMAND, typed))
        run = run_all.compose_run(typed.overrides, config)
        if hint := run_all.larger_budget(run, typed.overrides, config):
            say(console(), hint)
        if run.goal != "size":
            say(console(), run_all.goal_line(run))
        if dry_run:
            from agent_forge.pipeline.estimate import estimate_run

            _show_estimates(estimate_run(run), as_json)
            return
        command = command_line("run-all", typed.overrides, config)
        _run_all(run, command, resume=resume, as_json=as_json)


def _sweep(command: str, typed: Typed) -> int:
    """Run a multirun; return the worst exit code of its jobs."""
    from agent_forge.cli.multirun import sweep

    if typed.dry_run:
        raise ConfigError("--dry-run checks one run: leave out -m and give each key one value")
    if not typed.resume:
        raise ConfigError(
            "--no-resume drops one earlier run, and every sweep has a directory of its "
            "own: leave it out"
        )
    return sweep(command, typed.overrides, typed.file, as_json=typed.as_json)


def _run_all(run: Any, command: str, *, resume: bool, as_json: bool) -> None:
    from agent_forge.cli.resuming import NotedCommand
    from agent_forge.pipeline import report
    from agent_forge.pipeline.run_all import final_checkpoint, run_all

    done: list[Any] = []

    def after_phase(outcome: Any) -> None:
        done.append(outcome)
        report.write(run.run_dir, done, command)

    outcomes: list[Any] = []
    try:
        with Display(as_json=as_json) as display:
            listener = NotedCommand(run.run_dir / ".forge", command).before(display)
            outcomes = run_all(run, listener=listener, resume=resume, after_phase=after_phase)
    finally:
        if done and not as_json:
            _show_run(run.run_dir, done, command, ended=len(done) == len(run.phases))
    failed = next((o for o in outcomes if o.status not in ("done", "rejected")), None)
    final, final_id = final_checkpoint(outcomes)
    if as_json:
        print_json_line(
            {"final": final, "id": final_id, "phases": [asdict(outcome) for outcome in outcomes]}
        )
    if failed is not None:
        _leave(failed.exit_code, failed.message)


def _show_run(run_dir: Path, outcomes: list[Any], command: str, *, ended: bool) -> None:
    """Print the table of the phases and what the run has made; how to go on where it stopped."""
    from agent_forge.cli.layout import command as in_lines
    from agent_forge.cli.tables import answer, gate_table
    from agent_forge.pipeline import report

    out = console(stderr=False)
    out.print(gate_table(outcomes))
    run = report.facts_of(run_dir, outcomes, command)
    for line in answer(run, run_dir / "report.html", out.width):
        out.print(line)
    if not ended or run.stopped:
        out.print("\n[bold]Go on[/bold]")
        for text in in_lines(command, out.width):
            out.print(text, style="cyan", markup=False)


def _show_estimates(estimates: list[Any], as_json: bool) -> None:
    if as_json:
        print_json([asdict(estimate) for estimate in estimates])
        return
    from agent_forge.cli.tables import estimate_table

    out = console(stderr=False)
    out.print(estimate_table(estimates))
    for estimate in estimates:
        for note in estimate.notes:
            say(out, f"{estimate.phase} · {note}")
    say(
        out,
        "Estimates, from parameter counts and a short speed test on this machine. Nothing was "
        "written.",
    )


def _leave(exit_code: int, message: str) -> None:
    if exit_code:
        say(console(), f"forge: {message}")
        raise typer.Exit(exit_code)
