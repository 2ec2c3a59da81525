"""String settings are the text that was typed: on the command line, in a file, in a sweep. Nothing
is guessed.
"""

from pathlib import Path
from typing import Any

import pytest

from agent_forge.config import PhaseConfig
from agent_forge.config.compose import all_overrides, compose
from agent_forge.config.overrides import quote, unquote
from agent_forge.core.errors import ConfigError
from agent_forge.phases.bake import Config as BakeConfig
from agent_forge.phases.compress import Config as CompressConfig
from agent_forge.pipeline.run_all import compose_run, settings_schema

LOOKS = [
    "2024_01", "1_1_1", "1e3", "007", "0x10", "1.50", "+1", "-", ".5", "yes", "no", "on", "true", "False", "2024-01-01",
    "12:30:45", "nan", ".inf", "a=b", "a=b=c", "a#b", "#a", "~", "~/x", "über/Größe", "日本", "a b", "it's", 'say "x"',
    "a\\b", "C:\\new\\table", "a\\", "\\\\share\\x", "a,b", "(x)", "a: b", "{x", "[x", "x]", "*",
    "!x", "a|b", "%", "@x", "&x", "$x", "?", "`x`", "'open", 'open"', "a;b", "é́",
]  # fmt: skip


def base(*overrides: str, file: str | None = None) -> PhaseConfig:
    return compose("base", PhaseConfig, ["out=x", *overrides], file)


@pytest.mark.parametrize("text", LOOKS)
def test_the_command_line_keeps_text(text: str) -> None:
    result = base(f"out={text}", f"data.cache={quote(text)}")
    assert (result.out, result.data.cache) == (text, text)


# Inside a list these stand for something: commas and brackets, an opening quote, a backslash before
# one of them.
IN_LISTS = [t for t in LOOKS if not {*",[]{}"} & {*t} and t not in ("'open", "a\\", "\\\\share\\x")]


def test_lists_and_mappings_keep_text() -> None:
    assert base(f"sources=[ {', '.join(IN_LISTS)}]").sources == IN_LISTS
    words = [text for text in IN_LISTS if ":" not in text]
    traits = ",".join(
        f"t{i}: {{system: {text}, strength: 0.5, questions: [{text}]}}"
        for i, text in enumerate(words)
    )
    entries = compose("bake", BakeConfig, ["out=x", f"persona.traits={{{traits}}}"]).persona.traits
    assert [(entries[f"t{i}"].system, entries[f"t{i}"].questions) for i in range(len(words))] == [
        (t, [t]) for t in words
    ]


def test_quotes_keep_whatever_they_hold() -> None:
    assert base(f"sources=[{','.join(map(quote, LOOKS))}]").sources == LOOKS
    assert [unquote(quote(text)) for text in LOOKS] == LOOKS


def test_a_file_keeps_plain_text(tmp_path: Path) -> None:
    looks = [
        "007",
        "yes",
        "1e3",
        "2024_01",
        "2024-01-01",
        "12:30:45",
        "0o17",
        "a\\b",
        "ü",
        "a=b",
        "1.50",
        "a#b",
        "it's",
    ]
    file = tmp_path / "my.yaml"
    file.write_text(
        f"sources: [{', '.join(looks)}]\nout: 007\ndata: {{cache: yes}}\n", encoding="utf-8"
    )
    result = compose("base", PhaseConfig, [], str(file))
    assert (result.sources, result.out, result.data.cache) == (looks, "007", "yes")


