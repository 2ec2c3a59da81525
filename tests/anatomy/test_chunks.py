"""How many logits are held at once on an accelerator, and when a function is compiled."""

import importlib.util
import logging
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from agent_forge.anatomy import chunks

WORDS = 1 << 15


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Leave nothing that was chosen with a pretended memory."""
    yield
    chunks.rows_at_once.cache_clear()
    chunks._logged_chunks.clear()


def rows(free: float, count: int, monkeypatch: pytest.MonkeyPatch, most_rows: int = 0) -> int:
    chunks.rows_at_once.cache_clear()
    monkeypatch.setattr(chunks, "free_bytes", lambda _: int(free))
    return chunks.rows_at_once(count, WORDS, torch.device("cuda"), most_rows)


def test_a_chunk_takes_a_quarter_of_the_free_memory_within_two_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """24 bytes per entry; never fewer entries than on the CPU, never more than pays."""
    per_row = 24 * WORDS * 4  # free bytes that one row more asks for
    for free, expected in (
        (0, 2**23 // WORDS),  # the memory cannot be asked: as on the CPU
        (1000 * per_row, 1000),
        (1000 * per_row - 4, 999),
        (10**15, 2**28 // WORDS),
    ):
        assert rows(free, expected, monkeypatch) == expected
        assert rows(free, 10**9, monkeypatch) <= expected
        # One row too many makes two chunks, as even as possible.
        assert rows(free, expected + 1, monkeypatch) == -(-(expected + 1) // 2)
    assert rows(1000 * per_row, 2500, monkeypatch) == 834  # three chunks
    assert rows(1000 * per_row, 2500, monkeypatch, most_rows=500) == 500
    assert rows(1000 * per_row, 0, monkeypatch) == 1
    big = chunks.rows_at_once(10, 1 << 30, torch.device("cuda"))
    assert big == 1  # a vocabulary of which no row fits is taken row by row


def test_how_much_is_held_is_said_once_for_each_device_and_vocabulary(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "agent_forge"):
        for free in (12.34e9, 0, 12.34e9):
            rows(free, 10**6, monkeypatch)
    assert [one.getMessage() for one in caplog.records] == [
        "logits on cuda: at most 3,922 rows of 32,768 at once (12.3 GB are free)"
    ]


def test_compiling_pays_on_cuda_with_triton_from_many_logits_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused = chunks.Fused(torch.add)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    for kind, entries, suits in (
        ("cuda", 2**26, True),
        ("cuda", 2**26 - 1, False),
        ("cpu", 2**30, False),
    ):
        assert fused.suits(torch.device(kind), entries) is suits
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert not fused.suits(torch.device("cuda"), 2**30)


def test_what_does_not_compile_is_said_once_and_runs_plainly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    class CompileError(TorchDynamoException):
        pass

    def compiled(_: object) -> object:
        def broken(*_: object) -> None:
            tries.append(1)
            raise CompileError("no compiler here\nand much more")

        return broken

    monkeypatch.setattr(torch, "compile", compiled)
    fused = chunks.Fused(torch.add)
    for _ in range(2):
        assert torch.equal(fused(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))
    assert tries == [1]
    (said,) = [one.getMessage() for one in caplog.records]
    assert said == "the losses' kernel does not compile here (no compiler here); they run unfused"

    def wrong(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(torch, "compile", lambda function: function)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        chunks.Fused(wrong)()
