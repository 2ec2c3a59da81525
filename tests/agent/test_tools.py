"""Tools: exact arithmetic, sandboxed code, and a toolbox that denies what was not enabled."""

import shutil
import socket
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_forge.agent import (
    BrokenCall,
    Call,
    DocumentIndex,
    Memory,
    Toolbox,
    ToolContext,
    ToolError,
    sandbox,
)
from agent_forge.agent.tools import PACKAGE, calculator
from agent_forge.core import registry
from agent_forge.core.errors import ConfigError


def calculate(expression: str) -> str:
    return calculator.run({"expression": expression}, ToolContext())


@given(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30), st.sampled_from("+-*"))
@settings(max_examples=100, deadline=None)
def test_integer_arithmetic_is_pythons(a: int, b: int, operator: str) -> None:
    expected = {"+": a + b, "-": a - b, "*": a * b}[operator]
    assert calculate(f"({a}){operator}({b})") == str(expected)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0.1+0.2", "0.3"),
        ("1/3", "0.333333333333"),
        ("10/4", "2.5"),
        ("-7//2", "-4"),
        ("-7%3", "2"),
        ("2^10", "1024"),
        ("2**-2", "0.25"),
        ("12,345*2", "24690"),
        ("6 × 7 =", "42"),
        ("007+1", "8"),
        ("sqrt(144)", "12"),
        ("9**0.5", "3"),
        ("round(2.675, 2)", "2.68"),
        ("max(3, 9, 4) - min(2, 1)", "8"),
        ("--5", "5"),
        ("1e3+1", "1001"),
    ],
)
def test_the_calculator_is_exact(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "1/0", "2**", "9**9**9", "__import__('os')", "a+1", "(1).real", "[1][0]", "'x'*3",
     "1 if 1 else 2", "lambda: 1", "sqrt(-1)", "1" * 2000, "(" * 900, "2**0.3", "True",
     "round(1,2,3)", "min()"],
)  # fmt: skip
def test_the_calculator_refuses_everything_else_with_a_reason(expression: str) -> None:
    with pytest.raises(ToolError, match=r".{10,}"):
        calculate(expression)


def test_a_long_decimal_keeps_twelve_digits() -> None:
    assert calculator.format_number(Fraction(2, 3)) == "0.666666666667"
    assert calculator.format_number(Fraction(-1, 8)) == "-0.125"


def test_a_tool_that_is_not_enabled_is_denied() -> None:
    result = Toolbox(["calculator"]).run(Call("code", {"code": "1"}))
    assert result.error
    assert "no tool 'code' is enabled" in result.text


def test_an_unknown_tool_cannot_be_enabled() -> None:
    with pytest.raises(ConfigError, match="did you mean 'calculator'"):
        Toolbox(["calculater"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs 'expression'"),
        ({"expr": "1", "expression": "1"}, "no argument 'expr'"),
        ({"expression": ["1"]}, "string"),
    ],
)
def test_arguments_that_do_not_fit_the_schema_are_told_to_the_model(
    arguments: dict, message: str
) -> None:
    result = Toolbox(["calculator"]).run(Call("calculator", arguments))
    assert result.error
    assert message in result.text


def test_a_broken_call_gives_its_message() -> None:
    assert "not JSON" in Toolbox([]).run(BrokenCall("x", "the call is not JSON: x")).text


def test_every_tool_file_follows_the_contract() -> None:
    names = registry.names(PACKAGE)
    assert {"calculator", "code", "search", "retrieve", "remember", "recall", "forget"} <= set(
        names
    )
    for name, schema in zip(names, Toolbox(names).schemas(), strict=True):
        assert schema["function"]["name"] == name
        assert set(schema["function"]["parameters"]["required"]) <= set(
            schema["function"]["parameters"]["properties"]
        )


def test_memory_tools_write_replace_recall_and_forget() -> None:
    box = Toolbox(["remember", "recall", "forget"], ToolContext(memory=Memory()))
    assert box.run(Call("remember", {"about": "red box", "fact": "47"})).text == "stored"
    assert box.run(Call("remember", {"about": "Red  Box", "fact": 52})).text == "stored"
    assert box.run(Call("recall", {"query": "the red box"})).text == "red box: 52"
    assert box.run(Call("forget", {"about": "red box"})).text == "forgot 1"
    assert box.run(Call("recall", {"query": "red box"})).text == "nothing"


def test_tools_without_their_part_refuse() -> None:
    box = Toolbox(["recall", "search", "retrieve"])
    assert all(box.run(Call(name, {"query": "x"})).error for name in box.names)


