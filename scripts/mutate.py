"""Mutation run over the numeric rooms: `python scripts/mutate.py [--mutants 200] [--seed 0] [--rooms merge codecs …]`.

Changes one place of the code at a time (a comparison, a sign, a constant, an axis, a term), runs the tests that execute that
line, and prints the share of changes that some test notices, per room, with every survivor. Works on a copy of the
repository without reference files beside it, so it shows what a fresh clone proves by itself. `make mutants` runs it.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

import coverage

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("agent_forge", "tests", "conf", "scripts", "pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile")
# Room: the folder whose lines are changed, and the tests that are asked.
ROOMS = {
    "merge": ("agent_forge/merge", ["tests/merge"]),
    "codecs": ("agent_forge/codecs", ["tests/codecs", "tests/models/test_compressed.py"]),
    "models": ("agent_forge/models", ["tests/models"]),
    "learn": ("agent_forge/learn", ["tests/learn"]),
    "evaluate": ("agent_forge/evaluate", ["tests/evaluate", "tests/pipeline/test_gate.py"]),
    "search": ("agent_forge/search", ["tests/search"]),
    "checkpoint": ("agent_forge/checkpoint", ["tests/checkpoint"]),
    "bitnet": ("agent_forge/phases/bitnet", ["tests/phases/test_bitnet.py"]),
    "train": ("agent_forge/phases/train", ["tests/phases/test_train.py"]),
    "quietstar": ("agent_forge/phases/quietstar", ["tests/phases/test_quietstar.py"]),
    "bake": ("agent_forge/phases/bake", ["tests/phases/test_bake.py"]),
    "adas": ("agent_forge/phases/adas", ["tests/phases/test_adas.py"]),
    "compress": ("agent_forge/phases/compress", ["tests/phases/test_compress.py"]),
}
SECONDS_PER_MUTANT = 90.0  # tests of one mutant, quickest first; what does not fit is counted and printed

COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
}  # fmt: skip
SIGNS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
EPSILON = 1e-6  # smaller constants guard a division; twice as much guards as well
NOT_ARITHMETIC = (ast.Raise, ast.Assert, ast.JoinedStr, ast.AnnAssign, ast.arguments, ast.Import, ast.ImportFrom)


@dataclass(slots=True, kw_only=True)
class Mutant:
    """One change: `old` becomes `new` in `file` at (line, column), columns counted in bytes of UTF-8."""

    room: str
    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    kind: str
    old: str
    new: str
    fate: str = ""  # killed, survived, or not executed by any test
    tests: int = 0


def find_mutants(room: str, folder: str) -> Iterator[Mutant]:
    """Yield every possible change in the Python files below `folder`."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        name = str(path.relative_to(ROOT))
        for node in _arithmetic(ast.parse(source)):
            for kind, start, end, new in _changes(node, source):
                old = _between(source, start, end)
                if old.strip() != new:
                    yield Mutant(
                        room=room, file=name, line=start[0], column=start[1], end_line=end[0], end_column=end[1],
                        kind=kind, old=old, new=new,
                    )  # fmt: skip


def _arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes outside of error messages, annotations of fields, argument lists and type expressions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.AnnAssign) and child.value is not None:
            yield child.value
            yield from _arithmetic(child.value)
        elif not isinstance(child, NOT_ARITHMETIC):
            yield child
            yield from _arithmetic(child)


Place = tuple[int, int]


