"""No two files import each other, directly or round a circle, lazily or for types alone.

A circle means that neither file can be read first.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    files = [*(ROOT / "agent_forge").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    named = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    # An __init__ gathers its folder's files for those outside: importing it reaches none of them in
    # a circle.
    return {name: file for name, file in named.items() if file.name != "__init__.py"}


def imports(file: Path, name: str, known: dict[str, Path]) -> Iterator[str]:
    """Yield the files that a file imports anywhere; scripts import each other by bare names too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        folder = name.rpartition(".")[0]
        for module in names:
            yield from {module, f"{folder}.{module}"} & set(known)


def circles(graph: Graph) -> list[set[str]]:
    """Return the strongly connected parts of more than one file: those that reach each other."""
    reach = {name: reachable(graph, name) for name in graph}
    parts = {frozenset(n for n in reach[name] if name in reach[n]) for name in graph}
    return [set(part) for part in parts if len(part) > 1]


def reachable(graph: Graph, start: str) -> set[str]:
    seen, waiting = {start}, [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_a_circle_of_three_is_seen_and_a_chain_is_not() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert circles(graph) == [{"a", "b", "c"}]


def test_no_file_reaches_itself_by_way_of_others() -> None:
    known = modules()
    graph = {name: set(imports(file, name, known)) - {name} for name, file in known.items()}
    assert len(graph) > 300
    assert sum(len(edges) for edges in graph.values()) > 1000
    assert circles(graph) == []
