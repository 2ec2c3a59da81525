"""The mutation run changes what it says it changes, and tells a killed mutant from a survivor."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
SOURCE = '''
def mean(values, *, dim=0):
    """Return (a + b) / n."""
    if len(values) < 1:
        raise ValueError(f"{len(values) + 1} values")
    total = values.sum(axis=1) - 0.5
    return total / (len(values))
'''


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("mutate")
    finally:
        sys.path.remove(str(SCRIPTS))


def changed_lines(mutate: ModuleType, tmp_path: Path) -> set[tuple[str, str]]:
    (tmp_path / "room").mkdir(exist_ok=True)
    (tmp_path / "room" / "mean.py").write_text(SOURCE)
    changes = set()
    for mutant in mutate.find_mutants("room", "room", tmp_path):
        changed = mutate.apply_mutant(SOURCE, mutant)
        if changed is not None:
            ast.parse(changed)
            differing = [
                b for a, b in zip(SOURCE.splitlines(), changed.splitlines(), strict=True) if a != b
            ]
            assert len(differing) == 1
            changes.add((mutant.kind, differing[0].strip()))
    return changes


def test_each_kind_of_change_is_made_where_arithmetic_stands(
    mutate: ModuleType, tmp_path: Path
) -> None:
    changes = changed_lines(mutate, tmp_path)
    assert {
        ("comparison", "if len(values) <= 1:"),
        ("off by one", "if len(values) < 2:"),
        ("axis", "total = values.sum(axis=0) - 0.5"),
        ("sign", "total = values.sum(axis=1) + 0.5"),
        ("dropped term", "total = values.sum(axis=1)"),
        ("constant", "total = values.sum(axis=1) - 1.0"),
    } <= changes
    assert not any("raise" in line or "def" in line for _, line in changes), (
        "messages and signatures are left alone"
    )


def test_the_script_says_what_it_takes() -> None:
    help_text = subprocess.run(
        [sys.executable, str(SCRIPTS / "mutate.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--relevant" in help_text


def test_the_sample_is_fixed_by_its_seed(mutate: ModuleType) -> None:
    first, again, other = (mutate.sample(["evaluate"], 5, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 5


@pytest.fixture
def small(mutate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository of one room: a function that is checked, one that is only run, one that a
    fixture runs.
    """
    root, trials = tmp_path / "root", importlib.import_module("mutant_trials")
    (root / "room").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "room" / "twice.py").write_text(
        "def twice(x):\n    return x * 2\n\n\ndef idle(x):\n    return x + 1\n\n\ndef made(x):\n    return x - 3\n"
    )
    (root / "tests" / "test_twice.py").write_text(
        "import pytest\nfrom room.twice import idle, made, twice\n\n\n"
        "@pytest.fixture(scope='module')\ndef shared():\n    return made(5)\n\n\n"
        "def test_twice(shared):\n    assert twice(3) == 6\n    idle(1)\n\n\n"
        "def test_shared(shared):\n    assert shared == 2\n"
    )
    monkeypatch.setattr(mutate, "ROOT", root)
    monkeypatch.setattr(trials, "COPIED", ("room", "tests"))
    monkeypatch.setattr(trials, "WARM", ())
    monkeypatch.setattr(mutate, "PACKAGE", ("room",))
    monkeypatch.setattr(trials, "PACKAGE", ("room",))
    monkeypatch.setattr(mutate, "ROOMS", {"room": ("room", ["tests"])})
    return root


def fates(mutate: ModuleType, root: Path, work: Path) -> dict[int, tuple[str, str]]:
    mutants = [m for m in mutate.find_mutants("room", "room", root) if m.kind == "sign"]
    return {m.line: (m.fate, m.killer) for m in mutate.run(mutants, 1, work)}


def test_a_change_that_a_test_notices_is_killed_and_another_survives(
    mutate: ModuleType, small: Path, tmp_path: Path
) -> None:
    """What a shared fixture executes is judged by every test that uses the fixture, not by the
    first alone.
    """
    assert fates(mutate, small, tmp_path / "work") == {
        2: ("killed", "tests/test_twice.py::test_twice"),
        6: ("survived", ""),
        10: ("killed", "tests/test_twice.py::test_shared"),
    }
    assert (tmp_path / "work" / "0" / "room" / "twice.py").read_bytes() == (
        small / "room" / "twice.py"
    ).read_bytes()


def test_a_second_run_judges_again_only_what_new_tests_may_change(
    mutate: ModuleType, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    original = mutate.judge_together

    def note(tree: Any, mutants: list[Any], *rest: Any) -> None:
        judged.extend(mutant.line for mutant in mutants)
        original(tree, mutants, *rest)

    monkeypatch.setattr(mutate, "judge_together", note)
    first = fates(mutate, small, tmp_path / "work")
    assert fates(mutate, small, tmp_path / "work") == first
    assert sorted(judged) == [2, 6, 10]
    (small / "tests" / "test_idle.py").write_text(
        "from room.twice import idle\n\n\ndef test_idle():\n    assert idle(1) == 2\n"
    )
    again = fates(mutate, small, tmp_path / "work")
    assert again == {**first, 6: ("killed", "tests/test_idle.py::test_idle")}
    assert sorted(judged) == [2, 6, 6, 10]


def test_a_copy_that_waits_for_a_thread_it_lacks_is_judged_in_a_trial_of_its_own(
    mutate: ModuleType, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread starts when the tests are collected, and no copy made after that has it."""
    session = importlib.import_module("mutant_session")
    monkeypatch.setattr(session, "LONGEST_REST_SECONDS", 2.0)
    (small / "tests" / "test_idle.py").write_text(
        "import queue\nimport threading\n\nfrom room.twice import idle\n\n"
        "asked, answers = queue.Queue(), queue.Queue()\n"
        "echo = lambda: [answers.put(asked.get()) for _ in iter(int, 1)]\n"
        "threading.Thread(target=echo, daemon=True).start()\n\n\n"
        "def test_idle():\n    asked.put(1)\n    assert idle(answers.get()) == 2\n"
    )
    assert fates(mutate, small, tmp_path / "work")[6] == ("killed", "tests/test_idle.py::test_idle")


def test_what_a_function_remembers_is_forgotten_in_a_copy(
    mutate: ModuleType, small: Path, tmp_path: Path
) -> None:
    (small / "room" / "twice.py").write_text(
        "from functools import lru_cache\n\n\n@lru_cache\ndef table(n):\n    return n + 1\n"
    )
    (small / "tests" / "test_twice.py").write_text(
        "from room.twice import table\n\n\ndef test_table():\n    assert table(1) == 2\n"
    )
    assert fates(mutate, small, tmp_path / "work") == {
        6: ("killed", "tests/test_twice.py::test_table")
    }
