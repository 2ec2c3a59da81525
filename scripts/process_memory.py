"""Memory of this process, or of the accelerator that it uses: what it holds now, and its peak since
a moment (Linux).
"""

from pathlib import Path


def memory_bytes(entry: str) -> float:
    """Return what the process holds now (VmRSS) or held at most (VmHWM)."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(entry)
    )
    return 1024.0 * int(line.split()[1])


def held_bytes(device: str) -> float:
    """Return what the process (or the accelerator) holds now, and let the peak count from here
    (Linux).
    """
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return memory_bytes("VmRSS")


def peak_bytes(device: str) -> float:
    """Return the peak memory of the process, or of the accelerator."""
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated())
    return memory_bytes("VmHWM")
