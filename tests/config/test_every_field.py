"""Every setting is read by code, every shipped YAML composes, and conf/ is inside the wheel."""

import ast
import dataclasses
import itertools
import subprocess
import sys
import typing
import zipfile
from pathlib import Path

import pytest

import agent_forge
from agent_forge.config import DataConfig, GateConfig, OptimConfig, PhaseConfig, RuntimeConfig
from agent_forge.config.compose import CONF, compose, groups
from agent_forge.config.ternary import TernarySettings
from agent_forge.phases.bake import OwnConfig
from agent_forge.phases.quietstar import TaskConfig
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.run_all import compose_run, goal_line
from agent_forge.search.settings import EvolveSettings

PACKAGE = Path(agent_forge.__file__).parent
# Where the settings that phases share are read; a phase's own are read in its room.
SHARED: dict[type, tuple[str, ...]] = {
    PhaseConfig: ("pipeline", "phases", "checkpoint"),
    DataConfig: ("data",),
    RuntimeConfig: ("pipeline", "phases", "learn"),
    GateConfig: ("pipeline", "evaluate"),
    OptimConfig: ("learn",),
    OwnConfig: ("evaluate", "phases/bake"),
    TaskConfig: ("learn", "phases/quietstar"),
    EvolveSettings: ("search", "phases/evomerge"),
    TernarySettings: ("models/ternary", "config"),
}


def names_read(files: typing.Iterable[Path]) -> set[str]:
    """Return the attributes that code reads outside `validate`, and the names it passes to getattr.

    Where a name passed to getattr is a variable, the strings in the tuples and dictionaries of
    those files count. A dataclass that is unpacked whole, `Kind(**asdict(config.part))`, counts as
    a read of all its fields: what it is unpacked into must have them.
    """
    result: set[str] = set()
    listed: set[str] = set()
    by_variable = False
    for file in files:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                node.body = [part for part in node.body if getattr(part, "name", "") != "validate"]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                result.add(node.attr)
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "getattr"
            ):
                result.update(
                    a.value
                    for a in node.args
                    if isinstance(a, ast.Constant) and isinstance(a.value, str)
                )
                by_variable |= not isinstance(node.args[1], ast.Constant)
            elif isinstance(node, (ast.Tuple, ast.Dict)):
                entries = node.elts if isinstance(node, ast.Tuple) else node.keys
                listed.update(
                    e.value
                    for e in entries
                    if isinstance(e, ast.Constant) and isinstance(e.value, str)
                )
    return result | (listed if by_variable else set())


def unpacked_whole(files: typing.Iterable[Path]) -> set[str]:
    """Return the names of settings that are handed on whole: asdict(config.NAME), or for a mapping
    of fields.
    """
    result: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("asdict", "fields")
            ):
                result.update(
                    n.attr
                    for argument in node.args
                    for n in ast.walk(argument)
                    if isinstance(n, ast.Attribute)
                )
    return result


def dataclasses_in(kind: object) -> set[type]:
    """Return the dataclasses that a type names."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return {kind}
    return set(itertools.chain.from_iterable(map(dataclasses_in, typing.get_args(kind))))


def unread(config: type, room: Path) -> list[str]:
    """Return the dotted fields of `config` (of a phase, read in `room`) that no code reads."""
    missing: list[str] = []

    def visit(kind: type, prefix: str, whole: bool) -> None:
        places = [PACKAGE / place for place in SHARED.get(kind, ())] or [room]
        files = [f for place in places for f in place.rglob("*.py")]
        read, handed_on = names_read(files), unpacked_whole(files)
        hints = typing.get_type_hints(kind)
        own = [
            f
            for f in dataclasses.fields(kind)
            if kind is PhaseConfig or f.name not in PhaseConfig.__slots__
        ]
        for field in own:
            if field.name not in read and not whole:
                missing.append(f"{prefix}{field.name}")
            for inner in dataclasses_in(hints[field.name]):
                visit(inner, f"{prefix}{field.name}.", field.name in handed_on)

    visit(config, "", False)
    return missing


@pytest.mark.parametrize("name", [*phases()])
def test_every_setting_of_a_phase_is_read_in_its_room(name: str) -> None:
    assert unread(phases()[name].config, PACKAGE / "phases" / name) == []


def test_every_shared_setting_is_read() -> None:
    assert unread(PhaseConfig, PACKAGE / "pipeline") == []


def test_a_setting_that_nobody_reads_is_found() -> None:
    """The check above can fail: a field that no code knows is named, alone and inside another."""
    extra = dataclasses.make_dataclass(
        "Extra", [("never_read_anywhere", int)], slots=True, kw_only=True
    )
    config = dataclasses.make_dataclass(
        "Config", [("linear", phases()["bitnet"].config.__dataclass_fields__["linear"].type), ("extra", extra),
                   ("forgotten", int)], slots=True, kw_only=True,
    )  # fmt: skip
    config.__annotations__ = {"linear": int, "extra": extra, "forgotten": int}
    result = unread(config, PACKAGE / "phases" / "bitnet")
    assert result == ["extra", "extra.never_read_anywhere", "forgotten"]


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_experiment_composes_for_all_phases(experiment: str) -> None:
    run = compose_run([f"experiment={experiment}"])
    assert list(run.phases) == list(phases())
    assert len({config.out for config in run.phases.values()}) == 8


def group_options() -> list[tuple[str, str, str]]:
    """Return (phase, group, option) for every option of every group that a phase's defaults list
    names.
    """
    import yaml

    result = []
    for name in phases():
        content = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        for entry in content["defaults"]:
            if isinstance(entry, dict):
                result += [
                    (name, group, option)
                    for group in entry
                    for option in groups()[group.partition("@")[0]]
                ]
    return result


@pytest.mark.parametrize(("phase", "group", "option"), group_options())
def test_every_option_of_every_group_composes(phase: str, group: str, option: str) -> None:
    config = compose(phase, phases()[phase].config, ["out=x", f"{group}={option}"])
    assert config.out == "x"


@pytest.mark.parametrize("goal", groups()["goal"])
def test_a_goal_decides_about_ternary_weights_and_the_user_about_the_goal(goal: str) -> None:
    run = compose_run([f"goal={goal}"])
    assert run.goal == goal
    assert ("bitnet" in run.phases) == (goal != "quality")
    if goal != "quality":
        packing = {"size": "five_trits", "speed": "two_bit"}[goal]
        assert run.phases["bitnet"].linear.packing == packing  # type: ignore[attr-defined]
        own = compose_run([f"goal={goal}", "bitnet.linear.packing=two_bit"]).phases["bitnet"]
        assert own.linear.packing == "two_bit"  # type: ignore[attr-defined]
    assert ("no ternary" in goal_line(run)) == (goal == "quality")


def test_no_group_is_left_over() -> None:
    used = {group.partition("@")[0] for _, group, _ in group_options()} | {"experiment", "goal"}
    assert set(groups()) == used


def test_the_wheel_carries_every_yaml_of_conf(tmp_path: Path) -> None:
    pytest.importorskip(
        "setuptools", minversion="80", reason="building a wheel offline needs setuptools"
    )
    root = PACKAGE.parent
    build = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w",
         str(tmp_path), str(root)], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        packed = {
            name.removeprefix("agent_forge/conf/")
            for name in names
            if name.startswith("agent_forge/conf/")
        }
        assert packed == {str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml")}
        assert archive.read("agent_forge/conf/base.yaml") == (CONF / "base.yaml").read_bytes()
    assert "agent_forge/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "conf/", "outputs/"))]
