"""The step that estimates are timed with: its decoder has the model's widths, layers add up."""

import pytest
import torch

from agent_forge.pipeline import step_time
from agent_forge.pipeline.step_time import ModelShape, seconds_per_token
from tests.pretend import KIND, pretend_accelerator


def test_layers_and_threads_are_added_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 2 + 3 seconds per layer: 20 layers take 62, and 3 threads do the work of 2.7."""
    monkeypatch.setattr(step_time, "_step_seconds", lambda _, layers, *__: 2.0 + 3.0 * layers)
    shape = ModelShape(10**6, 64, 20, 20, 100)
    before = torch.get_num_threads()
    assert seconds_per_token(shape, "cpu", "float32", 1) == pytest.approx(62.0)
    assert seconds_per_token(shape, "cpu", "float32", 3) == pytest.approx(62.0 / 2.7)
    assert torch.get_num_threads() == before


def test_noise_never_makes_a_layer_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "_step_seconds", lambda _, layers, *__: 9.0 / layers)
    many = seconds_per_token(ModelShape(10**6, 64, 41, 41, 100), "cpu", "float32", 1)
    assert many == pytest.approx(9.0 + 40 * 0.1)


@pytest.mark.parametrize("hidden", [64, 50, 33, 576])
def test_the_timed_decoder_is_as_large_as_the_model(hidden: int) -> None:
    words, blocks = 512, 4
    per_block = 12 * hidden * hidden
    shape = ModelShape(words * hidden + blocks * per_block, hidden, 8, blocks, words)
    model = step_time._decoder(shape, 3)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(words * hidden + 3 * per_block, rel=0.12)


def test_a_model_of_layers_that_run_twice_takes_longer() -> None:
    """A real timing: eight passes through layers of 256 units against one."""
    once = seconds_per_token(ModelShape(2 * 10**6, 256, 1, 1, 256), "cpu", "float32", 1)
    often = seconds_per_token(ModelShape(2 * 10**6, 256, 64, 1, 256), "cpu", "float32", 1)
    assert often > 2 * once


def test_an_accelerator_is_timed_with_the_rows_of_the_phase_as_its_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU, and where free memory is unknown, a step has at most eight rows."""
    device, words = torch.device("cuda", 0), 49_152
    cpu_rows = step_time._rows(10**6, words, torch.device("cpu"), 32_768)
    assert cpu_rows == step_time.MOST_ROWS
    assert step_time._rows(10**10, words, torch.device("cpu"), 32_768) == 1
    for free, step_tokens, rows in (
        (80 * 10**9, 32_768, 198),  # a quarter of 80 GB holds logits of 198 x 128 tokens
        (160 * 10**9, 32_768, 256),
        (80 * 10**9, 100, 8),
        (10**6, 32_768, 1),
        (0, 32_768, 8),
    ):
        monkeypatch.setattr(step_time, "free_bytes", lambda _, free=free: free)
        assert step_time._rows(10**6, words, device, step_tokens) == rows


def test_a_dry_run_times_the_pretend_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate knows the device: what is timed lies on it, in steps of the phase's size."""
    seen: list[tuple[str, int]] = []
    real = step_time._rows

    def rows(parameters: int, words: int, device: torch.device, step_tokens: int) -> int:
        seen.append((device.type, step_tokens))
        return min(real(parameters, words, device, step_tokens), 2)

    monkeypatch.setattr(step_time, "_rows", rows)
    with pretend_accelerator() as device:
        shape = ModelShape(30_000, 32, 2, 2, 64)
        assert seconds_per_token(shape, str(device), "auto", 1, 4096) > 0
    assert seen == [(KIND, 4096)] * 2
