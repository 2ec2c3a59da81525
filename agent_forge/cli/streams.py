"""Standard streams that are closed, full, cut off by `head`, or unable to show a character.

A reader that leaves (`| head -1`) ends the command silently with the exit code of SIGPIPE. A full
device gives one line on stderr and exit code 74. Output to a closed stream is dropped. Signs
that the terminal's encoding lacks are spelled in ASCII, other characters become question marks;
input is read as UTF-8 where the locale has only ASCII.
"""

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import Literal, TextIO

ASCII = ("ascii", "us-ascii", "ansi_x3.4-1968")
SIGPIPE_EXIT = 128 + 13  # the code that a shell reports for a tool that a closed pipe ended
STORAGE_EXIT = 74
# The signs that our lines use, as ASCII writes them.
SPELLED = str.maketrans({
    "≥": ">=", "·": "-", "→": "->", "−": "-", "≈": "~", "…": "...", "±": "+-", "×": "x",
})  # fmt: skip


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Return what is printed for characters that an encoding lacks, and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(SPELLED)
    return text.encode("ascii", "replace").decode(), error.end


ON_ERROR = "forge_spelled"
codecs.register_error(ON_ERROR, _spelled)


class Output(io.TextIOWrapper):
    """A text stream that remembers its first write error, even when a caller catches it."""

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


# The stream that `prepare` opened; libraries may wrap sys.stdout afterwards.
_output: Output | None = None


def prepare() -> None:
    """Give the process standard streams that can always be read and written."""
    global _output
    # In the order of their descriptors, because each open takes the lowest free one.
    if sys.stdin is None:
        sys.stdin = _null("r")
    if sys.stdout is None:
        sys.stdout = _null("w")
    if sys.stderr is None:
        sys.stderr = _null("w")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(
            encoding="utf-8" if sys.stdin.encoding.lower() in ASCII else None,
            errors="surrogateescape",  # what reads it refuses such bytes; none is replaced unsaid
        )
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=ON_ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        lines, encoding = sys.stdout.line_buffering, sys.stdout.encoding
        sys.stdout = _output = Output(
            sys.stdout.detach(), encoding=encoding, errors=ON_ERROR, line_buffering=lines
        )
        # By this name the width of the terminal is found; what it named is detached.
        sys.__stdout__ = _output  # type: ignore[misc]


def use_utf8_paths() -> None:
    """Start again in UTF-8 mode where Python reads file names as ASCII.

    Libraries only accept names that are valid text. The streams keep the terminal's encoding. This
    happens only in a C locale whose coercion is switched off.
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
    """Flush standard output; return the exit code, or the one of a failed write."""
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
