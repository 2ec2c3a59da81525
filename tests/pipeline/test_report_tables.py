"""The tables in README: the chain comes first, chance, both sizes and baselines are named."""

import re
from pathlib import Path

from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.report.tables import (
    chain_rows,
    kept_cell,
    markdown_tables,
    quality_cell,
    row,
)


def retained(ratio: float | None, low: float = 0.0, **changes: object) -> dict[str, object]:
    return {
        "ratio": ratio,
        "low": low,
        "high": 1.0,
        "limit": 0.9,
        "at_chance": False,
        "note": "",
        **changes,
    }


def scored(value: float, *, at_chance: bool = False) -> dict[str, object]:
    return {
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "n": 128,
        "at_chance": at_chance,
    }


def outcome(phase: str, status: str, text_kept: float) -> Outcome:
    verdict = {
        "passed": status == "done", "reasons": [],
        "scores": {"text": scored(1.8), "memory": scored(0.2, at_chance=True)},
        "base_scores": {"text": scored(1.7), "memory": scored(0.25, at_chance=True)},
        "base": {"name": "trunk"},
        "retentions": {
            "text": retained(0.98, 0.97),
            "memory": retained(None, at_chance=True, note="at chance: not gated"),
        },
        "chain": {"text": retained(text_kept, 0.93), "memory": retained(0.8, at_chance=True)},
    }  # fmt: skip
    return Outcome(
        phase=phase,
        status=status,
        input_hash="0",
        verdict=verdict,
        deployable_bytes=1_650_000,
        file_bytes=5_930_000,
    )


def test_the_chain_comes_first_and_is_that_of_the_last_accepted_model() -> None:
    outcomes = [
        outcome("train", "done", 0.96),
        outcome("bake", "done", 0.95),
        outcome("adas", "rejected", 0.5),
    ]
    text, memory = chain_rows(outcomes)
    assert (text["kept"], text["limit"], text["left"]) == ("0.950 (≥ 0.930)", "0.900", "0.947")
    assert (memory["kept"], memory["limit"]) == ("at chance", "not gated")
    assert "base: trunk" in text
    assert "final: bake" in text
    text_table = markdown_tables(outcomes)
    assert text_table.index("final: bake") < text_table.index("kept of parent")
    assert not chain_rows([Outcome(phase="cognate", status="done", input_hash="0")])


def test_at_chance_is_said_wherever_a_score_stands() -> None:
    one = outcome("train", "done", 0.96)
    assert (
        quality_cell(one)
        == "text 1.800 [1.700, 1.900] n=128; memory 0.200 [0.100, 0.300] n=128, at chance"
    )
    assert kept_cell(one) == "text 0.980 (≥ 0.970); memory at chance"


def test_both_sizes_stand_beside_each_other() -> None:
    cells = row(outcome("train", "done", 0.96))
    assert (cells["packed"], cells["files"]) == ("1.650 MB", "5.930 MB")


def test_the_baseline_of_equal_budget_stands_in_the_table_or_that_none_ran() -> None:
    one = outcome("evomerge", "done", 0.96)
    assert row(one)["baseline of equal budget"] == "none ran"
    one.report = {"baseline": "+0.010 [-0.001, +0.020] fitness over random search on as many items"}
    assert "+0.010 [-0.001, +0.020] fitness over random search" in markdown_tables([one])


def test_the_readmes_block_has_the_form_of_the_scripts_tables() -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    marker = "<!-- run-all tables: {} -->"
    block = page.partition(marker.format("begin"))[2].partition(marker.format("end"))[0].strip()
    tables = markdown_tables([outcome("train", "done", 0.96)]).splitlines()
    shapes = [re.sub(r"(base|final): \w+", r"\1", line) for line in block.splitlines()]
    heads = [re.sub(r"(base|final): \w+", r"\1", tables[place]) for place in (0, 5)]
    assert [line for line in shapes if line.startswith(("| task", "| phase"))][-1] == heads[1]
    assert all(line in heads for line in shapes if line.startswith(("| task", "| phase")))
    width = heads[1].count("|")
    begun = shapes.index(heads[1])
    rows = [line for line in shapes[begun + 2 :] if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in rows] == list(phases())
    assert all(line.count("|") == width for line in rows)
    assert re.fullmatch(r"Phases took [\d,]+ s together; .* was [\d,]+ MB\.", shapes[-1])
