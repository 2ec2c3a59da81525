"""Composition: conf < file < command line, typed, and every mistake is one line with a remedy."""

from operator import attrgetter
from pathlib import Path

import pytest

from agent_forge.config import PhaseConfig
from agent_forge.config.compose import CONF, compose, compose_tree, default_runtime
from agent_forge.config.explain import explanations
from agent_forge.core.errors import ConfigError
from agent_forge.phases.bitnet import Config as BitnetConfig
from agent_forge.pipeline.catalogue import phases


def base(*overrides: str, file: str | None = None) -> PhaseConfig:
    return compose("base", PhaseConfig, ["out=x", *overrides], file)


def test_the_command_line_wins_over_the_file_and_the_file_over_conf(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text('seed: 3\ngate: {items: 7}\ndata: {text: ["it\'s a, b.txt"]}\n')
    assert base().seed == 0
    assert base(file=str(file)).seed == 3
    result = base("seed=5", file=str(file))
    assert (result.seed, result.gate.items, result.data.text) == (5, 7, ["it's a, b.txt"])


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
    with pytest.raises(ConfigError, match="out must be text that is not empty"):
        compose("base", PhaseConfig)
    with pytest.raises(ConfigError, match="No such file"):
        base(file="nowhere.yaml")


def test_a_mapping_of_free_keys_takes_new_ones() -> None:
    mix = compose("bitnet", BitnetConfig, ["out=x", "train.mix={text: 0, mixed: 1}"]).train.mix
    assert (mix["mixed"], mix["text"]) == (1, 0)
    assert mix["tools"] > 0


def test_run_all_searches_for_a_minute_and_evomerge_at_the_specifications_budget() -> None:
    assert compose_tree("run_all").evomerge.search.generations == 3
    assert compose_tree("evomerge").search.generations == 50
    assert (
        compose_tree("run_all", ["search@evomerge.search=spec"]).evomerge.search.generations == 50
    )


def test_gate_tasks_take_new_names() -> None:
    assert base("gate.tasks.choice=0.9").gate.tasks == {**base().gate.tasks, "choice": 0.9}
    assert base("gate.chain.choice=0.8").gate.chain == {**base().gate.chain, "choice": 0.8}


def test_every_line_of_conf_that_sets_a_value_says_what_it_is() -> None:
    """The defaults are the documentation: in the files that phases share every leaf has a
    comment.
    """
    for name in ("base", "_shared/data", "_shared/runtime", "optim/adamw"):
        for line in (CONF / f"{name}.yaml").read_text().splitlines():
            if ":" in line and not line.strip().startswith("#") and not line.rstrip().endswith(":"):
                assert "#" in line, line


@pytest.mark.parametrize(
    ("phase", "key"),
    [("cognate", "trunk.optim"), ("cognate", "branch.optim"), ("quietstar", "optim"), ("bitnet", "train.optim"),
     ("train", "optim"), ("bake", "training.optim"), ("adas", "experts.optim"), ("compress", "recover.optim")],
)  # fmt: skip
def test_an_optimiser_is_chosen_by_name_and_its_knobs_are_explained_once(
    phase: str, key: str
) -> None:
    kind = phases()[phase].config
    group = "optim" if key == "optim" else f"optim@{key}"
    chosen = attrgetter(key)(compose(phase, kind, ["out=x", f"{group}=muon", f"{key}.lr=0.25"]))
    assert (chosen.method, chosen.lr) == ("muon", 0.25)
    explained = explanations(phase)
    for name in ("method", "beta1", "beta2"):
        assert explained[f"{key}.{name}"] == explanations("optim/adamw")[name]


def test_the_name_of_a_group_takes_settings_in_braces_too() -> None:
    train = compose("train", phases()["train"].config, ["out=x", "optim={lr: 0.25, method: muon}"])
    assert (train.optim.lr, train.optim.method, train.optim.muon_lr) == (0.25, "muon", 0.01)
    search = compose(
        "evomerge", phases()["evomerge"].config, ["out=x", "search={race: [0.5, 1], islands: 2}"]
    ).search
    assert (search.race, search.islands, search.population) == ([0.5, 1.0], 2, 8)
    mixed = compose("cognate", phases()["cognate"].config, ["out=x", "recall={filler_from: 0.5}"])
    assert mixed.recall.filler_from == 0.5
    for wrong, message in (
        ("optim={lr: 0.1", "cannot|lacks|ends"),
        ("optim={lr}", "'lr' has no value"),
    ):
        with pytest.raises(ConfigError, match=message):
            compose("train", phases()["train"].config, ["out=x", wrong])


def test_runtime_settings_have_one_place_for_their_defaults() -> None:
    for name, phase in phases().items():
        assert compose(name, phase.config, ["out=x"]).runtime == default_runtime()
    run = compose_tree("run_all").runtime
    changed = {key: value for key, value in run.items() if value != getattr(default_runtime(), key)}
    assert changed == {"dtype": "auto"}
