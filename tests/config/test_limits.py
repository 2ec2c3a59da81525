"""Every number that can be set has limits beside its field, and a value outside them is refused
before any work.
"""

import dataclasses
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import agent_forge
from agent_forge.config.compose import compose_tree, to_typed
from agent_forge.config.limits import OneOf, Range, check, limits
from agent_forge.config.overrides import bare, field_hints
from agent_forge.core.errors import ConfigError
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.run_all import compose_run

WRONG = (float("nan"), float("inf"), -(10.0**30), 10.0**30)
WRONG_INT = (-(10**30), 10**30)


def numbers(hint: Any, path: tuple[Any, ...], value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield (path, annotated type) of every number that `value` of type `hint` holds."""
    kind = bare(hint)
    if kind in (int, float):
        yield path, hint
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        for name, inner in field_hints(kind).items():
            yield from numbers(inner, (*path, name), value[name])
    elif typing.get_origin(kind) is list:
        if value and bare(typing.get_args(kind)[0]) in (int, float):
            yield (*path, 0), typing.get_args(kind)[0]
    elif typing.get_origin(kind) is dict:
        for name, item in value.items():
            yield from numbers(typing.get_args(kind)[1], (*path, name), item)


@pytest.mark.parametrize("name", [*phases()])
def test_every_number_of_a_phase_refuses_nan_negative_and_huge_values_by_name(name: str) -> None:
    schema = phases()[name].config
    plain: Any = OmegaConf.to_container(compose_tree(name, ["out=x"]), resolve=True)
    result = list(numbers(schema, (), plain))
    assert len(result) > 30
    for path, hint in result:
        assert any(isinstance(limit, (Range, OneOf)) for limit in limits(hint)), (
            f"{name}: {path} has no limits"
        )
        for wrong in WRONG_INT if bare(hint) is int else WRONG:
            place = plain
            for part in path[:-1]:
                place = place[part]
            before, place[path[-1]] = place[path[-1]], wrong
            with pytest.raises(ConfigError) as caught:
                check(plain, schema)
            place[path[-1]] = before
            words = [part for part in path if isinstance(part, str)]
            assert ".".join(words) in str(caught.value), caught.value
            assert "must be" in str(caught.value)
            assert caught.value.exit_code == 2
    to_typed(plain, schema, name)  # everything was put back: the defaults are within their limits


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("runtime.device=banana", "cognate.runtime.device must be auto, cpu, cuda"),
        ("runtime.threads=-1", "cognate.runtime.threads must be in [0, 4096], got -1"),
        (
            "cognate.model.hidden_size=65",
            "model.hidden_size must be an even multiple of",
        ),
        ("cognate.model.vocab_size=0", "cognate.model.vocab_size must be at least 264"),
        ("cognate.trunk.rows=0", "cognate.trunk.rows must be at least 1"),
        ("cognate.trunk.optim.lr=nan", "cognate.trunk.optim.lr must be in [0, 10], got nan"),
        ("cognate.trunk.optim.lr=1e30", "cognate.trunk.optim.lr must be in [0, 10], got 1e+30"),
        ("cognate.trunk.steps=-5", "cognate.trunk.steps must be at least 0"),
        ("compress.gate.tasks.txt=0.9", "compress.gate.tasks: no task 'txt'; did you mean 'text'?"),
        (
            "bake.training.mix.txt=0.9",
            "bake.training.mix: no kind of data 'txt'; did you mean 'text'?",
        ),
        (
            "evomerge.merge.techniques=[tise]",
            "evomerge.merge.techniques: no merge method 'tise'; did you mean 'ties'?",
        ),
        (
            "train.mix={text: 0, reasoning: 0, tools: 0, memory: 0}",
            "train.mix must be a mapping with at least one weight",
        ),
        (
            "bitnet.linear.embedding_bits=7",
            "bitnet.linear.embedding_bits must be one of 0, 2, 4, 8, got 7",
        ),
        ("quietstar.data.cache=", "quietstar.data.cache must be text that is not empty, got ''"),
        ("run_dir=", "run_dir must not be empty"),
        ("evomerge.search.race=[1.0,0.5]", "race must rise to 1.0, got [1.0, 0.5]"),
        ("evomerge.search.race=[0.5]", "race must rise to 1.0, got [0.5]"),
        ("bitnet.codec=x", "unknown key 'bitnet.codec'"),
    ],
)
def test_a_wrong_setting_of_any_phase_ends_the_run_before_it_begins(
    setting: str, message: str
) -> None:
    """Also of phases that run last."""
    with pytest.raises(ConfigError) as caught:
        compose_run([setting])
    assert message in str(caught.value)


def test_a_range_says_what_it_admits() -> None:
    half_open = Range(0, 1, above=True)
    assert [half_open.wrong(v) for v in (0, 1e-9, 1, 1.1, float("nan"), True, "1")] == [
        True,
        False,
        False,
        True,
        True,
        True,
        True,
    ]
    assert str(half_open) == "in (0, 1]"
    assert str(Range(0, 1, below=True)) == "in [0, 1)"
    assert str(Range(1, 10**9)) == "at least 1 and at most 1e+09"


def test_names_of_plugins_are_known_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from agent_forge.pipeline.catalogue import phases; from agent_forge.config.compose import compose;"
        "compose('bitnet', phases()['bitnet'].config, ['out=x', 'gate.tasks.tools=0.5']);"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    root = str(Path(agent_forge.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_in_a_run_every_phase_takes_each_shared_setting_unless_it_has_its_own() -> None:
    """A shared setting that a phase's part of conf/run_all.yaml forgot would be dropped in
    silence.
    """
    tree: Any = OmegaConf.to_container(compose_tree("run_all"), resolve=False)
    for name in phases():
        for group in ("data", "runtime"):
            assert tree[name][group] == {key: f"${{{group}.{key}}}" for key in tree[group]}, (
                name,
                group,
            )
    alone = compose_run(["bitnet.runtime.threads=3", "runtime.threads=2"]).phases
    assert {
        name: config.runtime.threads
        for name, config in alone.items()
        if config.runtime.threads != 2
    } == {"bitnet": 3}
