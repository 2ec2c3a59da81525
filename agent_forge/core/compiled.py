"""Compile a C file of this package once for this machine.

Writes shared libraries to the user's cache, named by a hash of source, compiler and flags.
FORGE_KERNELS=portable means that no compiled code is wanted; CC names the compiler.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from agent_forge.core.errors import ConfigError

BUILD = "FORGE_KERNELS"
PORTABLE = "portable"
COMPILERS = ("cc", "gcc", "clang")
COMPILE_SECONDS = 300
COMMON = (
    "-O3",
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-pthread",
)


def find_compiler(name: str) -> str | None:
    """Return the path of a C compiler: the named one, else the first of COMPILERS; None: none."""
    return shutil.which(name) if name else next(filter(None, map(shutil.which, COMPILERS)), None)


def compile_file(
    compiler: str, source: Path, *, headers: Sequence[Path] = (), flags: Sequence[str] = ()
) -> Path:
    """Return the shared library of a C file; compile it unless the cache has it.

    headers: files that it includes; a change of theirs compiles it again.

    Raises OSError or subprocess.SubprocessError when it cannot be compiled (see `reason`),
    ConfigError when others can write into the cache.
    """
    key = hashlib.sha256(
        b"\0".join(
            [
                *(file.read_bytes() for file in (source, *headers)),
                _version(compiler),
                " ".join((*COMMON, *flags)).encode(),
            ]
        )
    ).hexdigest()[:24]
    target = _cache() / f"{source.stem}-{key}.so"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        library_file = Path(scratch) / target.name
        command = [compiler, *COMMON, *flags, str(source), "-o", str(library_file), "-lm"]
        subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS, check=True)
        library_file.replace(target)
    return target


@lru_cache
def _version(compiler: str) -> bytes:
    """Return what the compiler says of itself."""
    return subprocess.run(
        [compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS, check=True
    ).stdout


def _cache() -> Path:
    """Return the folder of compiled code.

    It must belong to this user alone: what lies there is executed.
    """
    base = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-forge" / "kernels"
    )
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = base.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ConfigError(
            f"{base} can be written by others; compiled code is not kept there: chmod 700 {base}"
        )
    return base


def reason(error: Exception) -> str:
    """Return the first line of what the compiler said, or of the error."""
    said = getattr(error, "stderr", None)
    lines = (said.decode(errors="replace") if said else str(error)).strip().splitlines()
    return next(
        (line for line in lines if "error" in line), lines[0] if lines else type(error).__name__
    )
