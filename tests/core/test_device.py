"""What a device says of itself."""

import subprocess
import sys

import pytest

BLOCK = 200_000_000
# A process of its own: one that has trained keeps what it has freed.
PROGRAM = f"""
import torch
from agent_forge.core.device import used_bytes

cpu = torch.device("cpu")
before = used_bytes(cpu)
block = torch.ones({BLOCK // 4})
print(used_bytes(cpu) - before)
"""


def test_the_memory_in_use_grows_with_a_tensor() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == pytest.approx(BLOCK, rel=0.05)