def _changes(node: ast.AST, source: str) -> Iterator[tuple[str, Place, Place, str]]:
    """Yield (kind, start, end, new text) for the node; the source between start and end is replaced."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield "comparison", _end(node.left), _start(node.comparators[0]), f" {COMPARISONS[type(node.ops[0])]} "
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS and not _is_text(node):
        between = _between(source, _end(node.left), _start(node.right))
        if between.count("(") == between.count(")"):
            yield "sign", _end(node.left), _start(node.right), f" {SIGNS[type(node.op)]} "
        if isinstance(node.op, ast.Add | ast.Sub):
            yield "dropped term", _start(node), _end(node), _between(source, _start(node.left), _end(node.left))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", _start(node), _end(node), _between(source, _start(node.operand), _end(node.operand))
    if isinstance(node, ast.keyword) and node.arg in ("dim", "axis") and _is_int(node.value):
        value = ast.literal_eval(node.value)
        yield "axis", _start(node.value), _end(node.value), "1" if value == 0 else "0"
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 1 << 16:
        yield "off by one", _start(node), _end(node), str(node.value + 1)
    if isinstance(node, ast.Constant) and type(node.value) is float and not 0 < abs(node.value) < EPSILON:
        yield "constant", _start(node), _end(node), repr(node.value * 2 if node.value else 1.0)


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str)) for s in sides
    )


def _is_int(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and type(inner.value) is int


def _start(node: ast.AST) -> Place:
    return node.lineno, node.col_offset  # type: ignore[attr-defined]


def _end(node: ast.AST) -> Place:
    return node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]


def _between(source: str, start: Place, end: Place) -> str:
    lines = [line.encode() for line in source.splitlines(keepends=True)[start[0] - 1 : end[0]]]
    if len(lines) == 1:
        return lines[0][start[1] : end[1]].decode()
    return b"".join([lines[0][start[1] :], *lines[1:-1], lines[-1][: end[1]]]).decode()


def apply_mutant(source: str, mutant: Mutant) -> str | None:
    """Return the changed source, or None where the change is no valid Python (parentheses between the operands)."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    first, last = lines[mutant.line - 1], lines[mutant.end_line - 1]
    middle = first[: mutant.column] + mutant.new.encode() + last[mutant.end_column :]
    changed = b"".join([*lines[: mutant.line - 1], middle, *lines[mutant.end_line :]]).decode()
    try:
        before, after = ast.dump(ast.parse(source)), ast.dump(ast.parse(changed))
    except SyntaxError:
        return None
    return changed if after != before else None


