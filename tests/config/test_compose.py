"""Composition: conf < file < command line, typed, and every mistake is one line with a remedy."""

from pathlib import Path

import pytest

from agent_forge.config import PhaseConfig
from agent_forge.config.compose import CONF, compose, compose_tree
from agent_forge.core.errors import ConfigError
from agent_forge.phases.bitnet import Config as BitnetConfig


def base(*overrides: str, file: str | None = None) -> PhaseConfig:
    return compose("base", PhaseConfig, ["out=x", *overrides], file)


def test_the_command_line_wins_over_the_file_and_the_file_over_conf(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text('seed: 3\ngate: {items: 7}\ndata: {text: ["it\'s a, b.txt"]}\n')
    assert base().seed == 0
    assert base(file=str(file)).seed == 3
    found = base("seed=5", file=str(file))
    assert (found.seed, found.gate.items, found.data.text) == (5, 7, ["it's a, b.txt"])


def test_seed_zero_is_a_seed() -> None:
    assert base("seed=0").seed == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gate.itms=3", "unknown key 'gate.itms'; did you mean 'gate.items'"),
        ("sede=3", "unknown key 'sede'; did you mean 'seed'"),
        ("gate.items=many", "gate.items"),
        ("gate.on_failure=stopp", "gate.on_failure must be one of stop, rollback, continue"),
        ("runtime.dtype=bfloat17", "float16, auto, got 'bfloat17'; did you mean 'bfloat16'"),
        ("runtime.processes=0", "runtime.processes must be in [1, 4096], got 0"),
        ("items", "is not KEY=VALUE"),
        ("data._target_=builtins.exec", "_target_ is not accepted"),
        ("gate.items=[", "gate.items"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        base(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gate: {itms: 3}", "did you mean 'gate.items'"),
        ("a: [", "not valid YAML"),
        ("- 1", "KEY: VALUE"),
        ("data: {_target_: builtins.exec}", "_target_ is not accepted"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        base(file=str(file))


def test_a_missing_value_and_a_missing_file_are_named() -> None:
    with pytest.raises(ConfigError, match="no value for out"):
        compose("base", PhaseConfig)
    with pytest.raises(ConfigError, match="No such file"):
        base(file="nowhere.yaml")


def test_a_mapping_of_free_keys_takes_new_ones() -> None:
    mix = compose("bitnet", BitnetConfig, ["out=x", "train.mix={text: 0, mixed: 1}"]).train.mix
    assert (mix["mixed"], mix["text"]) == (1, 0)
    assert mix["tools"] > 0


def test_run_all_searches_for_a_minute_and_evomerge_at_the_specifications_budget() -> None:
    assert compose_tree("run_all").evomerge.search.generations == 6
    assert compose_tree("evomerge").search.generations == 50
    assert compose_tree("run_all", ["search@evomerge.search=spec"]).evomerge.search.generations == 50


def test_gate_tasks_take_new_names() -> None:
    assert base("gate.tasks.choice=0.9").gate.tasks == {**base().gate.tasks, "choice": 0.9}
    assert base("gate.chain.choice=0.8").gate.chain == {**base().gate.chain, "choice": 0.8}


def test_every_line_of_conf_that_sets_a_value_says_what_it_is() -> None:
    """The defaults are the documentation: in base.yaml every leaf has a comment."""
    for line in (CONF / "base.yaml").read_text().splitlines():
        if ":" in line and not line.strip().startswith("#") and not line.rstrip().endswith(":"):
            assert "#" in line, line
