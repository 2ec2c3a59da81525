"""Trials of mutants: copies of the repository, tests in forked processes, and which tests execute
which line.

A process is forked for each mutant from one that has imported torch and transformers, but nothing
of the package. A file of a copy is changed, the tests that execute the change run, quickest first,
and the first that fails ends the trial. Seconds are of processor time, so that they do not depend
on what else runs.
"""

import compileall
import contextlib
import hashlib
import importlib
import json
import os
import py_compile
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache as cached
from pathlib import Path
from typing import Any

import coverage
import pytest
from mutant_changes import Mutant, apply_mutant, statement_lines

COPIED = (
    "agent_forge", "tests", "conf", "scripts", "pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile",
)  # fmt: skip
PACKAGE = ("agent_forge", "conf")
WARM = (
    "numpy", "torch", "safetensors.torch", "hydra", "typer",
    "transformers.models.llama.modeling_llama", "transformers.tokenization_utils_tokenizers",
)  # fmt: skip


LONGEST_WAIT_SECONDS = 1200.0  # a trial that waits longer without working is ended


class Tree:
    """A copy of the repository at `root` in which one mutant at a time lives.

    Its compiled files are checked by content, not by time, so that a changed file is never mistaken
    for the compiled original, however quickly one change follows another.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        for old in files_below(folder, COPIED):
            if not (root / old.relative_to(folder)).is_file():
                old.unlink()
        for path in files_below(root, COPIED):
            copy = folder / path.relative_to(root)
            if not copy.is_file() or copy.read_bytes() != path.read_bytes():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        for link in [
            link for name in PACKAGE for link in (root / name).rglob("*") if link.is_symlink()
        ]:
            copy = folder / link.relative_to(root)  # agent_forge/conf is a link to the folder above
            if not copy.is_symlink():
                copy.symlink_to(link.readlink())
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        for name in PACKAGE:
            compileall.compile_dir(folder / name, quiet=2, invalidation_mode=mode)

    def digest(self, *names: str) -> str:
        """Return a hash of the named files and of all files below the named folders."""
        parts = [
            str(path.relative_to(self.folder)).encode() + b"\0" + path.read_bytes()
            for path in files_below(self.folder, names)
        ]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


def files_below(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the named files and all files below the named folders, without compiled ones."""
    below = [
        p
        for name in names
        for p in sorted((root / name).rglob("*"))
        if "__pycache__" not in p.parts
    ]
    return [path for path in [*(root / name for name in names), *below] if path.is_file()]


class TooLongError(Exception):
    """A test takes more processor time than is allowed while lines are noted."""


def processor_seconds() -> float:
    """Return the processor time of this process and of its ended children."""
    return sum(os.times()[:4])


class Watcher:
    """A pytest plugin: leaves out what is too slow; notes seconds, failures and executed lines.

    Fixtures that several tests share (module and session scope) are noted apart: whichever test
    happens to set one up, every test that uses it executes its lines and needs its seconds.
    """

    def __init__(self, tracer: coverage.Coverage | None = None, longest: float = 0.0) -> None:
        self.tracer, self.longest = tracer, longest
        self.context = ""
        self.started = 0.0
        self.seconds: dict[str, float] = {}  # seconds by test, without shared fixtures
        self.shared: dict[str, float] = {}  # seconds by shared fixture
        self.uses: dict[str, list[str]] = {}  # the shared fixtures of each test
        self.failed: list[str] = []

    def _switch(self, context: str) -> None:
        self.context = context
        if self.tracer:
            self.tracer.switch_context(context)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not _is_too_slow(item)]
        for item in items:
            fixtures = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
            used = [
                _shared_name(fixtures[name][-1]) for name in item.fixturenames if name in fixtures
            ]  # type: ignore[attr-defined]
            self.uses[item.nodeid] = [name for name in used if name]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._switch(nodeid)
        self.seconds[nodeid], self.started = 0.0, processor_seconds()
        if self.longest:
            signal.signal(signal.SIGPROF, _stop_the_test)
            signal.setitimer(signal.ITIMER_PROF, self.longest)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.longest:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
        self.seconds[nodeid] += processor_seconds() - self.started
        self._switch("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        name, before, started = _shared_name(fixturedef), self.context, processor_seconds()
        if not name:
            return (yield)
        self._switch(name)
        try:
            return (yield)
        finally:
            self._switch(before)
            self.shared[name] = processor_seconds() - started
            if before in self.seconds:
                self.seconds[before] -= self.shared[name]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"collecting {report.nodeid}")


