"""Calibration and distillation on a built data set: its domains, its benchmarks, its report."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from agent_forge import checkpoint, evaluate
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig, Report
from agent_forge.config.compose import compose
from agent_forge.core.errors import DataError
from agent_forge.core.events import EventLog
from agent_forge.data.sets import DOMAINS, DataSet
from agent_forge.phases import PhaseRun, bitnet, compress
from agent_forge.phases.bitnet import run as bitnet_run
from agent_forge.phases.compress import check as compress_check
from agent_forge.phases.compress import run as compress_run
from agent_forge.pipeline.data_set import build, compose_recipe

COMPRESS = [
    "calibration.windows=5", "calibration.count_windows=0", "calibration.length_tokens=48",
    "measure.windows=2", "measure.length_tokens=48", "measure.unseen_items=4",
    "measure.domain_items=1", "codec.candidates=[{codec: intk, bits: 8, group: 32}]",
    "codec.min_weights=64", "budget={quality_floor: 0, bytes_ratio: 0.5}", "runtime.device=cpu",
]  # fmt: skip
BITNET = [
    "linear.group_size=16", "init.method=absmean", "train.steps=1", "train.rows=2",
    "train.length_tokens=64", "measure_items=2", "unseen_items=2", "domain_items=1",
    "runtime.device=cpu", "train.optim.warmup_steps=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def broad(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Return a small data set of packages, declared to hold a benchmark's data."""
    out = tmp_path_factory.mktemp("sets")
    settings = ["size_bytes=240000", "report=[mathematics]", "benchmarks=[bigbench]", f"out={out}"]
    return build("broad", compose_recipe("broad", settings), lambda _: None)


ROOMS: dict[str, tuple[Any, Any]] = {
    "compress": (compress, compress_run), "bitnet": (bitnet, bitnet_run),
}  # fmt: skip


def forge(
    name: str, settings: list[str], parent: Checkpoint, data: DataConfig, out: Path
) -> Report:
    room, code = ROOMS[name]
    config = compose(name, room.Config, [*settings, f"out={out}", f"sources=[{parent.path}]"])
    config = dataclasses.replace(config, data=data)
    space = Workspace(out, phase=name, seed=config.seed, config=config, parents=[parent])
    report: Report = code.run(PhaseRun(config, [parent], space, EventLog(None, name)))
    return report


def test_compress_calibrates_on_the_domains_of_a_set_and_measures_each(
    broad: DataSet, data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    texts = f"calibration.texts={broad.path}"
    out = tmp_path / "out"
    report = forge("compress", [*COMPRESS, texts], tiny_checkpoint, data_config, out)
    assert {f"{name}_kept" for name in DOMAINS} <= set(report.metrics)
    assert "text_kept" not in report.metrics
    rows = report.tables[evaluate.TABLE]
    assert [row["domain"] for row in rows] == list(DOMAINS)
    assert all(row["in the calibration"] for row in rows)
    assert checkpoint.open(out).manifest.extra["benchmarks"] == ["bigbench"]


def test_bitnet_distils_on_the_set_and_its_descendants_name_the_benchmark_too(
    broad: DataSet, data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    texts = f"train.texts={broad.path}"
    out = tmp_path / "out"
    report = forge("bitnet", [*BITNET, texts], tiny_checkpoint, data_config, out)
    assert f"domain_{DOMAINS[0]}_kept" in report.metrics
    assert "perplexity kept by domain: prose" in report.summary
    ternary = checkpoint.open(out)
    child = Workspace(tmp_path / "child", phase="train", seed=0, config={}, parents=[ternary])
    written = child.write(lambda directory: (directory / "a.txt").write_text("a"))  # type: ignore[arg-type,return-value]
    assert written.manifest.extra["benchmarks"] == ["bigbench"]


def test_a_set_that_is_not_there_is_refused_before_work_starts(tmp_path: Path) -> None:
    config = compose("compress", compress.Config, [f"calibration.texts={tmp_path}", "out=x"])
    with pytest.raises(DataError, match="is not a data set"):
        compress_check.check(config)
