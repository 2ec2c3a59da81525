"""What a device says of itself."""

import pytest
import torch

from agent_forge.core.device import used_bytes

CPU = torch.device("cpu")
BLOCK = 200_000_000


def test_the_memory_in_use_grows_and_shrinks_with_a_tensor() -> None:
    before = used_bytes(CPU)
    block = torch.ones(BLOCK // 4)
    with_block = used_bytes(CPU)
    assert with_block - before == pytest.approx(BLOCK, rel=0.05)
    del block
    assert with_block - used_bytes(CPU) == pytest.approx(BLOCK, rel=0.05)
