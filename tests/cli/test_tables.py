"""Tables fit a terminal of 80 columns and say what the run's answer is."""

import io

from rich.console import Console

from agent_forge.cli.tables import gate_table, human_bytes
from agent_forge.pipeline.outcome import Outcome


def outcome(phase: str, status: str, **scores: tuple[float, bool]) -> Outcome:
    verdict = {
        "scores": {
            task: {"value": value, "at_chance": chance} for task, (value, chance) in scores.items()
        }
    }
    return Outcome(
        phase=phase, status=status, message="", input_hash="", outputs=[], parent="",
        checkpoint_id="", deployable_bytes=1_663_000, file_bytes=5_930_000,
        peak_memory_bytes=1_783_000_000, seconds=1234.4, tokens_per_second=235.0,
        verdict=verdict if scores else None, report={},
    )  # fmt: skip


def shown(outcomes: list[Outcome]) -> list[str]:
    console = Console(width=80, file=io.StringIO())
    console.print(gate_table(outcomes))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_gate_table_has_one_line_per_phase_and_names_what_is_at_chance() -> None:
    lines = shown([
        outcome(
            "quietstar", "done",
            text=(1.788, False), reasoning=(0.117, True), tools=(0.1, True),
        ),
        outcome(
            "compress", "rejected",
            text=(1.754, False), reasoning=(0.078, True), tools=(0.867, False),
        ),
        outcome("bake", "interrupted"),
    ])  # fmt: skip
    rows = [line.split() for line in lines]
    assert [
        "quietstar",
        "passed",
        "1.788",
        "chance",
        "1.66",
        "MB",
        "5.93",
        "MB",
        "1.78",
        "GB",
        "1,234",
        "s",
    ] in rows
    assert [
        "compress",
        "rejected",
        "1.754",
        "0.867",
        "1.66",
        "MB",
        "5.93",
        "MB",
        "1.78",
        "GB",
        "1,234",
        "s",
    ] in rows
    assert [
        "bake",
        "interrupted",
        "-",
        "-",
        "1.66",
        "MB",
        "5.93",
        "MB",
        "1.78",
        "GB",
        "1,234",
        "s",
    ] in rows
    assert "At chance, so not gated: reasoning." in [line.strip() for line in lines]
    assert max(map(len, lines)) <= 80


def test_sizes_have_three_figures() -> None:
    sizes = [0, 999, 1000, 55_500, 551_100, 5_730_000, 409_420_000, 1.783e9]
    assert [human_bytes(size) for size in sizes] == [
        "0 B", "999 B", "1.00 kB", "55.5 kB", "551 kB", "5.73 MB", "409 MB", "1.78 GB",
    ]  # fmt: skip
