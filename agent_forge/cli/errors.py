"""Show an error as one line on stderr, exit with its code; `--verbose` adds a traceback."""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from agent_forge.cli import streams
from agent_forge.cli.render import console, say
from agent_forge.core import ranks
from agent_forge.core.errors import ForgeError, StorageError

# What a name, a disk or the system's limits refuse. Any other OSError is a defect of ours.
REFUSED = frozenset({
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT,
    errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE,
})  # fmt: skip
WRITES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
SHOWN = 100  # characters of a path


@contextmanager
def one_line_errors(verbose: bool = False) -> Iterator[None]:
    """Turn a ForgeError inside the block, or what the system refuses, into one line on stderr and
    its exit code.
    """
    try:
        yield
    except ForgeError as error:
        _show(str(error), verbose)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        # A failed write on standard output has a line of its own (streams.finish).
        if error.errno not in REFUSED or streams.failed():
            raise
        _show(_refusal(error), verbose)
        raise typer.Exit(StorageError.exit_code) from None


def _show(line: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    if not ranks.rank():  # under torchrun every process meets the same error
        say(console(), f"forge: {line}")


def _refusal(error: OSError) -> str:
    """Return what the system refused, and of which file where it says so."""
    from agent_forge.checkpoint import atomic

    name = error.filename
    path = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
    if path and error.errno in WRITES:
        file = Path(path)
        is_ours = file.name.startswith(atomic.TEMPORARY)
        return str(atomic.storage_error(error, file.parent if is_ours else file, 0))
    place = f"{path[:SHOWN]}\N{HORIZONTAL ELLIPSIS}" if len(path) > SHOWN else path
    return f"{place}{': ' if place else ''}{error.strerror}"
