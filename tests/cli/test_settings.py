"""`forge settings PHASE` is complete and explained in one place; the examples of help work."""

import json
import re
from collections.abc import Callable

import pytest
from typer.main import get_command
from typer.testing import Result

from agent_forge.cli.app import app
from agent_forge.config.compose import compose, flatten
from agent_forge.config.explain import _comments, settings, tree
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.run_all import compose_run

Cli = Callable[..., Result]
SCHEMAS = {name: phase.config for name, phase in phases().items()}


@pytest.mark.parametrize("name", [*phases()])
def test_every_setting_of_a_phase_is_listed_and_explained(name: str) -> None:
    rows = settings(name, SCHEMAS[name], SCHEMAS)
    assert [row.key for row in rows if not row.explanation] == []
    assert {row.key for row in rows} == {key for key, _ in flatten(tree(name))}
    assert all(row.allowed for row in rows)


def test_the_list_is_printed_as_a_table_and_as_lines_of_json(cli: Cli) -> None:
    table = cli("settings", "bitnet")
    assert table.exit_code == 0, table.stderr
    assert "linear.group_size" in table.stdout
    rows = [
        json.loads(line)
        for line in cli("settings", "bitnet", "--all", "--json").stdout.splitlines()
    ]
    (row,) = [row for row in rows if row["key"] == "train.blend_share"]
    assert row["default"] == 0.0
    assert row["allowed"] == "in [0, 1]"
    assert row["unit"] == "share"
    assert row["explanation"].startswith("share of the steps over which lambda")


@pytest.mark.parametrize("name", [*phases()])
def test_what_few_people_change_is_listed_only_on_request(cli: Cli, name: str) -> None:
    plain, everything = (
        [json.loads(line) for line in cli("settings", name, *more, "--json").stdout.splitlines()]
        for more in ([], ["--all"])
    )
    assert plain == [row for row in everything if not row["expert"]]
    assert 0 < len(plain) < len(everything)
    shown = {row["key"] for row in plain}
    assert {"sources", "out", "data.text", "runtime.device", "gate.on_failure"} <= shown
    assert not {key for key in shown if key.endswith((".beta1", "runtime.workers", "gate.looks"))}
    assert not [row for row in everything if "(expert)" in row["explanation"] or not row["unit"]]


def test_a_part_that_is_marked_marks_all_in_it() -> None:
    rows = {row.key: row for row in settings("adas", SCHEMAS["adas"], SCHEMAS)}
    assert rows["experts.optim.lr"].expert
    assert (
        rows["experts.optim.lr"].explanation == "peak learning rate; svf_lr and task_lr replace it"
    )
    assert not rows["experts.svf_steps"].expert


def test_an_unknown_phase_is_named_with_the_nearest(cli: Cli) -> None:
    result = cli("settings", "bitnett")
    assert result.exit_code == 2
    assert "did you mean 'bitnet'" in result.stderr


def test_comments_are_read_where_they_stand() -> None:
    lines = [
        "# of the file", "a: 1   # behind", "# above",
        'b: "x # y"  # both', "part:", "  c: {d: 1, e: [2]}  # of the mapping",
        "                              # on two lines", "  f: 2",
        "                              # not of f", "g: x#y",
    ]  # fmt: skip
    comments = _comments(lines)
    assert comments["a"] == "behind"
    assert comments["b"] == "above both"
    assert (comments["part.c"], comments["part.c.d"], comments["part.c.e"]) == (
        "of the mapping on two lines",
    ) * 3
    assert (comments["part.f"], comments["g"]) == ("", "not of f")


def commands() -> list[str]:
    """Return every command; one in a group has both names."""
    return [
        f"{name} {inner}" if inner else name
        for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
        for inner in getattr(command, "commands", None) or [""]
    ]


@pytest.mark.parametrize("name", commands())
def test_every_help_ends_in_two_examples_that_the_command_takes(cli: Cli, name: str) -> None:
    shown = cli(*name.split(), "--help").stdout
    lines = [
        line.strip()
        for line in shown.partition("Examples:")[2].splitlines()
        if line.strip().startswith("forge ")
    ]
    assert len(lines) >= 2, shown
    for line in lines:
        assert line.startswith(f"forge {name}")
        words = line.split()[2:]
        overrides = [word for word in words if re.match(r"[\w.@]+=", word)]
        if name in SCHEMAS:
            compose(name, SCHEMAS[name], overrides)
            assert name == "cognate" or "sources=[outputs/smollm2]" in line
        elif name == "run-all":
            compose_run(overrides)
        for option in (word for word in words if word.startswith("--")):
            assert option in shown
