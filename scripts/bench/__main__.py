"""Command line of the benches: list them, run one, render the pages from results/."""

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.bench import render
from scripts.bench.result import RESULTS, Result, write


def benches() -> dict[str, dict[str, str]]:
    """Return name -> {"CLAIM", "BAR"} of every bench, read without importing it."""
    known = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        values = constants(path)
        if {"CLAIM", "BAR"} <= set(values):
            known[path.stem] = values
    return known


def constants(path: Path) -> dict[str, str]:
    """Return the texts that a module gives to names in capitals."""
    values = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            target = node.targets[0]
            if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                values[target.id] = node.value.value
    return values


def run(name: str, arguments: Sequence[str], folder: Path) -> int:
    """Run one bench and write its result; return 1 where its bar is missed."""
    if name not in benches():
        print(f"no bench {name!r}; known: {', '.join(benches())}", file=sys.stderr)
        return 2
    result: Result = importlib.import_module(f"scripts.bench.{name}").run(arguments)
    print(
        f"\nwrote {write(name, result, folder)}; python -m scripts.bench render puts it into docs"
    )
    return 1 if result.met is False else 0


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every bench with its claim and bar")
    commands.add_parser("render", help="write docs/results.md, its picture and README's tables")
    one = commands.add_parser("run", help="measure; arguments after NAME are the bench's own")
    one.add_argument("--results", type=Path, default=RESULTS, help="folder for NAME.json and .md")
    one.add_argument("name")
    one.add_argument("arguments", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    if chosen.command == "list":
        for name, values in benches().items():
            print(f"{name:15} {values['CLAIM']}\n{'':15} bar: {values['BAR']}")
        return 0
    if chosen.command == "render":
        for path in render.write_all():
            print(f"wrote {path}")
        return 0
    code = run(chosen.name, chosen.arguments, chosen.results)
    if chosen.name == "run_all" and "--write" in chosen.arguments:
        render.write_all()
    return code


if __name__ == "__main__":
    sys.exit(main())
