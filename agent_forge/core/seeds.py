"""Named sub-seeds: one run seed gives every use its own stream, independent of call order."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def seed_for(run_seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the use named by `names`; the same arguments give the same seed
    anywhere.
    """
    text = "/".join([str(run_seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_generator(run_seed: int, *names: str | int) -> "torch.Generator":
    """Return a CPU torch generator seeded for the use named by `names`."""
    import torch

    return torch.Generator().manual_seed(seed_for(run_seed, *names))


def numpy_generator(run_seed: int, *names: str | int) -> "np.random.Generator":
    """Return a numpy generator seeded for the use named by `names`."""
    import numpy as np

    return np.random.default_rng(seed_for(run_seed, *names))
