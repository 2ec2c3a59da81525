"""Many mutants in one pytest session: tests are collected and measured once, then each mutant is a
forked copy of it.

In the copy the code of the changed function is put into the live function objects, caches of the
package's functions are emptied, and the tests that execute it run again. What importing a module
has computed stays as it was, so this can only let more mutants survive; changes outside of
functions are left to trials of their own. So are those whose copy waits without working: a library
that started threads before the copy was made waits for them for ever, whatever the mutant does.
"""

import contextlib
import functools
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import coverage
import pytest
from mutant_changes import Mutant, apply_mutant, statement_lines
from mutant_trials import Coverage, Tree, Watcher, become, processor_seconds, record_of

Note = Callable[[Mutant], None]
LONGEST_REST_SECONDS = 30.0  # a copy that waits longer without working is ended


class Session(Watcher):
    """A pytest plugin that measures all collected tests, then judges the mutants."""

    def __init__(
        self, tree: Tree, tracer: coverage.Coverage, longest: float, mutants: Sequence[Mutant]
    ) -> None:
        super().__init__(tracer, longest)
        self.tree, self.mutants = tree, mutants
        self.measured: Callable[[dict[str, Any]], dict[str, Coverage]] = lambda _: {}
        self.note: Note = lambda _: None
        self.budget = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        assert self.tracer is not None
        items = session.items
        self.tracer.start()
        for place, item in enumerate(items):
            # Never "no next item": that would end the fixtures of the session.
            item.config.hook.pytest_runtest_protocol(
                item=item, nextitem=items[(place + 1) % len(items)]
            )
        self.tracer.stop()
        # Fixtures of modules end, so that each copy makes them anew; the session's fixtures stay.
        session._setupstate.teardown_exact(SimpleNamespace(listchain=lambda: [session]))  # type: ignore[arg-type]
        data = self.tracer.get_data()
        lines = {
            str(Path(name).relative_to(self.tree.folder)): {
                str(line): sorted(set(those) - {""})
                for line, those in data.contexts_by_lineno(name).items()
            }
            for name in data.measured_files()
        }
        noted = {name: getattr(self, name) for name in ("failed", "seconds", "shared", "uses")}
        covers = self.measured({"code": 0, "lines": lines, **noted})
        self.tracer, self.longest = None, 0.0
        live = _functions(self.tree.folder)
        by_name = {item.nodeid: item for item in items}
        for mutant in self.mutants:
            if self._judge(mutant, covers[mutant.room], live, by_name):
                self.note(mutant)
        return True

    def _judge(
        self,
        mutant: Mutant,
        cover: Coverage,
        live: dict[str, list[FunctionType]],
        items: dict[str, pytest.Item],
    ) -> bool:
        """Judge one mutant in a forked copy; return whether it has a fate."""
        path = self.tree.folder / mutant.file
        source = path.read_text(encoding="utf-8")
        if statement_lines(source, mutant) is None:
            return False
        cover.choose(mutant, source, self.budget)
        if not mutant.chosen:
            mutant.fate = "not executed by any test"
            return True
        changed, before = apply_mutant(source, mutant) or source, processor_seconds()
        limit = 30 + 3 * cover.cost(mutant.chosen)
        reading, writing = os.pipe()
        path.write_text(changed, encoding="utf-8")
        pid = os.fork()
        if pid == 0:
            self._in_the_copy(
                changed, path, live, [items[name] for name in mutant.chosen], limit, writing
            )
        os.close(writing)
        answer = answer_of(pid, reading)
        _, status = os.waitpid(pid, 0)
        path.write_text(source, encoding="utf-8")
        mutant.seconds = round(processor_seconds() - before, 2)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
            mutant.fate, mutant.killer = "killed", f"no end within {limit:.0f} s of processor time"
        elif not answer or answer == "nothing to change":
            return False
        else:
            failed = json.loads(answer)
            mutant.fate, mutant.killer = ("killed", failed[0]) if failed else ("survived", "")
        return True

    def _in_the_copy(
        self, changed: str, path: Path, live: dict[str, list[FunctionType]], items: list[pytest.Item], limit: float,
        writing: int,
    ) -> None:  # fmt: skip
        """Put the changed code in place, run the tests until one fails, and end the process."""
        try:
            os.setsid()
            soft = int(processor_seconds() + limit) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
            self.failed = []
            if not put_in_place(changed, path, live.get(str(path), [])):
                os.write(writing, b"nothing to change")
                return
            for cached in caches(self.tree.folder):
                cached.cache_clear()
            items[0].session._setupstate.teardown_exact(items[0])  # type: ignore[attr-defined]
            for item, after in zip(items, [*items[1:], items[0]], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if self.failed:
                    break
            os.write(writing, json.dumps(self.failed[:1]).encode())
        finally:
            os._exit(0)


def answer_of(pid: int, reading: int) -> str:
    """Return what the copy with number `pid` writes into the pipe; "" where it ends without a word
    or is ended, with all that it started, because none of them has worked for a while.
    """
    used, since = -1.0, time.monotonic()
    with open(reading, encoding="utf-8") as pipe:
        while not select.select([pipe], [], [], 1.0)[0]:
            now = session_seconds(pid)
            if now != used:
                used, since = now, time.monotonic()
            elif time.monotonic() - since > LONGEST_REST_SECONDS:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                return ""
        return pipe.read()


def session_seconds(session: int) -> float:
    """Return the processor time of all processes of a session, from /proc; 0 where that is absent."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _functions(folder: Path) -> dict[str, list[FunctionType]]:
    """Return the live functions by the file below `folder` that they come from."""
    live: dict[str, list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(folder)):
            live.setdefault(thing.__code__.co_filename, []).append(thing)
    return live


def caches(folder: Path) -> list[Any]:
    """Return the functions below `folder` that remember their answers."""
    return [
        thing
        for thing in gc.get_objects()
        if isinstance(thing, functools._lru_cache_wrapper)
        and type(thing.__wrapped__) is FunctionType
        and thing.__wrapped__.__code__.co_filename.startswith(str(folder))
    ]


def put_in_place(changed: str, path: Path, functions: Sequence[FunctionType]) -> int:
    """Give the functions the code that the changed source has for them; return how many changed."""
    codes = {
        (code.co_qualname, code.co_firstlineno): code
        for code in _codes(compile(changed, str(path), "exec"))
    }
    count = 0
    for function in functions:
        code = codes.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
        if (
            code is not None
            and code.co_freevars == function.__code__.co_freevars
            and code != function.__code__
        ):
            function.__code__ = code
            count += 1
    return count


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def judge_together(
    tree: Tree, mutants: Sequence[Mutant], rooms: dict[str, tuple[str, list[str]]], cache: Path, budget: float,
    longest: float, note: Note,
) -> None:  # fmt: skip
    """Judge the mutants in one session of a forked process. rooms: name -> (folder, tests to ask).

    note(mutant) is called in that process for each mutant with a fate; coverage goes to `cache`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        os.setsid()
        become(tree.folder)
        tracer = coverage.Coverage(
            data_file=None,
            source=[str(tree.folder / folder) for folder, _ in rooms.values()],
            config_file=False,
        )
        plugin = Session(tree, tracer, longest, mutants)
        plugin.budget, plugin.note = budget, note

        def measured(answer: dict[str, Any]) -> dict[str, Coverage]:
            records = json.loads(cache.read_text()) if cache.exists() else {}
            covers = {}
            for room, (folder, tests) in rooms.items():
                covers[room] = Coverage()
                for test in tests:
                    records[f"{folder} {test}"] = record_of(tree, folder, test, answer)
                    covers[room].add(records[f"{folder} {test}"])
            cache.write_text(json.dumps(records))
            return covers

        plugin.measured = measured
        tests = list(dict.fromkeys(test for _, named in rooms.values() for test in named))
        quiet = ["-q", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
        pytest.main([*quiet, f"--basetemp={tree.folder / 'tmp'}", *tests], plugins=[plugin])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
