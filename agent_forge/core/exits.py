"""The exit code of a command, left in a file for a supervisor that may not live to see it end.

A supervisor names the file in FORGE_EXIT_FILE. A command that is killed leaves none.
"""

import contextlib
import os
from pathlib import Path

EXIT_VARIABLE = "FORGE_EXIT_FILE"


def claim_exit_file() -> Path | None:
    """Return the file that FORGE_EXIT_FILE names; commands that this one starts do not see it."""
    name = os.environ.pop(EXIT_VARIABLE, "")
    return Path(name) if name else None


def leave_exit(path: Path | None, code: int) -> None:
    """Write the code into a file, where there is one to write.

    A full disk leaves no file; the supervisor then judges by the outcome of the phase.
    """
    if path is not None:
        temporary = path.with_name(f".tmp-{path.name}")
        with contextlib.suppress(OSError):
            temporary.write_text(f"{code}\n", encoding="ascii")
            temporary.replace(path)


def read_exit(path: Path) -> int | None:
    """Return the code in a file, None where the command left none."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None