def test_search_and_retrieve_give_real_passages() -> None:
    index = DocumentIndex(Memory().store, passage_words=8)
    index.add("The treaty was signed in winter. The harbor froze over that year.", "one")
    index.add("Farmers sold their crops at the market.", "two")
    box = Toolbox(["search", "retrieve"], ToolContext(documents=index))
    assert (
        box.run(Call("search", {"query": "harbor", "count": 1})).text
        == "[one @33] The harbor froze over that year."
    )
    assert (
        box.run(Call("retrieve", {"query": "farmer crop"})).text
        == "[two @0] Farmers sold their crops at the market."
    )
    assert box.run(Call("search", {"query": "zebra"})).text == "nothing found"


def test_long_results_are_cut() -> None:
    box = Toolbox(["calculator"], ToolContext(result_characters=10))
    assert len(box.run(Call("calculator", {"expression": "10**40"})).text) == 10


def run_code(code: str, seconds: float = 1.0) -> str:
    return sandbox.run_python(code, kind="monty", timeout_seconds=seconds, memory_bytes=32 * 2**20)


def test_code_returns_what_it_prints_and_its_last_value() -> None:
    assert run_code("for i in range(3):\n    print(i)\nsum([4, 5])") == "0\n1\n2\n9"


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "import os\nos.system('true')",
        "import subprocess",
        "import socket",
        "__import__('os').environ['HOME']",
        "while True: pass",
        "'a' * 10**9",
        "print('x' * 10**6)",
        "def f(): return f()\nf()",
        "1/0",
        "x = (",
    ],
)
def test_the_sandbox_stops_escapes_and_runaways(code: str) -> None:
    with pytest.raises(sandbox.SandboxError):
        run_code(code, 0.3)


def test_environment_of_the_host_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_SECRET", "hush")
    try:
        text = run_code("import os\nprint(os.environ)")
    except sandbox.SandboxError as error:
        text = str(error)
    assert "hush" not in text


def test_full_python_without_bubblewrap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(sandbox.SandboxError, match="bubblewrap"):
        sandbox.run_python("1", kind="bubblewrap", timeout_seconds=1, memory_bytes=2**26)


def test_an_unknown_sandbox_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'monty'"):
        sandbox.run_python("1", kind="month", timeout_seconds=1, memory_bytes=2**26)


def test_the_memory_limit_is_what_stops_a_large_value() -> None:
    """Eight megabytes fit into 32 MiB and not into 4."""
    code = "len('ab' * 4000000)"
    assert (
        sandbox.run_python(code, kind="monty", timeout_seconds=5, memory_bytes=32 * 2**20)
        == "8000000"
    )
    with pytest.raises(sandbox.SandboxError, match=r"(?i)memory"):
        sandbox.run_python(code, kind="monty", timeout_seconds=5, memory_bytes=4 * 2**20)


needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed here"
)


def run_full(code: str, seconds: float = 5) -> str:
    return sandbox.run_python(code, kind="bubblewrap", timeout_seconds=seconds, memory_bytes=2**28)


@needs_bubblewrap
def test_bubblewrap_runs_python_without_the_environment_home_or_files_of_the_host(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_text("hush")
    assert run_full("print(6 * 7)") == "42"
    assert run_full("import os; print(sorted(os.environ))") in (
        "['LANG', 'PATH']",
        "['LANG', 'PATH', 'PWD']",
    )
    for path in (tmp_path / "secret", "/etc/passwd", "/root", "/home"):
        with pytest.raises(sandbox.SandboxError, match="FileNotFoundError"):
            run_full(f"import os; os.stat({str(path)!r})")
    with pytest.raises(sandbox.SandboxError, match=r"Read-only|Permission denied"):
        run_full("open('/usr/lib/x', 'w')")


@needs_bubblewrap
def test_bubblewrap_shuts_out_the_network_even_of_this_machine() -> None:
    """A server that anybody else here reaches at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
        with pytest.raises(sandbox.SandboxError, match=r"refused|unreachable"):
            run_full(code)


@needs_bubblewrap
@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "while True: pass"])
def test_bubblewrap_ends_what_runs_too_long(code: str) -> None:
    started = time.monotonic()
    with pytest.raises(sandbox.SandboxError, match="longer than 2 s"):
        run_full(code, seconds=2)
    assert time.monotonic() - started < 30


@needs_bubblewrap
def test_bubblewrap_limits_memory() -> None:
    with pytest.raises(sandbox.SandboxError, match="MemoryError"):
        run_full("x = bytearray(2**30)")
