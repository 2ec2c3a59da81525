"""A phase of seconds for the controller's tests: bitnet on the tiny Llama."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from agent_forge.checkpoint import Checkpoint
from agent_forge.config import DataConfig, PhaseConfig
from agent_forge.config.compose import compose
from agent_forge.pipeline.catalogue import phase_named
from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.run_phase import run_phase

QUICK = [
    "linear.group_size=32", "init.rows=2", "train.rows=2", "train.length_tokens=32",
    "train.steps=3", "measure_items=4", "unseen_items=4", "domain_items=0",     "gate.items=6", "gate.looks=1",
    "gate.speed_ratio=0", "runtime.threads=1",
]  # fmt: skip
Quick = Callable[..., PhaseConfig]


@pytest.fixture(scope="session")
def quick(tiny_checkpoint: Checkpoint, data_config: DataConfig) -> Quick:
    """Return a function that composes a bitnet phase of seconds: quick(out, *overrides)."""

    def make(out: Path, *overrides: str, source: Path | None = None) -> PhaseConfig:
        config = compose(
            "bitnet",
            phase_named("bitnet").config,
            [*QUICK, f"out={out}", f"sources=[{source or tiny_checkpoint.path}]", *overrides],
        )
        config.data = replace(data_config, text=list(data_config.text))
        return config

    return make


@pytest.fixture(scope="session")
def finished(quick: Quick, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return (directory, outcome) of one finished quick phase.

    Copy its parent folder before changing anything.
    """
    out = tmp_path_factory.mktemp("finished") / "bitnet"
    outcome = run_phase("bitnet", quick(out))
    assert outcome.status == "done", outcome.message
    return out, outcome


@pytest.fixture
def as_file(tmp_path: Path) -> Callable[[PhaseConfig], str]:
    """Return a function that writes settings as a YAML file for `--config` and returns its path."""

    def write(config: PhaseConfig) -> str:
        path = tmp_path / f"settings-{len(list(tmp_path.glob('settings-*')))}.yaml"
        path.write_text(yaml.safe_dump(asdict(config)))
        return str(path)

    return write
