"""A job as an argument list of `forge`: what clients asked for, and where the server puts it.

The server names every directory (`out`, `run_dir`, the cache, sources, data): no text that a client
sends reaches the disk as a path.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from agent_forge.config.overrides import quote
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.server.catalogue import phases
from agent_forge.server.jobs import RUN_ALL, Job

# Commands beside the phases. Their arguments are hidden overrides, because they name directories;
# the server adds where they write. They leave neither events nor an outcome.
IMPORT, MERGE, EXPORT = "import", "merge", "export"
TOOLS = (IMPORT, MERGE, EXPORT)
# Format of an export that is one file -> how its name ends.
SUFFIXES = {"gguf": ".gguf", "packed": ".bin"}
# Settings that the server gives itself, alone or behind a phase's name.
OWN_SETTINGS = (
    "out", "run_dir", "sources", "gate.base", "data.cache", "data.text", "data.rows",
    "runtime.background",
)  # fmt: skip
# Keys whose value could be a mapping with one of those inside.
PARTS = ("data", "gate", "runtime")
OVERRIDE = re.compile(r"\+{0,2}[A-Za-z_][\w./@-]*=.*|~[A-Za-z_][\w./@-]*", re.DOTALL)
PATH = re.compile(r"(?:^|[\[,{:'\"\s=])(?:/\w|~/|\.\.?(?:/|$)|[A-Za-z]:\\|\\\\|file:)")


def known_commands() -> list[str]:
    """Return what a job may run: every phase, run-all, and what makes models without a phase."""
    return [*phases(), RUN_ALL, *TOOLS]


def check_command(command: str) -> None:
    """Raise ConfigError for a command that no job runs."""
    if command not in known_commands():
        raise ConfigError(
            f"no phase '{command}'{did_you_mean(command, known_commands())}; "
            f"known: {', '.join(known_commands())}"
        )


def check_overrides(command: str, overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override of a client that could name a place on the disk.

    Settings of the server's own, paths in values, options of the command line, Hydra's settings and
    interpolations are refused. Whether the rest composes, the job finds out.
    """
    if command in TOOLS and overrides:
        raise ConfigError(f"{command} has no settings; leave {overrides[0]!r} out")
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~").partition("@")[0]
        parts = key.split(".")
        inner = ".".join(parts[1:]) if parts[0] in phases() else key
        if OVERRIDE.fullmatch(override) is None or "\0" in override:
            raise ConfigError(f"{override!r} is not KEY=VALUE; for example gate.items=64")
        if key.startswith("hydra") or "_target_" in override or "${" in value:
            raise ConfigError(f"{override}: not accepted; settings name phases and methods only")
        if inner in OWN_SETTINGS or (value.lstrip().startswith("{") and inner in ("", *PARTS)):
            raise ConfigError(f"{override}: the server sets {', '.join(OWN_SETTINGS)} itself")
        if PATH.search(value):
            raise ConfigError(f"{override}: a value must not name a path; models and data have ids")


def place(root: Path, job_id: str, command: str) -> tuple[Path, Path]:
    """Return (out, record) of a job: where it writes, and where its record lies."""
    directory = job_directory(root, job_id)
    if command == RUN_ALL:
        return directory / "run", directory / "run" / ".forge"
    return directory / command, directory / ".forge" / command


def job_directory(root: Path, job_id: str) -> Path:
    """Return the directory that holds everything of a job."""
    return root / "jobs" / job_id


def attempts_directory(root: Path, job_id: str) -> Path:
    """Return the directory of a job's logs and exit files."""
    return job_directory(root, job_id) / ".attempts"


def arguments(
    job: Job, root: Path, sources: Sequence[Path], *, background: bool = True
) -> list[str]:
    """Return the arguments of `forge` for a job.

    sources: the directories of its checkpoints. background: it gives way to everything else.
    """
    if job.command in TOOLS:
        return [job.command, *job.hidden_overrides, "--out", _output(job), "--json"]
    where = "run_dir" if job.command == RUN_ALL else "out"
    settings = [
        f"{where}={quote(job.out)}", f"data.cache={quote(str(root / 'cache'))}",
        f"runtime.background={str(background).lower()}",
    ]  # fmt: skip
    if sources:
        listed = ",".join(quote(str(path)) for path in sources)
        key = f"{run_phases(job)[0]}.sources" if job.command == RUN_ALL else "sources"
        settings.append(f"{key}=[{listed}]")
    # Behind the two dashes nothing is taken for an option.
    return [job.command, "--json", "--", *job.overrides, *job.hidden_overrides, *settings]


def _output(job: Job) -> str:
    """Return what a command without settings writes: a directory, or the one file of an export."""
    options = dict(pairwise(job.hidden_overrides))
    return f"{job.out}{SUFFIXES.get(options.get('--format', ''), '')}"


def run_phases(job: Job) -> list[str]:
    """Return the phases of a job, in order."""
    if job.command != RUN_ALL:
        return [job.command]
    for override in reversed([*job.overrides, *job.hidden_overrides]):
        key, _, value = override.partition("=")
        if key.lstrip("+") == "phases":
            return re.findall(r"\w+", value)
    return list(phases())


def processes_needed(job: Job) -> int:
    """Return how many processes train together in a job."""
    for override in reversed([*job.overrides, *job.hidden_overrides]):
        key, _, value = override.partition("=")
        if key.lstrip("+") == "runtime.processes" and value.strip().isdigit():
            return int(value)
    return 1
