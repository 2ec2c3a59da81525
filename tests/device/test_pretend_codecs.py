"""Every codec codes on the device where the matrix lies, to the same bytes."""

from typing import Any

import pytest
import torch

from agent_forge import codecs
from tests.pretend import KIND, pretend_accelerator

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("hyper", {}),
    ("intk", {"bits": 3, "group": 16}),
    ("intk", {"step": 0.3, "asymmetric": False}),
    ("raw", {}),
    ("seedlm", {"seeds": 63}),
    ("ternary", {"group": 16}),
    ("vptq", {"codebook": 8, "residual": 4, "outliers": 0.1, "iterations": 2}),
    ("waterfill", {"loss": 1e-4}),
    ("waterfill", {"step": 0.01}),
]


def test_pretend_settings_name_every_codec() -> None:
    assert {name for name, _ in SETTINGS} == set(codecs.names())


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_pretend_accelerator_codes_to_the_bytes_of_the_cpu(
    name: str, settings: dict[str, Any], calibrated: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (
        torch.randn(24, 40, generator=generator),
        torch.randn(200, 40, generator=generator),
    )
    weight[:, 3] *= 30  # makes outliers, and codes that overflow
    hessian, importance = inputs.T @ inputs / 200, torch.rand(24, generator=generator) + 0.5
    extra = (hessian, importance / importance.mean()) if calibrated else (None, None)
    expected = codecs.encode(name, weight, settings, *extra)
    with pretend_accelerator() as device:
        there = [None if tensor is None else tensor.to(device) for tensor in extra]
        coded = codecs.encode(name, weight.to(device), settings, *there)
        decoded = codecs.decode(coded, device)
        assert decoded.device.type == KIND
        assert torch.equal(decoded.cpu(), codecs.decode(expected))
    assert coded.data == expected.data
    assert coded.relative_error == expected.relative_error
