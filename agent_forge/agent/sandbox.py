"""Run untrusted Python in Monty or in bubblewrap.

Monty 1.4 is an interpreter of its own in a worker process. It runs a subset of Python under limits
of time, memory and recursion, without files or network. Bubblewrap gives full Python in empty
namespaces with a read-only /usr; where `bwrap` is not installed, code is refused.
"""

import shutil
import subprocess
from pathlib import Path

from agent_forge.core.errors import ConfigError, ForgeError, did_you_mean

KINDS = ("monty", "bubblewrap")
MAX_OUTPUT_BYTES = 64 * 1024
RECURSION = 200
PROCESSES = 64


class SandboxError(ForgeError):
    """The program failed or hit a limit, or there is no sandbox to run it in."""


def run_python(code: str, *, kind: str, timeout_seconds: float, memory_bytes: int) -> str:
    """Return what the program prints, then its last value.

    Raises SandboxError, or ConfigError for an unknown kind.
    """
    if kind == "monty":
        return _run_monty(code, timeout_seconds, memory_bytes)
    if kind == "bubblewrap":
        return _run_bubblewrap(code, timeout_seconds, memory_bytes)
    raise ConfigError(
        f"code_sandbox must be one of {', '.join(KINDS)}, got '{kind}'{did_you_mean(kind, KINDS)}"
    )


def _run_monty(code: str, timeout_seconds: float, memory_bytes: int) -> str:
    try:
        import pydantic_monty as monty
    except ImportError:
        raise SandboxError(
            "the code tool needs pydantic-monty; pip install 'agent-forge[agent]'"
        ) from None
    limits: monty.ResourceLimits = {
        "max_feed_duration_secs": timeout_seconds,
        "max_memory": memory_bytes,
        "max_recursion_depth": RECURSION,
        "max_total_sleep_secs": timeout_seconds,
    }
    printed = monty.CollectString(max_bytes=MAX_OUTPUT_BYTES)
    try:
        with (
            monty.Monty(max_processes=1, request_timeout=2 * timeout_seconds + 1) as pool,
            pool.checkout(limits=limits) as session,
        ):
            value = session.feed_run(code, print_callback=printed)
    except (monty.MontyRuntimeError, monty.MontySyntaxError) as error:
        raise SandboxError(error.display("type-msg")) from None
    except monty.MontyError as error:
        raise SandboxError(f"the sandbox stopped: {error}") from None
    shown = "" if value is None else str(value)
    return "\n".join(part for part in (printed.output.rstrip("\n"), shown) if part)


def bubblewrap_command(memory_bytes: int, timeout_seconds: float) -> list[str]:
    """Return the command that runs Python from standard input in empty namespaces.

    Raises SandboxError where bwrap or Python is missing.
    """
    bwrap = shutil.which("bwrap")
    python = shutil.which("python3", path="/usr/bin")
    if bwrap is None or python is None:
        missing = "bubblewrap (bwrap)" if bwrap is None else "/usr/bin/python3"
        raise SandboxError(
            f"full Python needs {missing}, which is not installed; install it or set "
            "code_sandbox=monty"
        )
    links = [
        part
        for name in ("lib", "lib64", "bin", "sbin")
        if Path(f"/{name}").is_symlink()
        for part in ("--symlink", f"usr/{name}", f"/{name}")
    ]
    binds = [
        part
        for name in ("lib", "lib64", "bin", "sbin")
        if Path(f"/{name}").is_dir() and not Path(f"/{name}").is_symlink()
        for part in ("--ro-bind", f"/{name}", f"/{name}")
    ]
    limits = (
        f"ulimit -v {memory_bytes // 1024 + 65536} && ulimit -t {int(timeout_seconds) + 1} && "
        f"ulimit -f {MAX_OUTPUT_BYTES // 512} && (ulimit -u {PROCESSES} 2>/dev/null || "
        f"true) && exec {python} -I -"
    )
    return [
        *(
            bwrap,
            "--unshare-all",
            "--clearenv",
            "--die-with-parent",
            "--new-session",
            "--cap-drop",
            "ALL",
        ),
        *("--ro-bind", "/usr", "/usr", *links, *binds),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp"),
        *("--setenv", "PATH", "/usr/bin", "--setenv", "LANG", "C.UTF-8"),
        *("/bin/sh", "-c", limits),
    ]


def _run_bubblewrap(code: str, timeout_seconds: float, memory_bytes: int) -> str:
    command = bubblewrap_command(memory_bytes, timeout_seconds)
    try:
        done = subprocess.run(
            command, input=code.encode(), capture_output=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise SandboxError(
            f"TimeoutError: the program ran longer than {timeout_seconds:g} s"
        ) from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise SandboxError(lines[-1] if lines else f"the program ended with code {done.returncode}")
    return done.stdout[:MAX_OUTPUT_BYTES].decode(errors="replace").rstrip("\n")
