"""Single changes of Python code for the mutation run: which there are in a folder, and how one is
made.

Left out because no result can depend on them: constants below 1e-6, which guard a division, and the
`indent` of written JSON.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
}  # fmt: skip
SIGNS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
EPSILON = 1e-6  # smaller constants guard a division; twice as much guards as well
NOT_ARITHMETIC = (
    ast.Raise,
    ast.Assert,
    ast.JoinedStr,
    ast.AnnAssign,
    ast.arguments,
    ast.Import,
    ast.ImportFrom,
)


@dataclass(slots=True, kw_only=True)
class Mutant:
    """One change: `old` becomes `new` in `file` at (line, column), columns counted in bytes of
    UTF-8.
    """

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
    tests: int = 0  # how many tests were chosen for it
    left_out: int = 0  # how many more execute it, but did not fit into the seconds per mutant
    killer: str = ""  # the first test that failed, or what else ended the run
    seconds: float = 0.0
    tests_digest: str = ""  # the digest of all tests at the time
    chosen: list[str] = field(default_factory=list)


def find_mutants(room: str, folder: str, root: Path) -> Iterator[Mutant]:
    """Yield every possible change in the Python files below root / folder."""
    for path in sorted((root / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        name = str(path.relative_to(root))
        for node in _arithmetic(ast.parse(source)):
            for kind, start, end, new in _changes(node, source):
                old = _between(source, start, end)
                if old.strip() != new:
                    yield Mutant(
                        room=room, file=name, line=start[0], column=start[1], end_line=end[0], end_column=end[1],
                        kind=kind, old=old, new=new,
                    )  # fmt: skip


def _arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes outside of error messages, annotations of fields, argument lists and type
    expressions.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.AnnAssign) and child.value is not None:
            yield child.value
            yield from _arithmetic(child.value)
        elif not isinstance(child, NOT_ARITHMETIC) and not _is_indent(child):
            yield child
            yield from _arithmetic(child)


def _is_indent(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "indent"


Place = tuple[int, int]


def _changes(node: ast.AST, source: str) -> Iterator[tuple[str, Place, Place, str]]:
    """Yield (kind, start, end, new text) for the node; the source between start and end is
    replaced.
    """
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield (
            "comparison",
            _end(node.left),
            _start(node.comparators[0]),
            f" {COMPARISONS[type(node.ops[0])]} ",
        )
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS and not _is_text(node):
        between = _between(source, _end(node.left), _start(node.right))
        if between.count("(") == between.count(")"):
            yield "sign", _end(node.left), _start(node.right), f" {SIGNS[type(node.op)]} "
        if isinstance(node.op, ast.Add | ast.Sub):
            yield (
                "dropped term",
                _start(node),
                _end(node),
                _between(source, _start(node.left), _end(node.left)),
            )
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield (
            "sign",
            _start(node),
            _end(node),
            _between(source, _start(node.operand), _end(node.operand)),
        )
    if isinstance(node, ast.keyword) and node.arg in ("dim", "axis") and _is_int(node.value):
        value = ast.literal_eval(node.value)
        yield "axis", _start(node.value), _end(node.value), "1" if value == 0 else "0"
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 1 << 16:
        yield "off by one", _start(node), _end(node), str(node.value + 1)
    if (
        isinstance(node, ast.Constant)
        and type(node.value) is float
        and not 0 < abs(node.value) < EPSILON
    ):
        yield "constant", _start(node), _end(node), repr(node.value * 2 if node.value else 1.0)


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str))
        for s in sides
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
    """Return the changed source, or None where the change is not valid Python (parentheses between
    the operands).
    """
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    first, last = lines[mutant.line - 1], lines[mutant.end_line - 1]
    middle = first[: mutant.column] + mutant.new.encode() + last[mutant.end_column :]
    changed = b"".join([*lines[: mutant.line - 1], middle, *lines[mutant.end_line :]]).decode()
    try:
        before, after = ast.dump(ast.parse(source)), ast.dump(ast.parse(changed))
    except SyntaxError:
        return None
    return changed if after != before else None


def statement_lines(source: str, mutant: Mutant) -> range | None:
    """Return the lines of the innermost statement around the mutant (of a block: its head).

    None where it stands outside of every function, so that importing the module executes it.
    """
    inside, lines = False, range(mutant.line, mutant.end_line + 1)
    # ast.walk goes from outer nodes to inner ones, so the last match is the innermost.
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt | ast.Lambda):
            continue
        if not (
            _start(node) <= (mutant.line, mutant.column)
            and (mutant.end_line, mutant.end_column) <= _end(node)
        ):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = True
        body = getattr(node, "body", None)
        first = body[0].lineno if isinstance(body, list) and body else _end(node)[0] + 1
        lines = range(node.lineno, max(first, node.lineno + 1))
        if mutant.line not in lines:  # an else, a finally
            lines = range(mutant.line, mutant.end_line + 1)
    return lines if inside else None