def test_a_file_keeps_quoted_text(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    quoted = ["'" + text.replace("'", "''") + "'" for text in LOOKS]
    file.write_text(f"out: x\nsources: [{', '.join(quoted)}]\n", encoding="utf-8")
    assert compose("base", PhaseConfig, [], str(file)).sources == LOOKS


@pytest.mark.parametrize("text", IN_LISTS)
def test_a_sweep_keeps_text(text: str) -> None:
    (swept,) = all_overrides([f"out={text},other"], None, PhaseConfig, sweep=True)
    assert swept == f"out={quote(text)},'other'"
    (chosen,) = all_overrides([f"out=choice({quote(text)},b)"], None, PhaseConfig, sweep=True)
    assert chosen == f"out=choice({quote(text)},'b')"


def test_all_phases_of_a_run_keep_text() -> None:
    run = compose_run(
        ["run_dir=2024_01", "data.cache=007", "bake.data.text=[1e3]", "quietstar.start_text=yes"]
    )
    assert str(run.run_dir) == "2024_01"
    assert run.phases["adas"].data.cache == "007"
    assert run.phases["bake"].data.text == ["1e3"]
    assert run.phases["quietstar"].start_text == "yes"  # type: ignore[attr-defined]
    assert settings_schema().__name__ == "RunSettings"


def test_numbers_are_read_however_they_are_written(tmp_path: Path) -> None:
    assert base("runtime.budget_minutes=1e-3").runtime.budget_minutes == 0.001
    assert base("gate.items=1_000", "runtime.shard=yes").gate.items == 1000
    file = tmp_path / "my.yaml"
    file.write_text(
        "runtime: {budget_minutes: 1e-3, shard: yes, compile: off}\ngate: {items: '12'}\n",
        encoding="utf-8",
    )
    result = base(file=str(file))
    assert (
        result.runtime.budget_minutes,
        result.runtime.shard,
        result.runtime.compile,
        result.gate.items,
    ) == (
        0.001,
        True,
        "off",
        12,
    )
    codec = "codec.candidates=[{codec: intk, bits: 8, step: 1e-1}]"
    assert compose("compress", CompressConfig, ["out=x", codec]).codec.candidates == [
        {"codec": "intk", "bits": 8, "step": 0.1}
    ]
    file.write_text("codec: {candidates: [{codec: intk, bits: 8, step: 1e-1}]}\n", encoding="utf-8")
    assert compose("compress", CompressConfig, ["out=x"], str(file)).codec.candidates[0] == {
        "codec": "intk",
        "bits": 8,
        "step": 0.1,
    }


def test_text_that_holds_an_interpolation_is_looked_up_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLACE", "here/${seed}")
    assert base("out=${oc.env:PLACE}/x").out == "here/${seed}/x"
    assert base("out=a\\${seed}").out == "a${seed}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sources=x", "sources is a list, got 'x'; type 'sources=[x]'"),
        ("sources=[a", "quote the whole setting for the shell: 'sources=[a]'"),
        ("gate.tasks=text", "gate.tasks is a mapping, got 'text'; type 'gate.tasks={NAME: VALUE}'"),
        ("gate.tasks={text}", "'text' has no value; entries of a mapping are NAME: VALUE"),
        ("out=null", "out is text and cannot be null; for the word, type out=\"'null'\""),
        ("gate.items=1,2", "must be a whole number, got '1,2'; several values need -m"),
        ("gate.items=1e3", "gate.items must be a whole number, got '1e3'"),
        ("gate.enabled=maybe", "gate.enabled must be true or false, got 'maybe'"),
        ("größe=3", "cannot read the key 'größe'"),
        ("gate.tasks={ü: 1}", "'ü' is not a name"),
        ("sources=null", "sources is a list, got 'null'; type 'sources=[]'"),
        ("sources=[,]", "sources must be text that is not empty, got ''"),
        ("data.text=[sotu,,a.txt]", "data.text must be text that is not empty, got ''"),
        ("sources=[' ']", "sources must be text that is not empty, got ' '"),
        ("seed=" + "9" * 5000, "seed must be a whole number, got one of 5000 characters"),
        (
            "gate.tasks={text: 0.9, text: 0.8}",
            "gate.tasks: 'text' is set more than once; keep one of them",
        ),
        ("gate.tasks={}", "gate.tasks={} would change nothing"),
        ("gate={}", "take one out with '~gate.NAME'"),
        ("hydra.run.dir=x", "hydra.run.dir=x: Hydra's own settings act on sweeps alone; add -m"),
        (
            "out=a${b",
            "out: '${' begins a reference, as in ${seed}; type \\${ for the two characters",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_that_shows_what_to_type(
    override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        base(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "token recognition" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "out: ~\n",
            "out has no value (line 1: '~' is YAML's null); leave the line out, or write out: '~'",
        ),
        ("data: {cache: }\n", "data.cache has no value"),
        ('out: "a\\w"\n', "a backslash stands for itself in single quotes"),
        ("seed: 1\nseed: 2\n", "seed is set more than once (line 1); keep one of them"),
        ("sources: x\n", "sources is a list, [a, b], got 'x' (line 1)"),
        ("gate: {tasks: [a]}\n", "gate.tasks is not a list (line 1)"),
        (
            "gate: {tasks: {}}\n",
            "gate.tasks={} would change nothing, for a mapping is laid over the defaults",
        ),
        ("gate: {items: few}\n", "gate.items must be a whole number, got 'few'"),
        ("ü: 1\n", "'ü' is not a name"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_the_place(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        base(file=str(file))
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes("out: größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8: byte 7 is 0xf6; save it as UTF-8"):
        base(file=str(file))


def test_anchors_and_merge_keys_of_yaml_work(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("gate: &g {items: 7}\nruntime: {threads: 2}\n", encoding="utf-8")
    result: Any = base(file=str(file))
    assert (result.gate.items, result.runtime.threads) == (7, 2)


def test_an_entry_of_a_mapping_is_taken_out_as_the_message_says() -> None:
    from agent_forge.phases.compress import Config

    config = compose("compress", Config, ["out=x", "~gate.tasks.memory"])
    assert list(config.gate.tasks) == ["text", "reasoning", "tools"]
    with pytest.raises(ConfigError, match=r"an entry of it is \{NAME: VALUE\}, got 'raw'"):
        compose("compress", Config, ["out=x", "codec.candidates=[raw]"])
    with pytest.raises(ConfigError, match="'codec' is set more than once"):
        compose("compress", Config, ["out=x", "codec.candidates=[{codec: raw, codec: intk}]"])
