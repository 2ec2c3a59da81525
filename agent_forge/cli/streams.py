"""Standard streams as other tools treat them: closed, full, cut off by `head`, or unable to show a letter.

A reader that leaves (`| head -1`) ends the command without a word and with the code of SIGPIPE. A full device is one line
on stderr and exit code 74. A closed stream takes what is written and drops it. What the terminal's encoding lacks is
replaced by a question mark; input is read as UTF-8 where the locale knows ASCII alone.
"""

import contextlib
import errno
import io
import os
import sys
from typing import Literal, TextIO

ASCII = ("ascii", "us-ascii", "ansi_x3.4-1968")
SIGPIPE_EXIT = 128 + 13  # what a shell reports of a tool that a closed pipe has ended
STORAGE_EXIT = 74


class Output(io.TextIOWrapper):
    """A text stream that remembers the first error of a write, whoever catches it on its way up."""

    failure: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write text; an OSError is kept as `failure` and raised."""
        try:
            return super().write(text)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def flush(self) -> None:
        """Flush; an OSError is kept as `failure` and raised."""
        try:
            super().flush()
        except OSError as error:
            self.failure = self.failure or error
            raise


_output: Output | None = None  # what `prepare` made; libraries may wrap sys.stdout afterwards


def prepare() -> None:
    """Give the process a standard input, output and error that can be used without asking how they are."""
    global _output
    # In the order of their descriptors: what is opened first takes the lowest one that is free.
    if sys.stdin is None:
        sys.stdin = _null("r")
    if sys.stdout is None:
        sys.stdout = _null("w")
    if sys.stderr is None:
        sys.stderr = _null("w")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8" if sys.stdin.encoding.lower() in ASCII else None, errors="replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        lines, encoding = sys.stdout.line_buffering, sys.stdout.encoding
        sys.stdout = _output = Output(sys.stdout.detach(), encoding=encoding, errors="replace", line_buffering=lines)


def use_utf8_paths() -> None:
    """Start again in UTF-8 mode where file names are ASCII to Python: libraries take no other names than valid text.

    The streams keep the terminal's encoding. Only a C locale whose coercion is switched off comes to this.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding().lower() not in ASCII:
        return
    streams = {"PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING", "ascii:replace")}
    arguments = [sys.executable, "-m", "agent_forge", *sys.argv[1:]]
    with contextlib.suppress(OSError):
        os.execve(sys.executable, arguments, {**os.environ, **streams, "PYTHONUTF8": "1"})


def failed() -> bool:
    """Return whether a write on standard output has failed."""
    return _output is not None and _output.failure is not None


def finish(code: int) -> int:
    """Flush standard output and return the exit code, which a write that failed decides."""
    if _output is None:
        return code
    with contextlib.suppress(OSError):
        _output.flush()
    if _output.failure is None:
        return code
    with contextlib.suppress(OSError):  # Python flushes once more at its end, and would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), _output.fileno())
    if _output.failure.errno == errno.EPIPE:
        return SIGPIPE_EXIT
    print(f"forge: cannot write to standard output: {_output.failure.strerror}", file=sys.stderr)
    return STORAGE_EXIT


def _null(mode: Literal["r", "w"]) -> TextIO:
    return open(os.devnull, mode, encoding="utf-8")
