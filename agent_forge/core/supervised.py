"""What a supervisor tells a command by its environment, and what the command leaves for it.

FORGE_ATTEMPT names the attempt: its events and its outcome carry the name, and all its processes
inherit it, so they can be found. FORGE_EXIT_FILE is where the command leaves its exit code, which a
supervisor that was started later could not learn otherwise; a command that is killed leaves none.
"""

import contextlib
import os
from pathlib import Path

ATTEMPT_VARIABLE = "FORGE_ATTEMPT"
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
