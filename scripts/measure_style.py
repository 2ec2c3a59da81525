"""Measure how the tree reads: its prose, its names, its comments, and the lengths of its functions.

    python scripts/measure_style.py [PATH ...]       one table, a column per folder
    python scripts/measure_style.py agent_forge/merge --places "is no"    file, line, text
    python scripts/measure_style.py agent_forge/merge --rules    what tests/test_style.py refuses

Reads Python with ast and tokenize, Markdown outside code, and the comments of YAML. Writes nothing.
CONTRIBUTING.md explains the rules; tests/test_style.py enforces those in RULES.
"""

import argparse
import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("agent_forge", "scripts", "tests", "docs", "conf")
COLUMNS = 100
LONG_FUNCTION = 40
MANY_ARGUMENTS = 6
# A line with so many operations has more than one idea; the anchors have 1.3 per line of code.
DENSE = 9
OPERATIONS = (
    ast.Call, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Subscript, ast.IfExp,
    ast.comprehension, ast.Lambda,
)  # fmt: skip
BANNED_LOCALS = frozenset({"found", "kept", "wanted", "asked", "made", "told", "given"})

# "There is no ..." and "is no longer ..." are plain English; elsewhere "is not a ..." says it.
IS_NO = re.compile(
    r"(?<!\bthere) is no (?!longer\b|more\b|less\b|fewer\b|\w+er than\b)",
    re.IGNORECASE,
)
SAY = re.compile(r"Says? ")
THOSE_OF = re.compile(r"\b(?:those|that) of\b")
FRAGMENT = re.compile(
    r"#+\s*(?:of|in|by|as|for|with|where|that|which|than|at|from|to|and|on|into)\s",
)
# "one scale a row", "nats a token", "a file a tensor": something counted, then the unit it is
# counted by.
NUMBER = r"(?:an?|one|two|three|four|five|six|eight|ten|\d[\d,.]*)"
JOINING = "where for with of in is has have to from that as when by at on and or if into than makes"
COUNTED_NOUNS = (
    "bits bytes [kKMG]i?B nats tokens seconds minutes hours ms steps rows items scales times once "
    "passes samples draws windows documents figures parts numbers values lines trits words "
    "questions places points slots candidates"
)
UNITS = (
    "row column group block tensor layer head token byte bit weight entry vector step second "
    "minute hour batch window item question task phase seed model file line job process device "
    "thread epoch pass run candidate document slice word kind parameter matrix module side size "
    "call case topic method shape pair piece worker place rate"
)