def _stop_the_test(*_: object) -> None:
    raise TooLongError


def _shared_name(fixture: Any) -> str:
    """Return a name for a fixture that outlives a test, "" for one that does not or is pytest's
    own.
    """
    ours = fixture.scope != "function" and fixture.baseid.startswith("tests")
    return f"fixture {fixture.baseid}::{fixture.argname}" if ours else ""


def _is_too_slow(item: pytest.Item) -> bool:
    """Return whether the test takes minutes; leaving it out can only let more mutants survive."""
    return item.get_closest_marker("slow") is not None or "tiny_run" in item.fixturenames  # type: ignore[attr-defined]


@dataclass(slots=True)
class Process:
    """A forked process that runs tests in a tree, and the file that it leaves its answer in."""

    pid: int
    answer: Path
    started: float = field(default_factory=time.monotonic)

    def poll(self) -> dict[str, Any] | None:
        """Return the answer once the process has ended, else None; `signal` is in it where one
        ended the process.
        """
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        if self.answer.exists():
            return json.loads(self.answer.read_text())
        return {"code": f"no answer, status {status}", "signal": os.WTERMSIG(status), "failed": []}

    def stop(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def fork(
    tree: Tree,
    tests: list[str],
    file: str = "",
    lines_of: str = "",
    longest: float = 0.0,
    limit: float = 0.0,
) -> Process:
    """Run the tests in a forked process, which inherits the heavy libraries already imported.

    `file` is the changed file: it must be importable. `lines_of` is a folder whose lines are noted
    per test; tests of more than `longest` seconds fail then. limit: seconds of processor time after
    which the process ends. The answer has `code` (pytest's exit code), `failed`, and with lines
    what a Watcher notes.
    """
    answer = tree.folder / "answer.json"
    answer.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            become(tree.folder)
            if limit:
                resource.setrlimit(
                    resource.RLIMIT_CPU,
                    (int(processor_seconds() + limit) + 1, resource.RLIM_INFINITY),
                )
            content = json.dumps(_run_tests(tree.folder, tests, file, lines_of, longest))
            answer.with_suffix(".part").write_text(content)
            answer.with_suffix(".part").replace(answer)
        except BaseException:  # noqa: BLE001 a child must never go on as its parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    return Process(pid, answer)


def become(folder: Path) -> None:
    """Work in `folder` alone: output goes to a file there, imports come from there."""
    os.chdir(folder)
    log = os.open(folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)


def _run_tests(
    folder: Path, tests: list[str], file: str, lines_of: str, longest: float
) -> dict[str, Any]:
    sys.dont_write_bytecode = os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # type: ignore[assignment]
    if file:
        try:
            module = importlib.import_module(_module_name(file))
        except Exception:  # noqa: BLE001 whatever the change breaks
            return {"code": 1, "failed": [f"importing {file}"]}
        if Path(str(module.__file__)) != folder / file:
            return {"code": f"imported {module.__file__} instead", "failed": []}
    # Plugins of pytest are among what is imported already; nothing of theirs is rewritten.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    arguments = ["-q", *quiet, "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}", *tests]
    if not lines_of:
        watcher = Watcher()
        code = pytest.main([*arguments, "-x", "--no-header"], plugins=[watcher])
        return {"code": int(code), "failed": watcher.failed}
    sys.dont_write_bytecode = False  # the compiled tests are of use to every mutant
    tracer = coverage.Coverage(data_file=None, source=[str(folder / lines_of)], config_file=False)
    watcher = Watcher(tracer, longest)
    tracer.start()
    code = pytest.main(arguments, plugins=[watcher])
    tracer.stop()
    data = tracer.get_data()
    lines = {
        str(Path(name).relative_to(folder)): {
            str(line): sorted(set(those) - {""})
            for line, those in data.contexts_by_lineno(name).items()
        }
        for name in data.measured_files()
    }
    noted = {name: getattr(watcher, name) for name in ("failed", "seconds", "shared", "uses")}
    return {"code": int(code), "lines": lines, **noted}


def _module_name(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def warm_up() -> None:
    """Import the heavy libraries once, as tests/conftest.py would, so that forked processes have
    them.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not Path("/dev/nvidia0").exists():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in WARM:
        importlib.import_module(name)


@dataclass(slots=True)
class Coverage:
    """Which tests execute which line of a room, and how long each test takes (seconds)."""

    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)
    uses: dict[str, list[str]] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Take over what was measured of one test file."""
        for name in ("seconds", "shared", "uses"):
            getattr(self, name).update(record[name])
        for file, by_line in record["lines"].items():
            for line, tests in by_line.items():
                self.lines.setdefault(file, {}).setdefault(int(line), set()).update(tests)

    def tests_of(self, mutant: Mutant, source: str) -> list[str]:
        """Return the tests that execute the statement of the mutant, quickest first.

        For a statement that importing the module executes: the tests that execute any line of the
        file.
        """
        lines = self.lines.get(mutant.file, {})
        chosen = set().union(
            *(lines.get(n, set()) for n in statement_lines(source, mutant) or lines)
        )
        return sorted(
            (t for t in self.seconds if t in chosen), key=lambda test: (self.cost([test]), test)
        )

    def choose(self, mutant: Mutant, source: str, seconds: float) -> None:
        """Choose the mutant's tests, quickest first until they would take more than `seconds`, but
        at least one.
        """
        tests, mutant.chosen = self.tests_of(mutant, source), []
        for test in tests:
            if mutant.chosen and self.cost([*mutant.chosen, test]) > seconds:
                break
            mutant.chosen.append(test)
        mutant.tests, mutant.left_out, mutant.killer = (
            len(mutant.chosen),
            len(tests) - len(mutant.chosen),
            "",
        )

    def cost(self, tests: list[str]) -> float:
        """Return the seconds that the tests take together, each shared fixture counted once."""
        fixtures = {name for test in tests for name in self.uses[test]}
        return sum(self.seconds[test] for test in tests) + sum(
            self.shared.get(f, 0.0) for f in fixtures
        )


def test_files(root: Path, named: Sequence[str]) -> list[str]:
    """Return the files with tests among the named files and folders."""
    return [
        str(p.relative_to(root)) for p in files_below(root, named) if p.name.startswith("test_")
    ]


def measure_coverage(
    tree: Tree, folder: str, tests: Sequence[str], cache: Path, longest: float = 0.0
) -> Coverage:
    """Run tests ("file" or "file::name") once, unchanged, where `cache` does not know them already.

    Only lines of the files below `folder` count. A test that takes more than `longest` seconds
    counts as one that fails. Raises SystemExit when pytest cannot run. Tests that fail unchanged
    are named and left out.
    """
    records = json.loads(cache.read_text()) if cache.exists() else {}
    keys = {test: _key(tree, folder, test) for test in tests}
    missing = [
        test for test in tests if records.get(f"{folder} {test}", {}).get("key") != keys[test]
    ]
    if missing:
        process = fork(tree, missing, lines_of=folder, longest=longest)
        while (answer := process.poll()) is None:
            time.sleep(0.1)
        if answer["code"] not in (0, 1):
            raise SystemExit(
                f"{folder}: pytest ended with {answer['code']}; see {tree.folder / 'output.log'}"
            )
        for test in answer["failed"]:
            print(f"{folder}: fails unchanged, left out: {test}", file=sys.stderr)
        for test in missing:
            records[f"{folder} {test}"] = record_of(tree, folder, test, answer)
        cache.write_text(json.dumps(records))
    cover = Coverage()
    for test in tests:
        cover.add(records[f"{folder} {test}"])
    return cover


def record_of(tree: Tree, folder: str, test: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return what the answer says of a test, as the coverage cache keeps it: lines of the files in
    `folder` alone.
    """
    part = _part(answer, test)
    part["lines"] = {
        file: lines for file, lines in part["lines"].items() if file.startswith(folder + "/")
    }
    return {"key": _key(tree, folder, test), **part}


def _key(tree: Tree, folder: str, test: str) -> str:
    """Return a hash of all that a measurement depends on."""
    return f"{folder} {_common(tree)} {tree.digest(test.partition('::')[0])}"


@cached
def _common(tree: Tree) -> str:
    return tree.digest(*PACKAGE, *_not_tests(tree))


def _not_tests(tree: Tree) -> list[str]:
    """Return the files below tests/ that hold no tests but what they share."""
    paths = [
        path for path in files_below(tree.folder, ["tests"]) if not path.name.startswith("test_")
    ]
    return [str(path.relative_to(tree.folder)) for path in paths]


def _part(answer: dict[str, Any], selection: str) -> dict[str, Any]:
    """Return what the answer says of the tests in `selection` that passed, shared fixtures resolved to
    tests.
    """
    failed = set(answer["failed"])
    seconds = {
        t: s
        for t, s in answer["seconds"].items()
        if selection in (t.split("::")[0], t.split("[")[0]) and t not in failed
    }
    uses = {test: answer["uses"][test] for test in seconds}
    users = {test: [test] for test in seconds}
    for test, fixtures in uses.items():
        for fixture in fixtures:
            users.setdefault(fixture, []).append(test)
    lines = {
        name: {
            line: tests
            for line, those in by_line.items()
            if (tests := sorted({t for c in those for t in users.get(c, [])}))
        }
        for name, by_line in answer["lines"].items()
    }
    return {"seconds": seconds, "shared": answer["shared"], "uses": uses, "lines": lines}


@dataclass(slots=True)
class Trial:
    """A mutant that stands in a tree while its tests run there."""

    tree: Tree
    mutant: Mutant
    source: str
    process: Process
    limit_seconds: float

    def ended(self) -> bool:
        """Return whether the fate is known; if so, it is noted and the tree is as before."""
        answer, mutant = self.process.poll(), self.mutant
        mutant.seconds = round(time.monotonic() - self.process.started, 2)
        if answer is None:
            if time.monotonic() - self.process.started < LONGEST_WAIT_SECONDS:
                return False
            self.process.stop()
            mutant.fate, mutant.killer = "killed", f"no end within {LONGEST_WAIT_SECONDS:.0f} s"
        elif answer.get("signal") == signal.SIGXCPU:
            mutant.fate, mutant.killer = (
                "killed",
                f"no end within {self.limit_seconds:.0f} s of processor time",
            )
        elif answer["code"] in (1, 2) and answer["failed"]:
            mutant.fate, mutant.killer = "killed", answer["failed"][0]
        else:
            mutant.fate = "survived" if answer["code"] == 0 else f"not judged: {answer['code']}"
        (self.tree.folder / mutant.file).write_text(self.source, encoding="utf-8")
        return True


def start_trial(tree: Tree, mutant: Mutant, cover: Coverage, seconds: float) -> Trial | None:
    """Change the tree and start the tests; None where no test executes the mutant.

    Tests are taken quickest first until they would take more than `seconds`, but at least one.
    """
    path = tree.folder / mutant.file
    source = path.read_text(encoding="utf-8")
    cover.choose(mutant, source, seconds)
    if not mutant.chosen:
        mutant.fate = "not executed by any test"
        return None
    path.write_text(apply_mutant(source, mutant) or source, encoding="utf-8")
    limit = 30 + 3 * cover.cost(mutant.chosen)
    return Trial(tree, mutant, source, fork(tree, mutant.chosen, mutant.file, limit=limit), limit)
