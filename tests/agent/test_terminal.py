"""`forge chat` on a pseudo-terminal: editing, history, several lines, Ctrl-C and Ctrl-D."""

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(180)

# The child reads with the chat's own reader and prints what it got. Without a model, each keystroke
# takes milliseconds.
READER = """
from agent_forge.agent.terminal import line_reader
read = line_reader(["/help", "/quit"])
while True:
    try:
        print("GOT", repr(read()), flush=True)
    except EOFError:
        print("LEFT", flush=True)
        break
"""
CTRL_C, CTRL_D, UP, LEFT, ALT_ENTER, ENTER, TAB = (
    "\x03",
    "\x04",
    "\x1b[A",
    "\x1b[D",
    "\x1b\r",
    "\r",
    "\t",
)


class Terminal:
    """A child process on a pseudo-terminal."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.pid, self.screen = pty.fork()
        if not self.pid:
            os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, **environment})
        self.text = ""
        self.code: int | None = None

    def type(self, keys: str) -> None:
        """Press keys, once the prompt is there: before that the terminal itself would take them."""
        self.expect("you › ")
        self.press(keys)

    def press(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def expect(self, pattern: str, seconds: float = 90) -> str:
        """Wait for the pattern and take everything up to its end."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.screen], [], [], max(0.0, end - time.monotonic()))
            try:
                new = os.read(self.screen, 4096).decode(errors="replace") if ready else ""
            except OSError:  # Linux raises this when the child has ended.
                new = ""
            assert new, f"no {pattern!r} in {self.text!r}"
            self.text += new
        taken, self.text = self.text[: match.end()], self.text[match.end() :]
        return taken

    def status(self) -> int:
        """Return the exit status, once the child has ended."""
        end = time.monotonic() + 60
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.02)
        return -1 if self.code is None else self.code

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Return a function that starts Python with arguments on a terminal."""
    begun: list[Terminal] = []
    root = str(Path(__file__).parents[2])
    places = {"XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": root}
    plain = {
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }

    def begin(*arguments: str) -> Terminal:
        begun.append(Terminal(list(arguments), {**plain, **places}))
        return begun[-1]

    yield begin
    for terminal in begun:
        if not terminal.ended():
            os.kill(terminal.pid, signal.SIGKILL)
        os.close(terminal.screen)


def test_lines_are_edited_remembered_and_cleared(
    start: Callable[..., Terminal], tmp_path: Path
) -> None:
    shell = start("-c", READER)
    shell.type("helo" + LEFT + "l" + ENTER)
    shell.expect("GOT 'hello'")
    shell.type("half a line" + CTRL_C + "whole" + ENTER)
    shell.expect("GOT 'whole'")
    shell.type("one" + ALT_ENTER + "two" + ENTER)
    shell.expect(r"GOT 'one\\ntwo'")
    shell.type("/he" + TAB)
    shell.expect("/help")  # prompt_toolkit completes in the background
    shell.press(ENTER)
    shell.expect("GOT '/help'")
    shell.type("\n")  # Some terminals send this for Enter.
    shell.expect("GOT ''")
    shell.type(UP + UP + UP + UP + ENTER)
    shell.expect("GOT 'whole'")
    shell.type("\x1b[200~pasted\r\nlines\x1b[201~" + ENTER)
    shell.expect(r"GOT 'pasted\\nlines'")
    shell.type("a \x1b[31mred\x1b[0m line" + ENTER)  # pasted, and not marked so
    shell.expect("GOT 'a red line'")
    shell.type("x" + CTRL_C + CTRL_C)
    shell.expect("LEFT")
    assert shell.status() == 0
    assert (tmp_path / "agent-forge" / "chat_history").stat().st_mode & 0o777 == 0o600
    again = start("-c", READER)
    again.type(UP + UP + ENTER)
    again.expect(r"GOT 'pasted\\nlines'")
    again.type(CTRL_D)
    again.expect("LEFT")
    assert again.status() == 0


def test_forge_chat_converses_on_a_terminal_and_ctrl_c_in_half_a_line_does_not_leave(
    start: Callable[..., Terminal], tiny_checkpoint: object
) -> None:
    shell = start("-m", "agent_forge", "chat", str(tiny_checkpoint.path), "--device", "cpu")  # type: ignore[attr-defined]
    shell.type("half" + CTRL_C + "/tools" + ENTER)
    shell.expect("no tool is enabled")
    shell.type("/memory" + ENTER)
    shell.expect("nothing is remembered")
    shell.type(CTRL_D)
    assert shell.status() == 0