class Tree:
    """A copy of the repository in which one mutant at a time lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, folder / name)

    def pytest(self, arguments: list[str], seconds: float) -> int | None:
        """Return pytest's exit code, or None when it took longer than `seconds`."""
        environment = {
            **os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        try:
            return subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return None


@dataclass(slots=True)
class Coverage:
    """Which tests execute which line, and how long each test takes (seconds)."""

    by_line: dict[str, dict[int, set[str]]]
    seconds: dict[str, float]

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests that execute any line of the mutant, quickest first; for import-time lines those of its file."""
        lines = self.by_line.get(mutant.file, {})
        chosen = set().union(*(lines.get(n, set()) for n in range(mutant.line, mutant.end_line + 1)))
        if not chosen - {""} and "" in chosen:
            chosen = set().union(*lines.values())
        return sorted(chosen - {""}, key=lambda test: (self.seconds.get(test, 1.0), test))


def measure_coverage(tree: Tree, room: str) -> Coverage:
    """Run the room's tests once, unchanged. Raises SystemExit when they fail: a mutant could not be told from that."""
    folder, tests = ROOMS[room]
    data, report = tree.folder / f".coverage-{room}", tree.folder / f"{room}.xml"
    settings = tree.folder / f"{room}.ini"
    settings.write_text(f"[run]\ndata_file = {data}\nsource = {tree.folder / folder}\n")
    arguments = [
        *tests,
        "--cov",
        f"--cov-config={settings}",
        "--cov-context=test",
        "--cov-report=",
        f"--junitxml={report}",
    ]
    code = tree.pytest([*arguments, "-o", "junit_family=xunit1"], seconds=3600)
    if code != 0:
        raise SystemExit(f"{room}: its tests do not pass unchanged (pytest exit {code}); mend them first")
    return Coverage(_lines(data, tree.folder), _durations(report))


def _lines(data_file: Path, folder: Path) -> dict[str, dict[int, set[str]]]:
    data = coverage.CoverageData(str(data_file))
    data.read()
    return {
        str(Path(file).relative_to(folder)): {
            line: {name.partition("|")[0] for name in names} for line, names in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }


def _durations(report: Path) -> dict[str, float]:
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {f"{case.get('file')}::{case.get('name')}": float(case.get("time", 0)) for case in cases}


def judge_mutant(tree: Tree, mutant: Mutant, cover: Coverage) -> Mutant:
    """Return the mutant with its fate: killed when a test fails, does not end, or the module no longer imports."""
    tests, chosen, budget = cover.tests_of(mutant), [], SECONDS_PER_MUTANT
    for test in tests:
        budget -= cover.seconds.get(test, 1.0)
        if chosen and budget < 0:
            break
        chosen.append(test)
    mutant.tests = len(chosen)
    if not chosen:
        mutant.fate = "not executed by any test"
        return mutant
    path = tree.folder / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(apply_mutant(source, mutant) or source, encoding="utf-8")
    try:
        code = tree.pytest(["-x", "--no-header", *chosen], seconds=4 * SECONDS_PER_MUTANT)
    finally:
        path.write_text(source, encoding="utf-8")
    mutant.fate = "survived" if code == 0 else "killed"
    return mutant


def sample(rooms: list[str], count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants in all, the same number per room where a room has them, drawn with `seed`."""
    share, chosen = -(-count // len(rooms)), []
    for room in rooms:
        every = list(find_mutants(room, ROOMS[room][0]))
        random.Random(f"{seed} {room}").shuffle(every)
        sources = {m.file: (ROOT / m.file).read_text(encoding="utf-8") for m in every}
        valid = (m for m in every if apply_mutant(sources[m.file], m) is not None)
        chosen += [m for m, _ in zip(valid, range(share), strict=False)]
    return chosen


def run(mutants: list[Mutant], jobs: int, folder: Path) -> Iterator[Mutant]:
    """Yield the mutants as their fates are known; `jobs` copies of the repository work at once."""
    trees: SimpleQueue[Tree] = SimpleQueue()
    for number in range(jobs):
        trees.put(Tree(folder / str(number)))
    first = trees.get()
    covers = {room: measure_coverage(first, room) for room in dict.fromkeys(m.room for m in mutants)}
    trees.put(first)

    def work(mutant: Mutant) -> Mutant:
        tree = trees.get()
        try:
            return judge_mutant(tree, mutant, covers[mutant.room])
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(jobs) as threads:
        yield from threads.map(work, mutants)


def print_table(mutants: list[Mutant]) -> None:
    """Print the share killed per room and the survivors."""
    print("\n| room | mutants | killed | share |\n|---|---|---|---|")
    for room in [*dict.fromkeys(m.room for m in mutants), "all"]:
        those = [m for m in mutants if room in (m.room, "all")]
        killed = sum(m.fate == "killed" for m in those)
        print(f"| {room} | {len(those)} | {killed} | {killed / len(those):.0%} |")
    print("\nSurvivors:")
    for m in mutants:
        if m.fate != "killed":
            print(f"- {m.file}:{m.line} {m.kind}: `{m.old.strip()}` → `{m.new.strip()}` ({m.fate}; {m.tests} tests)")


def main() -> int:
    """Draw, run, print; the exit code is 0 whatever survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=200, help="how many changes, over all rooms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), choices=list(ROOMS))
    parser.add_argument("--jobs", type=int, default=2, help="copies of the repository that work at once")
    parser.add_argument("--out", type=Path, help="write every mutant with its fate as JSON")
    arguments = parser.parse_args()
    mutants, started = sample(arguments.rooms, arguments.mutants, arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for number, mutant in enumerate(run(mutants, arguments.jobs, Path(folder)), start=1):
            place = f"{mutant.file}:{mutant.line}"
            print(f"{number}/{len(mutants)} {place} {mutant.kind}: {mutant.fate}", file=sys.stderr, flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps([asdict(m) for m in mutants], indent=1) + "\n")
    print_table(mutants)
    print(f"\nseed {arguments.seed}, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
