"""`forge doctor` names the accelerator and measures it; without one it says so."""

import pytest
import torch

from agent_forge.cli import accelerators
from tests.pretend import pretend_accelerator


def said() -> dict[str, tuple[str, str]]:
    return {name: (state, detail) for name, state, detail in accelerators.lines()}


def test_pretend_accelerator_is_named_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "COPIED_BYTES", 1 << 20)
    monkeypatch.setattr(accelerators, "PRODUCT_WIDTH", 32)
    monkeypatch.setattr(accelerators, "_seconds", lambda work, device: (work(), device, 1e-6)[2])
    with pretend_accelerator():
        checks = said()
    name = "accelerator lazy:0"
    assert checks[name] == ("ok", "lazy:0")
    assert checks[f"{name}: bfloat16"] == ("ok", "yes")
    # 2 MiB in a microsecond
    assert checks[f"{name}: copy"] == ("ok", "2,097 GB/s read and written, measured")
    # 2 * 32^3 in a microsecond
    assert checks[f"{name}: products"] == ("ok", "0.1 TFLOP/s in bfloat16, measured")
    assert checks["nccl"][0] == "warn"
    assert set(checks) >= {"triton", "nccl"}


def test_rates_are_measured_on_the_device_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    monkeypatch.setattr(accelerators, "COPIED_BYTES", 1 << 20)
    monkeypatch.setattr(accelerators, "PRODUCT_WIDTH", 64)
    device = torch.device("cpu")
    assert accelerators.copy_rate(device) > 1e6
    assert accelerators.product_rate(device) > 1e6
    assert waits == [device] * 4 * (accelerators.TRIALS + 1)


def test_an_accelerator_without_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: torch.device) -> float:
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 512 MiB")

    monkeypatch.setattr(accelerators, "copy_rate", full)
    with pretend_accelerator():
        checks = said()
    assert checks["accelerator lazy:0: rates"] == (
        "warn",
        "not measured: out of memory. Tried to allocate 512 MiB",
    )


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_no_accelerator_is_said_plainly() -> None:
    state, detail = said()["accelerator"]
    assert state == "ok"
    assert detail.startswith(f"none; the CPU is used (torch {torch.__version__}, ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_is_named_with_its_rates() -> None:
    checks = said()
    assert torch.cuda.get_device_name(0) in checks["accelerator cuda:0"][1]
    assert accelerators.copy_rate(torch.device("cuda", 0)) > 5e10
    assert accelerators.product_rate(torch.device("cuda", 0)) > 1e12
