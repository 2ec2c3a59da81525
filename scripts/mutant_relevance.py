"""Which tests speak of the code around a mutant: a cheap choice where running all tests of a room
is too much.

A test is relevant by the names and words in its source: the names of the function or constant that
is changed, of the class and of the functions of the same file that use it, and of the module. A
test that is left out for want of relevance can only let a mutant survive.
"""

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from mutant_changes import Mutant

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def relevant_tests(mutant: Mutant, root: Path, tests: Sequence[str], count: int) -> list[str]:
    """Return the `count` most relevant test functions ("file::name") of the files `tests`, best
    first.
    """
    own, users = _names_around(mutant, (root / mutant.file).read_text(encoding="utf-8"))
    module = (
        Path(mutant.file).stem
        if Path(mutant.file).stem != "__init__"
        else Path(mutant.file).parent.name
    )
    weights = {module: 1.0, **dict.fromkeys(users, 2.0), **dict.fromkeys(own, 4.0)}
    scored = []
    for file in tests:
        for place, (name, words) in enumerate(_tests_in(root / file)):
            score = sum(weight for word, weight in weights.items() if word in words)
            if score:
                scored.append((-score, len(words), file, place, f"{file}::{name}"))
    return [test for *_, test in sorted(scored)[:count]]


def _names_around(mutant: Mutant, source: str) -> tuple[set[str], set[str]]:
    """Return the names of what the mutant stands in, and of what uses these in the same file."""
    tree = ast.parse(source)
    own = {name for node in ast.walk(tree) if _spans(node, mutant) for name in _defines(node)}
    users: set[str] = set()
    for _ in range(2):  # those who use it, and those who use them
        for node in ast.walk(tree):
            if isinstance(node, Definition) and (own | users) & _words(node):
                users.add(node.name)
    return own, users - own


def _spans(node: ast.AST, mutant: Mutant) -> bool:
    first, last = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
    return first is not None and last is not None and first <= mutant.line <= last


def _defines(node: ast.AST) -> Iterator[str]:
    if isinstance(node, Definition):
        yield node.name
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    for target in targets:
        if isinstance(target, ast.Name) and target.id.isupper():
            yield target.id


@lru_cache(maxsize=256)
def _tests_in(file: Path) -> list[tuple[str, frozenset[str]]]:
    """Return the name of each test function of the file, and the words in it and in the helpers it
    calls.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    helpers = {
        n.name: _words(n)
        for n in tree.body
        if isinstance(n, Definition) and not n.name.startswith("test")
    }
    tests = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            words = _words(node)
            tests.append(
                (node.name, frozenset(words.union(*(helpers[h] for h in words & helpers.keys()))))
            )
    return tests


def _words(node: ast.AST) -> set[str]:
    words: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            words.add(child.id)
        elif isinstance(child, ast.Attribute):
            words.add(child.attr)
        elif isinstance(child, ast.arg):
            words.add(child.arg)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            words.update(child.value.replace(".", " ").replace("=", " ").split()[:20])
    return words
