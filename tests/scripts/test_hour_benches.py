"""The benches of one GPU-hour: what they run, what they refuse, and what they count."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent_forge.config.compose import compose
from agent_forge.data import bfcl as sets
from agent_forge.phases.bake import Config as Bake
from agent_forge.phases.bitnet import Config as Bitnet
from agent_forge.phases.compress import Config as Compress
from scripts.bench import bfcl, own_tools, phase_once, skills_hour

EXPERIMENT = "experiment=smollm2_calls_gpu"
ENTRIES = 12  # entries of each set


@pytest.fixture
def leaderboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for the installed package: two entries share each function."""
    data = tmp_path / "bfcl_eval" / "data"
    (data / "possible_answer").mkdir(parents=True)
    for kind, name in sets.SETS.items():
        rows, answers = [], []
        for i in range(ENTRIES):
            function = {
                "name": f"{kind}_f{i // 2}", "description": "Counts.",
                "parameters": {"type": "dict", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
            }  # fmt: skip
            question = [[{"role": "user", "content": f"Count {i}"}]]
            rows.append({"id": f"{kind}_{i}", "question": question, "function": [function]})
            answers.append({"id": f"{kind}_{i}", "ground_truth": [{function["name"]: {"n": [i]}}]})
        for file, lines in ((f"{name}.json", rows), (f"possible_answer/{name}.json", answers)):
            (data / file).write_text("\n".join(map(json.dumps, lines)))
    spec, real = (
        SimpleNamespace(submodule_search_locations=[str(data.parent)]),
        importlib.util.find_spec,
    )
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: spec if name == "bfcl_eval" else real(name, *more)
    )  # fmt: skip
    return data


def test_without_the_leaderboards_package_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sets, "_folder", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        bfcl.run(["a-model", "--work", str(tmp_path / "work")])
    assert stopped.value.code == 74
    assert capsys.readouterr().err == sets.MISSING + "\n"
    assert not (tmp_path / "work").exists()


@pytest.mark.usefixtures("leaderboard")
def test_questions_that_share_a_function_with_training_are_left_out() -> None:
    whole, trained = sets.entries(), sets.entries("train")
    left = bfcl.untouched(whole, trained)
    ids, names = (
        {entry["id"] for entry in trained},
        {one for e in trained for one in bfcl._functions(e)},
    )
    assert 0 < len(trained) < len(left) < len(whole)
    for entry in whole:
        assert (entry in left) == (entry["id"] not in ids and not bfcl._functions(entry) & names)


@pytest.mark.parametrize("rows", [[], ["--bfcl-rows"], ["--rows", "glaive.json"]])
def test_the_bake_learns_what_the_command_names_and_nothing_of_the_leaderboard_else(
    rows: list[str],
) -> None:
    args = bfcl._options(["a-model", "training.optim.lr=0.0001", *rows])
    config = compose("bake", Bake, [EXPERIMENT, "out=o", *bfcl._baked_by(args)])
    taught = {kind for kind, weight in config.training.mix.items() if weight}
    more = {"--bfcl-rows": {"bfcl"}, "--rows": {"rows"}}.get(rows[0] if rows else "", set())
    assert taught == {"schemas", "copying"} | more
    assert config.training.optim.lr == 1e-4
    assert config.training.lora_rank == 0
    assert config.data.rows == (["glaive.json"] if "rows" in more else [])


def test_a_phase_runs_once_and_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Sequence[str]] = []

    def forge(*words: str, allowed: Sequence[int]) -> tuple[str, float]:
        commands.append(words)
        assert set(allowed) == {0, 3}
        (tmp_path / "work" / "baked.rejected").mkdir()
        return "", 2.0

    monkeypatch.setattr(phase_once, "forge", forge)
    place = tmp_path / "work" / "baked"
    first = phase_once.phase_once(place, ("bake", "experiment=e"), ["a=1"])
    assert first.path == place.with_name("baked.rejected")
    assert not first.passed
    assert first.cpu_minutes == 2.0
    assert phase_once.phase_once(place, ("bake", "experiment=e"), ["a=1"]) == first
    assert commands == [("bake", "experiment=e", f"out={place}", "a=1")]
    with pytest.raises(SystemExit) as stopped:
        phase_once.phase_once(place, ("bake", "experiment=e"), ["a=2"])
    assert stopped.value.code == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("leaderboard")
