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
from typing import TextIO

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
        locale_is_c = sys.stdin.encoding.lower() in ("ascii", "ansi_x3.4-1968", "us-ascii")
        sys.stdin.reconfigure(encoding="utf-8" if locale_is_c else None, errors="replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        lines, encoding = sys.stdout.line_buffering, sys.stdout.encoding
        sys.stdout = _output = Output(sys.stdout.detach(), encoding=encoding, errors="replace", line_buffering=lines)


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


def _null(mode: str) -> TextIO:
    return open(os.devnull, mode, encoding="utf-8")
