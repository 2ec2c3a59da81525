"""Pick the device, dtype and thread count once; everything below receives them as arguments."""

import ctypes
import os
import sys
from typing import TYPE_CHECKING

from agent_forge.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16", "auto")


def pick_device(name: str) -> "torch.device":
    """Return the torch device for "auto", "cpu", "cuda", "cuda:1", "mps", ...

    Raises ConfigError when the device is named but not present: a setting is never dropped
    silently.
    """
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else _own(accelerator)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"runtime.device must be auto, cpu, cuda, cuda:1, mps or another device of PyTorch, got "
            f"'{name}'"
        ) from None
    if device.type != "cpu" and not (
        torch.accelerator.is_available()
        and device.type == torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    ):
        raise ConfigError(f"runtime.device={name}: no such device here; try runtime.device=auto")
    return _own(device)


def _own(device: "torch.device") -> "torch.device":
    """Return this process's device under torchrun: one accelerator each.

    Raises ConfigError where there are more processes than accelerators, or all name the same one.
    """
    import torch

    place, beside = os.environ.get("LOCAL_RANK"), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if place is None or device.type != "cuda":
        return device
    if device.index is not None:
        if beside > 1:
            raise ConfigError(
                f"runtime.device={device} names one accelerator for {beside} processes; use runtime.device=cuda"
            )
        return device
    present = torch.accelerator.device_count()
    if beside > present:
        raise ConfigError(
            f"runtime.processes={beside}: this machine has {present} accelerators, one per process is needed; "
            f"use runtime.processes={present} or runtime.device=cpu"
        )
    return torch.device(device.type, int(place))


def pick_dtype(name: str) -> "torch.dtype":
    """Return the torch dtype of that name. Raises ConfigError on any other name.

    "auto" is float32 for weights and scoring; training alone takes bfloat16 for its products where
    that is faster (learn/precision.py).
    """
    import torch

    if name not in DTYPES:
        raise ConfigError(
            f"runtime.dtype must be one of {', '.join(DTYPES)}, got '{name}'{did_you_mean(name, DTYPES)}"
        )
    return torch.float32 if name == "auto" else getattr(torch, name)


def set_threads(threads: int) -> int:
    """Use `threads` CPU threads, and return the number set.

    0 is what OMP_NUM_THREADS says, or every core that the process may use. Processes of torchrun
    share the cores: it sets OMP_NUM_THREADS to 1 by itself, so that says nothing of the user.
    """
    import torch

    cores, beside = len(os.sched_getaffinity(0)), os.environ.get("LOCAL_WORLD_SIZE")
    share = max(cores // int(beside), 1) if beside else omp_threads() or cores
    torch.set_num_threads(threads or share)
    return threads or share


def omp_threads() -> int:
    """Return the threads that OMP_NUM_THREADS allows, 0 where it does not say."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # may be a list, one per level
    return int(text) if text.isdigit() else 0


def free_bytes(device: "torch.device") -> int:
    """Return the bytes that this process can still take on an accelerator; 0 where unknown."""
    import torch

    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    # What torch has taken from the driver and does not use is free too.
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def used_bytes(device: "torch.device") -> int:
    """Return the bytes in use now: a GPU's by this process's tensors, else the process's own."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def has_bfloat16(device: "torch.device") -> bool:
    """Return whether an accelerator multiplies bfloat16 in hardware (CUDA), or at all (others)."""
    import torch

    if device.type == "cuda":
        with torch.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        one = torch.ones(1, 1, device=device, dtype=torch.bfloat16)
        return bool(float(one @ one) == 1.0)
    except (RuntimeError, TypeError):  # how torch refuses a dtype that a device has not
        return False


def sent(value: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Return a value on a device; the copy from the host to CUDA does not make the host wait."""
    if device.type != "cuda" or value.device.type != "cpu":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def exact(value: "torch.Tensor") -> "torch.Tensor":
    """Return a value without its gradient, in double precision, on its device.

    On MPS, which lacks double precision, the value keeps its dtype.
    """
    return value.detach() if value.device.type == "mps" else value.detach().double()


def describe(device: "torch.device") -> str:
    """Return a device in one line: its name, and its memory where that is known."""
    import torch

    if device.type != "cuda":
        return str(device)
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{device} ({torch.cuda.get_device_name(device)}, {free_bytes(device) / 1e9:.0f} of {memory / 1e9:.0f} GB free)"


def keep_freed_memory() -> bool:
    """Make glibc keep the memory that this process frees; return whether glibc accepted that.

    By default it hands the top of the heap back to the kernel as soon as it is free, and every step
    of a training run fetches and clears the same pages again. Blocks above 32 MiB (glibc's own
    limit) still come from the kernel and go back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # numbers of malloc.h
    return bool(mallopt(mmap_threshold, 32 << 20) and mallopt(trim_threshold, 2**31 - 1))
