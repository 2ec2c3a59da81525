"""Show an error as one line on stderr, exit with its code; `--verbose` adds a traceback."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from agent_forge.core import ranks
from agent_forge.core.errors import ForgeError


@contextmanager
def one_line_errors(verbose: bool = False) -> Iterator[None]:
    """Turn a ForgeError inside the block into one line on stderr and its exit code."""
    try:
        yield
    except ForgeError as error:
        if verbose:
            traceback.print_exc()
        if not ranks.rank():  # under torchrun every process meets the same error
            print(f"forge: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
