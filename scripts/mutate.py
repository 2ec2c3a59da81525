"""Mutation run over the numeric rooms: `python scripts/mutate.py [--mutants 200] [--rooms merge
…]`.

Changes one place of the code at a time (a comparison, a sign, a constant, an axis, a term), runs
the tests that execute that line, quickest first, until one fails, and prints per room the share of
changes that some test notices, with every survivor. `make mutants` runs it.

Works on a copy of the repository without reference files beside it, so it shows what a fresh clone
proves by itself. Each mutant is judged in a process forked from this one, which has imported torch
and transformers already, but nothing of the package. Tests that are marked slow, need a whole run
of all phases or more than `--longest` seconds are left out: that can only let more mutants survive.
With `--work FOLDER`, copies, coverage and fates stay there, and the next run goes on from them:
what was killed stays killed as long as the package and the test that killed it are there; survivors
are judged again when tests have changed.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

from mutant_changes import Mutant, apply_mutant, find_mutants
from mutant_relevance import relevant_tests
from mutant_session import judge_together
from mutant_trials import (
    PACKAGE,
    Coverage,
    Tree,
    measure_coverage,
    start_trial,
    test_files,
    warm_up,
)

ROOT = Path(__file__).resolve().parents[1]
# Room: the folder whose lines are changed, and the tests that are asked.
ROOMS = {
    "merge": ("agent_forge/merge", ["tests/merge"]),
    "codecs": (
        "agent_forge/codecs",
        ["tests/codecs", "tests/models/compressed/test_compressed.py"],
    ),
    "anatomy": (
        "agent_forge/anatomy",
        [
            "tests/anatomy",
            "tests/learn/test_losses.py",
            "tests/learn/test_whole.py",
            "tests/phases/test_fits.py",
        ],
    ),
    "models": ("agent_forge/models", ["tests/models", "tests/learn/test_whole.py"]),
    "learn": ("agent_forge/learn", ["tests/learn"]),
    "evaluate": (
        "agent_forge/evaluate",
        [
            "tests/evaluate",
            "tests/pipeline/test_gate.py",
            "tests/phases/test_bake_own.py",
            "tests/data/test_asking.py",
        ],
    ),
    "search": ("agent_forge/search", ["tests/search"]),
    "checkpoint": ("agent_forge/checkpoint", ["tests/checkpoint"]),
    "bitnet": (
        "agent_forge/phases/bitnet",
        [
            "tests/phases/test_bitnet.py",
            "tests/phases/test_bitnet_start.py",
            "tests/phases/test_fits.py",
        ],
    ),
    "train": ("agent_forge/phases/train", ["tests/phases/test_train.py"]),
    "quietstar": (
        "agent_forge/phases/quietstar",
        [
            "tests/phases/test_quietstar.py",
            "tests/phases/test_task_thoughts.py",
            "tests/phases/test_rlp.py",
            "tests/phases/test_fits.py",
        ],
    ),
    "bake": (
        "agent_forge/phases/bake",
        [
            "tests/phases/test_bake.py",
            "tests/phases/test_bake_own.py",
            "tests/phases/test_bake_on_policy.py",
        ],
    ),
    "adas": ("agent_forge/phases/adas", ["tests/phases/test_adas.py"]),
    "compress": (
        "agent_forge/phases/compress",
        ["tests/phases/test_compress.py", "tests/phases/test_fits.py"],
    ),
}


def sample(rooms: list[str], count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants in all, the same number per room where a room has them, drawn with
    `seed`.
    """
    share, chosen = -(-count // len(rooms)), []
    for room in rooms:
        every = list(find_mutants(room, ROOMS[room][0], ROOT))
        random.Random(f"{seed} {room}").shuffle(every)
        sources = {m.file: (ROOT / m.file).read_text(encoding="utf-8") for m in every}
        valid = (m for m in every if apply_mutant(sources[m.file], m) is not None)
        chosen += [m for m, _ in zip(valid, range(share), strict=False)]
    return chosen


def run(
    mutants: list[Mutant],
    jobs: int,
    work: Path,
    seconds: float = 60.0,
    longest: float = 60.0,
    relevant: int = 0,
) -> Iterator[Mutant]:
    """Yield the mutants as their fates are known; `jobs` copies of the repository in `work` are
    used at once.

    seconds: of the tests of one mutant; longest: of a single test, which is left out beyond that.
    relevant: how many tests to ask per mutant, by what they speak of; 0 asks all tests of the room.
    """
    warm_up()
    trees = [Tree(work / str(number), ROOT) for number in range(jobs)]
    covers: dict[str, Coverage] = {}
    package, tests_digest = trees[0].digest(*PACKAGE), trees[0].digest("tests")
    waiting, trials = list(reversed(mutants)), []
    recall(mutants, work / "fates.json", package)
    _together(trees[0], mutants, work, package, tests_digest, seconds, longest, relevant)
    recall(mutants, work / "fates.json", package)
    try:
        while waiting or trials:
            while waiting and trees:
                mutant = waiting.pop()
                if mutant.room not in covers:
                    tests = tests_of_room([m for m in mutants if m.room == mutant.room], relevant)
                    folder = ROOMS[mutant.room][0]
                    covers[mutant.room] = measure_coverage(
                        trees[-1], folder, tests, work / "coverage.json", longest
                    )
                cover = covers[mutant.room]
                if _is_settled(mutant, cover, tests_digest):
                    yield mutant
                    continue
                mutant.tests_digest = tests_digest
                trial = start_trial(trees[-1], mutant, cover, seconds)
                if trial is None:
                    yield mutant
                else:
                    trees.pop()
                    trials.append(trial)
            for trial in [trial for trial in trials if trial.ended()]:
                trials.remove(trial)
                trees.append(trial.tree)
                remember(trial.mutant, work / "fates.json", package)
                yield trial.mutant
            time.sleep(0.02)
    finally:
        for trial in trials:
            trial.process.stop()


def _together(
    tree: Tree, mutants: list[Mutant], work: Path, package: str, tests_digest: str, seconds: float, longest: float,
    relevant: int,
) -> None:  # fmt: skip
    """Judge in one session what has no fate yet; what stands outside of functions keeps none."""
    left = [
        m for m in mutants if m.fate != "killed" and (not m.fate or m.tests_digest != tests_digest)
    ]
    rooms = {
        room: (ROOMS[room][0], tests_of_room([m for m in mutants if m.room == room], relevant))
        for room in dict.fromkeys(m.room for m in left)
    }

    def note(mutant: Mutant) -> None:
        mutant.tests_digest = tests_digest
        remember(mutant, work / "fates.json", package)

    if left:
        groups = [[m for m in left if m.room == room] for room in rooms]
        in_turn = [
            m for row in zip_longest(*groups) for m in row if m
        ]  # stopped early, rooms have equal shares
        judge_together(tree, in_turn, rooms, work / "coverage.json", seconds, longest, note)


def tests_of_room(mutants: list[Mutant], relevant: int) -> list[str]:
    """Return the test files of the mutants' room, or the `relevant` test functions of each
    mutant.
    """
    files = test_files(ROOT, ROOMS[mutants[0].room][1])
    if not relevant:
        return files
    return list(
        dict.fromkeys(test for m in mutants for test in relevant_tests(m, ROOT, files, relevant))
    )


def _is_settled(mutant: Mutant, cover: Coverage, tests_digest: str) -> bool:
    """Return whether the fate noted by an earlier run still holds."""
    if mutant.fate == "killed" and mutant.killer in cover.seconds:
        return True
    return bool(mutant.fate) and mutant.tests_digest == tests_digest


def recall(mutants: list[Mutant], file: Path, package: str) -> None:
    """Give the mutants the fates that `file` has of them for the same package."""
    fates = json.loads(file.read_text()) if file.exists() else {}
    for mutant in mutants:
        for name, value in fates.get(_identity(mutant, package), {}).items():
            setattr(mutant, name, value)


def remember(mutant: Mutant, file: Path, package: str) -> None:
    """Write the fate of the mutant into `file` for later runs."""
    fates = json.loads(file.read_text()) if file.exists() else {}
    fates[_identity(mutant, package)] = asdict(mutant)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(fates, indent=1))
    part.replace(file)


