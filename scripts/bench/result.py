"""What a bench measured: the record, where it was measured, and its file in results/."""

import json
import math
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
NOT_NOTED = "not noted"


@dataclass(slots=True, kw_only=True)
class Figure:
    """One measured figure beside its bar.

    figure: None where a verdict or a text is all that was measured. interval: 95%, None where it
    is not known. n: what was counted ("8,176 tokens"). met: None where there is no bar.
    key: a short name by which README's tables find it.
    """

    claim: str
    figure: float | None
    unit: str = ""
    interval: tuple[float, float] | None = None
    n: str = ""
    bar: str = ""
    met: bool | None = None
    key: str = ""

    def __post_init__(self) -> None:
        """Take an interval as JSON holds it; one that is not finite is none.

        Raises ValueError for one that is upside down.
        """
        if self.interval is not None and not all(map(math.isfinite, self.interval)):
            self.interval = None
        if self.interval is not None:
            low, high = self.interval
            if low > high:
                raise ValueError(f"{self.claim}: interval [{low}, {high}] is upside down")
            self.interval = (low, high)


@dataclass(slots=True, kw_only=True)
class Result(Figure):
    """The headline of one run, its further figures, and all that is needed to run it again.

    figures: more figures of the same run. points: name -> [x, y] pairs, for drawings. note: what a
    reader must know before believing it. tables: Markdown tables, written beside the JSON.
    blocks: Markdown that README holds as it is, by name.
    """

    topic: str
    machine: str
    date: str
    commit: str
    command: str
    note: str = ""
    figures: list[Figure] = field(default_factory=list)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)
    tables: str = ""

    def every(self) -> list[Figure]:
        """Return the headline and the further figures."""
        return [self, *self.figures]

    def find(self, key: str) -> Figure:
        """Return the figure with a key. Raises KeyError when none has it."""
        for figure in self.every():
            if figure.key == key:
                return figure
        raise KeyError(f"no figure {key!r}; known: {[f.key for f in self.every() if f.key]}")


def bars_met(figures: Sequence[Figure]) -> dict[str, Any]:
    """Return how many of the figures that have a bar meet it, as the head of a Result."""
    judged = [figure.met for figure in figures if figure.met is not None]
    return {
        "figure": float(sum(judged)),
        "unit": f"of {len(judged)} bars met",
        "met": all(judged) if judged else None,
    }


def here(name: str, arguments: Sequence[str]) -> dict[str, str]:
    """Return machine, date, commit and command of a bench that runs now."""
    return {
        "machine": machine(),
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": shlex.join(["python", "-m", "scripts.bench", "run", name, *arguments]),
    }


def machine() -> str:
    """Return the processor, its cores that we may use, and the operating system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {names[0] if names else platform.machine()}, {platform.system()}"


def commit() -> str:
    """Return the short hash of the tree, "+ changes" where files differ from it."""

    def git(*command: str) -> str:
        if shutil.which("git") is None:
            return ""
        done = subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    name = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{name or NOT_NOTED}{' + changes' if changed else ''}"


def write(name: str, result: Result, folder: Path = RESULTS) -> Path:
    """Write NAME.json, and NAME.md with the tables where there are any; return the JSON's path."""
    content = asdict(result)
    tables = content.pop("tables")
    folder.mkdir(parents=True, exist_ok=True)
    if tables:
        head = f"# {result.claim}\n\n`{result.command}`, {result.date}, {result.machine}\n\n"
        (folder / f"{name}.md").write_text(head + tables.rstrip() + "\n", encoding="utf-8")
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> Result:
    """Return the result in a file. Raises TypeError for a key that is not known, or one missing."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    figures = [Figure(**figure) for figure in content.pop("figures", [])]
    return Result(figures=figures, **content)


def read_all(folder: Path = RESULTS) -> dict[str, Result]:
    """Return all results by name."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
