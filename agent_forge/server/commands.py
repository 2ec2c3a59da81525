"""A job as an argument list of `forge`: what clients asked for, and where the server puts it.

The server names the directories (`out`, `run_dir`, the cache): what a client sends never does.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from agent_forge.config.overrides import quote
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.pipeline.catalogue import phases
from agent_forge.server.jobs import RUN_ALL, Job

# Settings that the server gives itself.
OWN_SETTINGS = ("out", "run_dir", "data.cache", "sources", "runtime.background")
# Commands beside the phases. Their arguments are hidden overrides, because they name directories;
# the server adds where they write.
IMPORT, MERGE, EXPORT = "import", "merge", "export"
TOOLS = (IMPORT, MERGE, EXPORT)
# Format of an export that is one file -> how its name ends.
SUFFIXES = {"gguf": ".gguf", "packed": ".bin"}


def known_commands() -> list[str]:
    """Return what a job may run: every phase, run-all, and what makes models without a phase."""
    return [*phases(), RUN_ALL, *TOOLS]


def check_command(command: str) -> None:
    """Raise ConfigError for a command that is neither a phase nor run-all."""
    if command not in known_commands():
        raise ConfigError(
            f"no phase '{command}'{did_you_mean(command, known_commands())}; "
            f"known: {', '.join(known_commands())}"
        )


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError for a setting that only the server gives, and for Hydra's own."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~").partition("@")[0]
        if key in OWN_SETTINGS or re.fullmatch(r"\w+\.(out|sources|data\.cache)", key):
            raise ConfigError(f"{override}: the server sets {key} itself; leave it out")
        if key.startswith("hydra") or "_target_" in override:
            raise ConfigError(f"{override}: not accepted; settings name phases and methods only")


def place(root: Path, job_id: str, command: str) -> tuple[Path, Path]:
    """Return (out, record) of a job: where it writes, and where its record lies."""
    directory = job_directory(root, job_id)
    if command == RUN_ALL:
        return directory / "run", directory / "run" / ".forge"
    return directory / command, directory / ".forge" / command


def job_directory(root: Path, job_id: str) -> Path:
    """Return the directory that holds everything of a job."""
    return root / "jobs" / job_id


def arguments(job: Job, root: Path, sources: Sequence[Path]) -> list[str]:
    """Return the arguments of `forge` for a job. sources: the directories of its checkpoints."""
    if job.command in TOOLS:
        return [job.command, *job.hidden_overrides, "--out", _output(job), "--json"]
    where = "run_dir" if job.command == RUN_ALL else "out"
    settings = [
        f"{where}={quote(job.out)}", f"data.cache={quote(str(root / 'cache'))}",
        "runtime.background=true",
    ]  # fmt: skip
    if sources:
        listed = ",".join(quote(str(path)) for path in sources)
        key = f"{run_phases(job)[0]}.sources" if job.command == RUN_ALL else "sources"
        settings.append(f"{key}=[{listed}]")
    return [job.command, *job.overrides, *job.hidden_overrides, *settings, "--json"]


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


def processes_needed(overrides: Sequence[str]) -> int:
    """Return how many processes train together in a job with these settings."""
    for override in reversed(overrides):
        key, _, value = override.partition("=")
        if key.lstrip("+") == "runtime.processes" and value.strip().isdigit():
            return int(value)
    return 1
