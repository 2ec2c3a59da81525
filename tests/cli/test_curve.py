"""`forge compress --curve` sets its setting.

The curve is printed, kept in the manifest and drawn.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint
from agent_forge.pipeline import report
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.report import words

Cli = Callable[..., Result]


@pytest.fixture
def compress(tiny_checkpoint: Checkpoint, text_folder: Path, tmp_path: Path) -> list[str]:
    """Return a small run of compress, without a gate."""
    return [
        "compress", f"sources=[{tiny_checkpoint.path}]", f"out={tmp_path / 'out'}",
        f"data.text=[{text_folder}]", f"data.cache={tmp_path / 'cache'}", "runtime.threads=1",
        "gate.enabled=false", "codec.min_weights=64",
        "codec.candidates=[{codec:waterfill,step:0.2},{codec:waterfill,step:2.0}]",
        "calibration.windows=4", "calibration.count_windows=4", "calibration.length_tokens=48",
        "measure.windows=2", "measure.length_tokens=48", "budget.quality_floor=0",
        "budget.bytes_ratio=0.3", "curve.speed_tokens=4",
    ]  # fmt: skip


def test_the_curve_is_printed_kept_in_the_manifest_and_drawn_in_the_report(
    cli: Cli, compress: list[str], tmp_path: Path
) -> None:
    done = cli(*compress, "--curve", "curve.bytes_ratios=[0.15,0.25]")
    assert done.exit_code == 0, done.stderr
    assert "curve: bytes, quality, speed" in done.stdout
    curve = checkpoint.open(tmp_path / "out").manifest.extra["curve"]
    assert [row["of_fp32"] <= ratio for row, ratio in zip(curve, (0.25, 0.15), strict=True)] == [
        True,
        True,
    ]
    for row in curve:
        assert words.number(row["bytes"] / 1e6) in done.stdout
    page = report.to_html(report.facts_of(tmp_path, report.read_run(tmp_path)), {})
    assert ">compress: curve: bytes, quality, speed</title>" in page
    assert f'<data value="{min(row["bytes"] for row in curve)}">' in page


def test_without_the_flag_no_curve_is_measured_and_json_says_so(
    cli: Cli, compress: list[str], tmp_path: Path
) -> None:
    done = cli(*compress, "--json")
    assert done.exit_code == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert not outcome["report"]["plots"]
    assert "curve" not in checkpoint.open(tmp_path / "out").manifest.extra


def test_a_dry_run_with_a_curve_counts_its_files_and_writes_nothing(
    cli: Cli, compress: list[str], tmp_path: Path
) -> None:
    plain, curved = (
        json.loads(cli(*compress, "--dry-run", "--json", *flag).stdout)
        for flag in ([], ["--curve"])
    )
    assert curved["tokens"] > plain["tokens"]
    assert not (tmp_path / "out").exists()


def test_a_size_that_is_no_share_is_refused_with_a_remedy(cli: Cli, compress: list[str]) -> None:
    refused = cli(*compress, "--curve", "curve.bytes_ratios=[50]")
    assert refused.exit_code == 2
    assert "curve.bytes_ratios must be in (0, 1], got 50.0" in refused.stderr


def test_only_compress_has_the_flag() -> None:
    flags = {name: [flag.name for flag in phase.flags] for name, phase in phases().items()}
    assert [name for name, names in flags.items() if "curve" in names] == ["compress"]