def _one_of(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


A_FOR_PER = re.compile(
    rf"\b(?:{NUMBER} (?!{_one_of(JOINING)}\b)[a-z]+|{_one_of(COUNTED_NOUNS)})"
    rf" an? {_one_of(UNITS)}\b",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule is broken, and by which text."""

    line: int
    text: str


@dataclass(slots=True)
class Source:
    """One file: its lines, its prose, and (for Python) its functions and local names."""

    path: Path
    lines: list[str]
    docstrings: list[Place] = field(default_factory=list)
    comments: list[Place] = field(default_factory=list)
    text: list[Place] = field(default_factory=list)
    functions: list[ast.FunctionDef | ast.AsyncFunctionDef] = field(default_factory=list)
    locals: list[Place] = field(default_factory=list)
    operations: dict[int, int] = field(default_factory=dict)  # line -> how many begin there

    @property
    def prose(self) -> list[Place]:
        """Return everything that a reader reads as English."""
        return [*self.docstrings, *self.comments, *self.text]


def read(path: Path) -> Source:
    """Return a file as the measures need it. Raises SyntaxError for Python that does not parse."""
    content = path.read_text(encoding="utf-8")
    source = Source(path, content.splitlines())
    if path.suffix == ".py":
        _read_python(source, content)
    elif path.suffix == ".md":
        _read_markdown(source)
    else:
        comments = ((n, line.partition("#")) for n, line in enumerate(source.lines, 1))
        source.comments = [Place(n, f"#{text}") for n, (_, sign, text) in comments if sign]
    return source


def _read_python(source: Source, content: str) -> None:
    tree = ast.parse(content)
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and (text := ast.get_docstring(node)) is not None:
            source.docstrings.append(Place(node.body[0].lineno, text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            source.functions.append(node)
            source.locals += _locals(node)
        if isinstance(node, OPERATIONS):
            line = _line_of(node)
            source.operations[line] = source.operations.get(line, 0) + 1
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            source.comments.append(Place(token.start[0], token.string))


def _line_of(node: ast.AST) -> int:
    """Return the line on which an operation stands: where a call's name ends, for instance."""
    if isinstance(node, ast.comprehension):
        return node.target.lineno
    inner = getattr(node, "func", getattr(node, "value", getattr(node, "left", node)))
    return int(getattr(inner, "end_lineno", node.lineno))  # type: ignore[attr-defined]


def _locals(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Place]:
    """Yield every name that a function binds, once: its arguments, and what it assigns.

    Functions inside it answer for themselves.
    """
    names = dict.fromkeys(_arguments(function), function.lineno)
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, node.lineno)
        waiting += ast.iter_child_nodes(node)
    yield from (Place(line, name) for name, line in names.items())


def _read_markdown(source: Source) -> None:
    inside = False
    for number, line in enumerate(source.lines, 1):
        fence = line.lstrip().startswith("```")
        inside ^= fence
        if not inside and not fence and not line.startswith("    "):
            source.text.append(Place(number, line))


def matches(pattern: re.Pattern[str], prose: list[Place]) -> list[Place]:
    """Return where a pattern stands in prose, across line breaks."""
    places = []
    for piece in prose:
        for match in pattern.finditer(" ".join(piece.text.split())):
            near = " ".join(piece.text.split())[max(match.start() - 20, 0) : match.end() + 20]
            places.append(Place(piece.line, near))
    return places


def says(source: Source) -> list[Place]:
    """Return the docstrings that open with "Say"."""
    return [place for place in source.docstrings if SAY.match(place.text)]


def banned_locals(source: Source) -> list[Place]:
    """Return the arguments and local names that are bare participles."""
    return [place for place in source.locals if place.text in BANNED_LOCALS]


def fragments(source: Source) -> list[Place]:
    """Return the comments that begin in the middle of a sentence.

    A line that goes on with the comment of the line above is not the beginning of one.
    """
    commented = {place.line for place in source.comments}
    return [
        place
        for place in source.comments
        if FRAGMENT.match(place.text)
        and not (place.line - 1 in commented and _is_all_comment(source, place.line))
    ]


def _is_all_comment(source: Source, line: int) -> bool:
    return source.lines[line - 1].lstrip().startswith("#")


# The mechanical rules, which tests/test_style.py enforces in every Python file.
RULES: dict[str, Callable[[Source], list[Place]]] = {
    'docstring opens with "Say"': says,
    '" is no " in prose': lambda source: matches(IS_NO, [*source.docstrings, *source.comments]),
    "banned local name": banned_locals,
    "comment begins in mid-sentence": fragments,
}
COUNTED: dict[str, Callable[[Source], list[Place]]] = {
    '"a" for "per", candidates': lambda source: matches(A_FOR_PER, source.prose),
    'docstrings that open with "Say"': says,
    '" is no "': lambda source: matches(IS_NO, source.prose),
    '"those of", "that of"': lambda source: matches(THOSE_OF, source.prose),
    "comments that are fragments": fragments,
    "bare participles among local names": banned_locals,
    "lines over 100 columns": lambda source: [
        Place(number, line) for number, line in enumerate(source.lines, 1) if len(line) > COLUMNS
    ],
    "lines with nine operations or more": lambda source: [
        Place(line, source.lines[line - 1].strip())
        for line, count in sorted(source.operations.items()) if count >= DENSE
    ],
    "functions over 40 lines": lambda source: [
        Place(f.lineno, f.name) for f in source.functions if _length(f) > LONG_FUNCTION
    ],
    "functions taking both out and events": lambda source: [
        Place(f.lineno, f.name) for f in source.functions if {"out", "events"} <= set(_arguments(f))
    ],
    "six or more arguments": lambda source: [
        Place(f.lineno, f.name) for f in source.functions if len(_arguments(f)) >= MANY_ARGUMENTS
    ],
}  # fmt: skip


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the names of a function's arguments, without self and cls."""
    every = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def broken(source: Source) -> list[str]:
    """Return a line per place where a file breaks a rule of RULES."""
    return [
        f"{source.path}:{place.line}: {rule}: {place.text.splitlines()[0][:70]}"
        for rule, check in RULES.items() for place in check(source)
    ]  # fmt: skip


def files(paths: list[Path]) -> list[Path]:
    """Return the Python, Markdown and YAML files of paths, sorted.

    Links are left out, because conf/ is linked a second time.
    """
    every: set[Path] = set()
    for path in paths:
        inside = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        every |= {
            p
            for p in inside
            if p.suffix in (".py", ".md", ".yaml") and "node_modules" not in p.parts
        }
    return sorted(p for p in every if not any(q.is_symlink() for q in (p, *p.parents)))


def python_files() -> list[Path]:
    """Return the files that the rules apply to."""
    folders = [ROOT / name for name in ("agent_forge", "scripts", "tests")]
    return [path for path in files(folders) if path.suffix == ".py"]


def table(groups: dict[str, list[Source]]) -> str:
    """Return the measures as a Markdown table with a column per group."""
    rows: list[tuple[str, Callable[[list[Source]], str]]] = [
        ("files", lambda group: str(len(group))),
        ("lines", lambda group: f"{sum(len(source.lines) for source in group):,}"),
        *((name, partial(_count, name, count)) for name, count in COUNTED.items()),
        ("operations per line of code", _density),
        ("comments per 100 lines", _comment_rate),
        ("functions", lambda group: f"{sum(len(source.functions) for source in group):,}"),
        ("length of functions: median, 9 in 10, longest", _lengths),
    ]
    width = max(len(name) for name, _ in rows)
    head = f"| {'measure':{width}} | " + " | ".join(groups) + " |"
    body = []
    for name, cell in rows:
        cells = [cell(group) for group in groups.values()]
        body.append(f"| {name:{width}} | " + " | ".join(cells) + " |")
    return "\n".join([head, "|---" * (len(groups) + 1) + "|", *body])


def _count(name: str, count: Callable[[Source], list[Place]], group: list[Source]) -> str:
    number = sum(len(count(source)) for source in group)
    whole = 0
    if name == "lines over 100 columns":
        whole = sum(len(source.lines) for source in group)
    elif name == "bare participles among local names":
        whole = sum(len(source.locals) for source in group)
    return f"{number} ({number / whole:.1%})" if whole else str(number)


def _density(group: list[Source]) -> str:
    lines = sum(len(source.operations) for source in group)
    operations = sum(sum(source.operations.values()) for source in group)
    return f"{operations / lines:.2f}" if lines else "-"


def _comment_rate(group: list[Source]) -> str:
    python = [source for source in group if source.path.suffix == ".py"]
    lines = sum(bool(line.strip()) for source in python for line in source.lines)
    comments = sum(len(source.comments) for source in python)
    return f"{100 * comments / lines:.1f}" if lines else "-"


def _lengths(group: list[Source]) -> str:
    lengths = sorted(_length(function) for source in group for function in source.functions)
    if not lengths:
        return "-"
    nine_in_ten = lengths[int(0.9 * (len(lengths) - 1))]
    return f"{statistics.median(lengths):g}, {nine_in_ten}, {lengths[-1]}"


def main() -> int:
    """Print the table, the places of a measure, or what breaks a rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders; none: the tree")
    parser.add_argument("--places", default="", help="list where: a part of a measure's name")
    parser.add_argument("--rules", action="store_true", help="list what the test refuses")
    arguments = parser.parse_args()
    chosen = arguments.paths or [ROOT / name for name in FOLDERS]
    groups = {label(path): [read(file) for file in files([path])] for path in chosen}
    sources = [source for group in groups.values() for source in group]
    if arguments.rules:
        lines = [line for source in sources for line in broken(source)]
        print("\n".join(lines) or "no rule is broken")
        return int(bool(lines))
    if arguments.places:
        print("\n".join(places(sources, arguments.places)))
    else:
        print(table(groups))
    return 0


def label(path: Path) -> str:
    """Return a path as the table names it: from the root, where it is inside."""
    absolute = path.resolve()
    return str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else path)


def places(sources: list[Source], part: str) -> list[str]:
    """Return a line per place that the measures with `part` in their names count."""
    return [
        f"{source.path}:{place.line}: {place.text.splitlines()[0][:90]}"
        for name, count in COUNTED.items()
        if part in name
        for source in sources
        for place in count(source)
    ]


if __name__ == "__main__":
    sys.exit(main())
