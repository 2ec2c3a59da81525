"""Compile engine.c once for this machine, and tell which of its builds is in use.

Reads the C files of this folder. FORGE_KERNELS names the build (avx512, avx2, plain, or portable: no
compiled code), CC the compiler.
"""

import ctypes
import logging
import os
import subprocess
from functools import lru_cache
from pathlib import Path

from agent_forge.core.compiled import (
    BUILD,
    COMPILERS,
    PORTABLE,
    compile_file,
    find_compiler,
    reason,
)
from agent_forge.core.errors import ConfigError, did_you_mean

# A build's place in this order is the level that level.c returns for it.
BUILDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512vbmi",
        "-mfma", "-mf16c", "-mprefer-vector-width=512",
    ),
}  # fmt: skip
FOLDER = Path(__file__).parent
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
    compiler = find_compiler(os.environ.get("CC", ""))
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
    compiler = find_compiler(compiler_wanted)
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
        loaded = ctypes.CDLL(str(_library_file(compiler, BUILDS[name])))
    except (OSError, subprocess.SubprocessError) as error:
        _say_portable(build, f"{compiler} cannot compile engine.c ({reason(error)})")
        return None
    loaded.forge_build = name  # type: ignore[attr-defined]
    return loaded


def _library_file(compiler: str, flags: tuple[str, ...]) -> Path:
    headers = sorted(FOLDER.glob("*.h"))
    return compile_file(compiler, FOLDER / "engine.c", headers=headers, flags=flags)


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


@lru_cache
def _level(compiler: str) -> int:
    """Return the level of the best build that the processor runs, 0 if level.c does not compile."""
    try:
        return int(ctypes.CDLL(str(compile_file(compiler, FOLDER / "level.c"))).forge_level())
    except (OSError, subprocess.SubprocessError):
        return 0