def _identity(mutant: Mutant, package: str) -> str:
    return (
        f"{package[:16]} {mutant.file}:{mutant.line}:{mutant.column} {mutant.old} -> {mutant.new}"
    )


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
            print(f"- {_line(m)}")


def main() -> int:
    """Draw, run, print; the exit code is 0 whatever survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=200, help="how many changes, over all rooms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), choices=list(ROOMS))
    parser.add_argument(
        "--jobs", type=int, default=2, help="copies of the repository that work at once"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of tests per mutant, quickest first"
    )
    parser.add_argument(
        "--longest", type=float, default=60.0, help="seconds of a test; longer ones are left out"
    )
    parser.add_argument(
        "--relevant", type=int, default=0, help="tests per mutant, by what they speak of; 0: all"
    )
    parser.add_argument(
        "--work", type=Path, help="keep copies, coverage and fates here, and go on from them"
    )
    parser.add_argument("--out", type=Path, help="write every mutant with its fate as JSON")
    arguments = parser.parse_args()
    mutants, started = sample(arguments.rooms, arguments.mutants, arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for number, mutant in enumerate(
            run(
                mutants,
                arguments.jobs,
                work,
                arguments.seconds,
                arguments.longest,
                arguments.relevant,
            ),
            start=1,
        ):
            print(f"{number}/{len(mutants)} {_line(mutant)}", file=sys.stderr, flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps([asdict(m) for m in mutants], indent=1) + "\n")
    print_table(mutants)
    print(f"\nseed {arguments.seed}, {time.monotonic() - started:.0f} s")
    return 0


def _line(m: Mutant) -> str:
    how = f"{m.tests} tests, {m.left_out} left out" if m.fate != "killed" else m.killer
    change = f"`{m.old.strip()}` → `{m.new.strip()}`"
    return f"{m.file}:{m.line} {m.kind}: {change} ({m.fate}; {how}; {m.seconds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
