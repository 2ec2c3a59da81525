"""The checks of `forge doctor` on accelerators: name, memory, arithmetic, libraries, two rates.

Reads the machine, writes nothing. The rates are measured, and bound the time of everything that
runs there from below: bytes moved / bandwidth, and operations / rate.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COPIED_BYTES = 1 << 28  # the timed copy reads and writes this much: far above any cache
PRODUCT_WIDTH = 4096  # width of the square matrices in the timed product: 137 GFLOP fill a device
TRIALS = 5  # the fastest trial counts

Line = tuple[str, str, str]  # name, state, detail


def lines() -> list[Line]:
    """Return the doctor's lines; a single one where there is no accelerator."""
    import torch

    if not torch.accelerator.is_available():
        return [("accelerator", "ok", f"none; the CPU is used ({_build()})")]
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    checks: list[Line] = []
    for index in range(torch.accelerator.device_count()):
        checks += _of(torch.device(kind.type, index))
    return [*checks, *_libraries(kind.type)]


def _of(device: "torch.device") -> list[Line]:
    from agent_forge.core.device import describe, has_bfloat16

    name = f"accelerator {device}"
    narrow = has_bfloat16(device)
    checks: list[Line] = [
        (name, "ok", describe(device)),
        (
            f"{name}: bfloat16",
            "ok" if narrow else "warn",
            "yes" if narrow else "no: runtime.dtype=auto is float32 here",
        ),
    ]
    try:
        checks.append(
            (
                f"{name}: copy",
                "ok",
                f"{copy_rate(device) / 1e9:,.0f} GB/s read and written, measured",
            )
        )
        if narrow:
            rate = product_rate(device) / 1e12
            checks.append((f"{name}: products", "ok", f"{rate:,.1f} TFLOP/s in bfloat16, measured"))
    except RuntimeError as error:  # out of memory, where another process fills the device
        checks.append(
            (f"{name}: rates", "warn", f"not measured: {str(error).splitlines()[0][:160]}")
        )
    return checks


def _libraries(kind: str) -> list[Line]:
    import torch

    triton = importlib.util.find_spec("triton") is not None
    nccl = (
        kind == "cuda"
        and torch.distributed.is_available()
        and torch.distributed.is_nccl_available()
    )
    version = ".".join(map(str, torch.cuda.nccl.version())) if nccl else ""  # type: ignore[no-untyped-call]
    return [
        (
            "triton",
            "ok" if triton else "warn",
            "present" if triton else "missing: packed products and torch.compile",
        ),
        (
            "nccl",
            "ok" if nccl else "warn",
            version or "missing: several accelerators cannot train together",
        ),
    ]


def _build() -> str:
    import torch

    return f"torch {torch.__version__}, " + (
        f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    )


def copy_rate(device: "torch.device") -> float:
    """Return the bytes per second that a copy on the device reads and writes.

    Raises RuntimeError without the memory.
    """
    import torch

    source = torch.zeros(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / _seconds(lambda: target.copy_(source), device)


def product_rate(device: "torch.device") -> float:
    """Return the floating-point operations per second of square bfloat16 products.

    Raises RuntimeError without the memory.
    """
    import torch

    factor = torch.full((PRODUCT_WIDTH, PRODUCT_WIDTH), 0.5, device=device, dtype=torch.bfloat16)
    return 2 * PRODUCT_WIDTH**3 / _seconds(lambda: factor @ factor, device)


def _seconds(work: Callable[[], object], device: "torch.device") -> float:
    """Return the shortest time of the work; the first run only warms up."""
    import torch

    best = float("inf")
    for trial in range(TRIALS + 1):
        torch.accelerator.synchronize(device)
        started = time.perf_counter()
        work()
        torch.accelerator.synchronize(device)
        if trial:
            best = min(best, time.perf_counter() - started)
    return best
