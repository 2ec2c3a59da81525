"""What an accelerator changes by default: bfloat16 in training, batches of evaluation that follow
free memory.
"""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from agent_forge.anatomy import chunks
from agent_forge.core import device as devices
from agent_forge.core.events import Event, EventLog, choices_said
from agent_forge.evaluate import engine
from agent_forge.learn import precision
from agent_forge.learn.records import StageChoices
from agent_forge.phases.compress import measure
from tests.pretend import KIND, pretend_accelerator


def chosen(device: torch.device) -> tuple[torch.dtype, str]:
    said: list[Event] = []
    log = EventLog(None, "train", (said.append,))
    dtype = precision.chosen(
        nn.Linear(2, 2), 8, device, StageChoices("adapt", log, lambda value: value)
    )
    return dtype, said[-1].message


def test_pretend_accelerator_with_bfloat16_gets_it_without_a_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(*_: object) -> float:
        raise AssertionError("products of a small model say nothing on an accelerator")

    monkeypatch.setattr(precision, "measured_gain", measured)
    with pretend_accelerator() as device:
        dtype, line = chosen(device)
    assert dtype == torch.bfloat16
    assert line == f"adapt: bfloat16 products ({KIND} has it)"


def test_pretend_accelerator_without_bfloat16_stays_at_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = torch.ones

    def ones(*shape: int, **options: object) -> torch.Tensor:
        if options.get("dtype") == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on this device")
        return real(*shape, **options)  # type: ignore[call-overload]

    with pretend_accelerator() as device:
        assert devices.has_bfloat16(device)
        monkeypatch.setattr(torch, "ones", ones)
        assert not devices.has_bfloat16(device)
        dtype, line = chosen(device)
    assert dtype == torch.float32
    assert line == f"adapt: float32 products ({KIND} has no bfloat16)"


def test_batches_of_evaluation_follow_free_memory(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = tiny_llama.config.vocab_size
    assert engine._token_limit(tiny_llama, 0) == 4096
    assert engine._token_limit(tiny_llama, 100) == 100
    monkeypatch.setattr(engine, "free_bytes", lambda _: 80_000_000_000)
    assert engine._token_limit(tiny_llama, 0) == 65536
    assert engine._token_limit(tiny_llama, 100) == 100
    monkeypatch.setattr(engine, "free_bytes", lambda _: 32 * vocabulary * 1000)
    assert engine._token_limit(tiny_llama, 0) == 1000
    assert engine._token_limit(tiny_llama, 5000) == 1000


def test_pretend_accelerator_says_its_batches_and_chunks_in_one_line_each(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in a process, as events of the phase.

    And nothing is said of the CPU, whose sizes are fixed.
    """
    lines: list[str] = []
    rows, vocabulary = [([1, 5, 9, 7], [False, True, True, True])], tiny_llama.config.vocab_size
    gigabytes = 32 * vocabulary * 1000 / 1e9
    monkeypatch.setattr(engine, "_logged_limits", set())
    monkeypatch.setattr(chunks, "_logged_chunks", set())
    chunks.rows_at_once.cache_clear()
    with choices_said(lines.append):
        engine.row_nll(tiny_llama, rows)
        assert lines == []
        with pretend_accelerator() as device:
            model = tiny_llama.to(device)  # type: ignore[arg-type]
            for _ in range(2):
                engine.row_nll(model, rows)
            chunks.rows_at_once(10, vocabulary, model.device)
            monkeypatch.setattr(engine, "free_bytes", lambda _: 32 * vocabulary * 1000)
            engine.row_nll(model, rows, 5000)
            engine.row_nll(model, rows, 7)
    chunks.rows_at_once.cache_clear()
    of_evaluation = f"evaluation on {KIND}:0: up to"
    assert lines == [
        f"{of_evaluation} 4,096 tokens in a pass (as on the CPU: its free memory cannot be asked)",
        f"logits on {KIND}:0: at most {chunks.CPU_ENTRIES // vocabulary:,} rows of "
        f"{vocabulary} at once "
        "(its free memory cannot be asked)",
        f"{of_evaluation} 1,000 tokens in a pass (logits of {vocabulary} entries per "
        f"token in {gigabytes:.1f} GB of free "
        "memory)",
        f"{of_evaluation} 7 tokens in a pass (as set)",
    ]


def test_warnings_still_reach_stderr_while_choices_are_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As without a listener; not twice where the program has handlers of its own."""
    log, root, lines = logging.getLogger("agent_forge"), logging.getLogger(), list[str]()
    handlers, root.handlers = root.handlers, []
    try:
        with choices_said(lines.append):
            log.warning("cut on the left")
            log.info("chosen")
    finally:
        root.handlers = handlers
    assert lines == ["chosen"]
    assert capsys.readouterr().err == "cut on the left\n"
    assert log.level == logging.NOTSET
    assert not log.handlers


def test_a_device_of_the_cpu_has_no_memory_of_its_own() -> None:
    assert devices.free_bytes(torch.device("cpu")) == 0
    assert devices.describe(torch.device("cpu")) == "cpu"


def test_pretend_accelerator_scores_rows_as_the_cpu_does(tiny_llama: LlamaForCausalLM) -> None:
    rows = [([1, 5, 9, 7][:size], [False, True, True, True][:size]) for size in (2, 3, 4)]
    expected = engine.row_nll(tiny_llama, rows)
    with pretend_accelerator() as device:
        losses = engine.row_nll(tiny_llama.to(device), rows)  # type: ignore[arg-type]
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["text", "reasoning", "memory", "tools"])
def test_pretend_accelerator_scores_every_task(name: str, tiny_run: Path) -> None:
    from agent_forge import checkpoint, evaluate, models
    from agent_forge.config import DataConfig

    source = checkpoint.open(tiny_run / "6-bake")
    data = DataConfig(**source.manifest.config["data"])
    context = evaluate.EvalContext(data=data, tokenizer=models.load_tokenizer(source), seed=1)
    with pretend_accelerator() as device:
        model = models.load(source, device=device)
        scores = evaluate.score(model, context.tokenizer, [name], "validation", 3, context)
    assert len(scores[name].values) == 3


def test_windows_scored_at_once_by_compress_follow_free_memory(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "CPU_LOGITS", 7 * 48 * tiny_llama.config.vocab_size)
    assert measure._windows_at_once(tiny_llama, 10, 48) == 7
    monkeypatch.setattr(chunks, "CPU_ENTRIES", 48 * tiny_llama.config.vocab_size)
    per_window = chunks.BYTES_PER_ENTRY * 48 * tiny_llama.config.vocab_size
    for free_windows, expected in ((0, 1), (12, 3), (400, 10)):
        monkeypatch.setattr(chunks, "free_bytes", lambda _, n=free_windows: n * per_window)
        chunks.rows_at_once.cache_clear()
        with pretend_accelerator() as device:
            assert measure._windows_at_once(tiny_llama.to(device), 10, 48) == expected
    chunks.rows_at_once.cache_clear()
