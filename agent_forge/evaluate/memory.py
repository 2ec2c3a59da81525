"""Peak memory of this process or an accelerator; it can be forgotten, so that one piece of work is measured."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_memory_bytes(device: str = "cpu") -> int:
    """Return the highest resident size (or allocation on `device`) since `reset_peak_memory` or the start."""
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
    """Forget the peak so far; False where the system cannot (the peak then counts from the start of the process)."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True