def test_the_smoke_run_bakes_shrinks_and_asks_and_a_second_run_only_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--smoke", "--device", "cpu", "--work", str(tmp_path / "work")]
    result = bfcl.run(command)
    figures = {figure.claim: figure for figure in result.figures}
    assert "mean nothing" in result.note
    assert figures["compress: bytes"].met is True
    for name in ("the parent", "baked", "compress"):
        answered = [one for claim, one in figures.items() if claim.endswith(f": {name}")]
        assert sum(int(one.n.split()[0]) for one in answered) == bfcl.SMOKE_ITEMS
    for claim, figure in figures.items():
        kind, _, who = claim.partition(": ")
        if who == "baked":
            assert figure.met == (figure.figure >= bfcl.LEAST[kind] if kind in bfcl.LEAST else None)

    def refused(*words: Any, **more: Any) -> Any:
        raise AssertionError((words, more))

    monkeypatch.setattr(phase_once, "forge", refused)
    assert bfcl.run(command).figures == result.figures


def compared(task: str, share: float, **more: Any) -> dict[str, Any]:
    row = {"task": task, "first": 1.0, "second": 1.1, "low": share - 0.1, "high": share + 0.1}
    return {**row, "kept": share, "n": 9, "at_chance": False, **more}


def test_domains_are_held_to_their_ratio_and_tasks_with_signal_to_their_share() -> None:
    ternary, small = skills_hour.SMALL
    rows = [
        compared("prose", 1 / 1.14), compared("code", 1 / 1.16), compared("gsm8k", 0.96),
        compared("bfcl", 0.94), compared("hellaswag", 0.5, at_chance=True),
        compared("mathematics", 0.0, low=0.0),
    ]  # fmt: skip
    assert [figure.met for figure in skills_hour.judged(ternary, rows)] == [
        True, False, True, False, None, False,
    ]  # fmt: skip
    figures = skills_hour.judged(small, rows)
    assert [figure.met for figure in figures] == [True, True, None, None, None, False]
    assert figures[1].figure == 1.16
    low, high = figures[1].interval or (0, 0)
    assert low == pytest.approx(1 / (1 / 1.16 + 0.1))
    assert high == pytest.approx(1 / (1 / 1.16 - 0.1))


def test_both_trainings_are_of_the_gpu_experiment_with_the_users_settings_last() -> None:
    args = skills_hour._options(["a-model", "--recover", "7", "gate.items=9"])
    for small, kind in zip(skills_hour.SMALL, (Bitnet, Compress), strict=True):
        chosen = skills_hour.settings(small, args)
        config = compose(small.phase, kind, [skills_hour.EXPERIMENT, "out=o", *chosen])
        assert config.gate.items == 9
        assert config.sources == ["a-model"]
        if isinstance(config, Compress):
            assert (config.budget.bytes_ratio, config.recover.steps) == (0.05, 7)
        else:
            assert config.linear.embedding_bits == 8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_smoke_run_makes_both_models_and_a_second_run_only_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--smoke", "--device", "cpu", "--work", str(tmp_path / "work")]
    result = skills_hour.run(command)
    assert "mean nothing" in result.note
    claims = [figure.claim for figure in result.figures]
    for small in skills_hour.SMALL:
        assert sum(claim.startswith(f"{small.name}: perplexity of") for claim in claims) == 5

    def refused(*words: Any, **more: Any) -> Any:
        raise AssertionError((words, more))

    for module in (phase_once, skills_hour, own_tools):
        monkeypatch.setattr(module, "forge", refused)
    assert skills_hour.run(command).figures == result.figures
