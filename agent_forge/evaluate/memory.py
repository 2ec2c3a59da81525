"""Peak memory of this process or of an accelerator, with a reset to measure one piece of work."""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_memory_bytes(device: str = "cpu") -> int:
    """Return the peak resident size, or allocation on `device`, since the last reset or start."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: str = "cpu") -> bool:
    """Reset the peak; return whether the system can. If not, it counts from the process's start."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def footprint(work: Callable[[], T], device: str = "cpu") -> tuple[T, int]:
    """Return what `work()` returns, and by how many bytes the peak rose above the memory in use.

    Free memory first goes back to the system where the C library can do that. Otherwise a large
    model would fit into the room that an earlier one left, and seem to need nothing.
    """
    gc.collect()
    libc = None if sys.platform == "win32" else ctypes.CDLL(None)
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    result = work()
    return result, max(peak_memory_bytes(device) - before, 0)
