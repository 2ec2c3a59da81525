"""Text files are UTF-8 wherever the program runs: no call leaves the encoding to the locale."""

import ast
from pathlib import Path

import pytest

import agent_forge

PACKAGE = Path(agent_forge.__file__).parent
TEXT_METHODS = {"read_text": 0, "write_text": 1}  # method -> position of its encoding
SUBPROCESS = {"run", "Popen", "check_output"}


def left_to_the_locale(source: str) -> list[int]:
    """Return the lines of `source` that read or write text without naming an encoding."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg for keyword in node.keywords}
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        if "encoding" in keywords:
            continue
        text_method = name in TEXT_METHODS and len(node.args) <= TEXT_METHODS[name]
        child = name in SUBPROCESS and bool({"text", "universal_newlines"} & keywords)
        if text_method or child or (name == "open" and _opens_text(node)):
            lines.append(node.lineno)
    return lines


def _opens_text(node: ast.Call) -> bool:
    """Return whether a call of `open` is one of Python's own for text: `open(path)`, `path.open()`,
    either with a mode.
    """
    method = isinstance(node.func, ast.Attribute)
    modes = node.args[0 if method else 1 :]
    if method and (len(node.args) > 1 or any(keyword.arg != "mode" for keyword in node.keywords)):
        return False  # open() of something else: a checkpoint, an archive, the os module
    if not modes:
        return not node.args
    mode = modes[0].value if isinstance(modes[0], ast.Constant) else None
    return isinstance(mode, str) and bool(mode) and set(mode) <= set("rwxat+")


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("p.read_text()\np.write_text(x)\np.open()\nopen(p, 'w')\np.open('a')", [1, 2, 3, 4, 5]),
        (
            "p.read_text(encoding='utf-8')\np.open('rb')\nos.open(p, os.O_RDONLY)\ncheckpoint.open(path)",
            [],
        ),
        ("subprocess.run(c, text=True)\nsubprocess.run(c)", [1]),
    ],
)
def test_the_check_below_can_fail(source: str, lines: list[int]) -> None:
    assert left_to_the_locale(source) == lines


def test_every_text_file_is_read_and_written_as_utf_8() -> None:
    wrong = {
        str(file.relative_to(PACKAGE)): lines
        for file in PACKAGE.rglob("*.py")
        if (lines := left_to_the_locale(file.read_text(encoding="utf-8")))
    }
    assert wrong == {}
