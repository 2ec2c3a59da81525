"""Compile engine.c once for this machine, and tell which of its builds is in use.

Reads the C files of this folder and writes a shared library to the user's cache, named by a hash of
source, compiler and flags. FORGE_KERNELS names the build (avx512, avx2, plain, or portable: no
compiled code), CC the compiler.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from agent_forge.core.errors import ConfigError, did_you_mean

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
# A build's place in this order is the level that level.c returns for it.
BUILDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512vbmi",
        "-mfma", "-mf16c", "-mprefer-vector-width=512",
    ),
}  # fmt: skip
_log = logging.getLogger("agent_forge")
_said: set[str] = set()


def library() -> ctypes.CDLL | None:
    """Return the compiled engine that the environment asks for, or None for the portable path.

    Raises ConfigError when FORGE_KERNELS names no build, one this machine cannot run, or one that
    does not compile.
    """
    return _library(os.environ.get(BUILD, ""), os.environ.get("CC", ""))


def in_use() -> str:
    """Return the name of the build in use: avx512, avx2, plain or portable."""
    loaded = library()
    return PORTABLE if loaded is None else str(loaded.forge_build)


def available() -> list[str]:
    """Return the builds that this machine can run, fastest first.

    Without a compiler it is only the portable one.
    """
    compiler = _compiler(os.environ.get("CC", ""))
    if compiler is None:
        return [PORTABLE]
    return [*reversed(list(BUILDS)[: _level(compiler) + 1]), PORTABLE]


@lru_cache
def _library(build: str, compiler_wanted: str) -> ctypes.CDLL | None:
    if build and build not in (*BUILDS, PORTABLE):
        known = (*BUILDS, PORTABLE)
        raise ConfigError(
            f"{BUILD}={build}: no such build{did_you_mean(build, known)}; known: {', '.join(known)}"
        )
    if build == PORTABLE:
        return None
    compiler = _compiler(compiler_wanted)
    if compiler is None:
        _say_portable(build, f"no C compiler (looked for {', '.join(COMPILERS)})")
        return None
    level = _level(compiler)
    name = build or list(BUILDS)[level]
    if list(BUILDS).index(name) > level:
        raise ConfigError(
            f"{BUILD}={name}: this processor cannot run it; it can run {', '.join(available())}"
        )
    try:
        loaded = ctypes.CDLL(str(_compiled(compiler, "engine.c", BUILDS[name])))
    except (OSError, subprocess.SubprocessError) as error:
        _say_portable(build, f"{compiler} cannot compile engine.c ({_reason(error)})")
        return None
    loaded.forge_build = name  # type: ignore[attr-defined]
    return loaded


def _say_portable(build: str, why: str) -> None:
    """Warn, once, that there is no compiled code.

    Raises ConfigError where a build is asked for by name.
    """
    if build:
        raise ConfigError(f"{BUILD}={build}: {why}; install gcc or set {BUILD}={PORTABLE}")
    if why not in _said:
        _said.add(why)
        _log.warning(
            "packed inference: %s; using the portable numpy path, which is many times slower. "
            "Install gcc, or set %s=%s to say that this is meant", why, BUILD, PORTABLE,
        )  # fmt: skip


def _compiler(name: str) -> str | None:
    return shutil.which(name) if name else next(filter(None, map(shutil.which, COMPILERS)), None)


@lru_cache
def _level(compiler: str) -> int:
    """Return the level of the best build that the processor runs, 0 if level.c does not compile."""
    try:
        return int(ctypes.CDLL(str(_compiled(compiler, "level.c", ()))).forge_level())
    except (OSError, subprocess.SubprocessError):
        return 0


def _compiled(compiler: str, source: str, flags: tuple[str, ...]) -> Path:
    """Return the shared library of a C file of this folder; compile it unless the cache has it."""
    path = Path(__file__).with_name(source)
    sources = [path, *(sorted(path.parent.glob("*.h")) if source == "engine.c" else ())]
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS, check=True
    ).stdout
    key = hashlib.sha256(
        b"\0".join(
            [*(s.read_bytes() for s in sources), version, " ".join((*COMMON, *flags)).encode()]
        )
    ).hexdigest()[:24]
    target = _cache() / f"{path.stem}-{key}.so"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        library_file = Path(scratch) / target.name
        command = [compiler, *COMMON, *flags, str(path), "-o", str(library_file), "-lm"]
        subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS, check=True)
        library_file.replace(target)
    return target


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


def _reason(error: Exception) -> str:
    """Return the first line of what the compiler said, or of the error."""
    said = getattr(error, "stderr", None)
    lines = (said.decode(errors="replace") if said else str(error)).strip().splitlines()
    return next(
        (line for line in lines if "error" in line), lines[0] if lines else type(error).__name__
    )
