"""Every codec codes on the device where the matrix lies, to the same bytes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from agent_forge import codecs
from agent_forge.codecs.payload import Payload
from agent_forge.core.errors import ConfigError
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
    _codes_alike(name, settings, weight, extra, expected)


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (3, 17), (65, 33)])
def test_pretend_accelerator_codes_odd_shapes_and_zeros_as_the_cpu_does(
    name: str, settings: dict[str, Any], shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(1)
    for weight in (torch.randn(shape, generator=generator).bfloat16(), torch.zeros(shape)):
        weight = weight.float()
        inputs = torch.randn(50, shape[1], generator=generator)
        extra = (inputs.T @ inputs / 50, torch.ones(shape[0]))
        try:
            expected = codecs.encode(name, weight, settings, *extra)
        except ConfigError as refusal:
            with pretend_accelerator() as device, pytest.raises(ConfigError, match=str(refusal)):
                codecs.encode(name, weight.to(device), settings, *(e.to(device) for e in extra))
            continue
        _codes_alike(name, settings, weight, extra, expected)


def _codes_alike(
    name: str, settings: dict[str, Any], weight: Tensor, extra: Any, expected: Payload
) -> None:
    with pretend_accelerator() as device:
        there = [None if tensor is None else tensor.to(device) for tensor in extra]
        coded = codecs.encode(name, weight.to(device), settings, *there)
        decoded = codecs.decode(coded, device)
        assert decoded.device.type == KIND
        assert torch.equal(decoded.cpu(), codecs.decode(expected))
    assert coded.data == expected.data
    assert coded.relative_error == expected.relative_error
