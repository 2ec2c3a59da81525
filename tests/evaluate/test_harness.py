"""The lm-evaluation-harness on our checkpoints; where it is installed, its score is ours."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import evaluate
from agent_forge.config import DataConfig
from agent_forge.core.errors import ConfigError
from agent_forge.evaluate import harness
from tests import tiny_families

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval (extra eval) is not installed"
)


@pytest.fixture
def context(data_config: DataConfig) -> evaluate.EvalContext:
    return evaluate.EvalContext(data=data_config, seed=3)


def test_our_questions_as_a_task_file_hold_what_we_score(
    context: evaluate.EvalContext, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    harness.write_choice_task(tmp_path, "forge_hellaswag", tiny_tokenizer, "test", 5, context)
    task = yaml.safe_load((tmp_path / "forge_hellaswag.yaml").read_text(encoding="utf-8"))
    file = Path(task["dataset_kwargs"]["data_files"]["test"])
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    items = evaluate.task_items("hellaswag", "test", 5, context)
    for row, item in zip(rows, items, strict=True):
        assert row["prompt"].endswith(item["prompt"])
        assert row["choices"][row["expected"]] == f" {item['choices'][item['expected']]}"
        start = tiny_tokenizer.encode(row["prompt"], add_special_tokens=False)
        alone = tiny_tokenizer.encode(item["prompt"], add_special_tokens=False)
        assert start[1:] == alone


def test_without_the_package_a_line_says_what_to_install(
    context: evaluate.EvalContext, tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"agent-forge\[eval\]"):
        harness.score(tiny_llama, tiny_tokenizer, ["arc_easy"], "test", 4, context)


@needs_harness
def test_the_harness_and_we_agree_on_a_shared_task(
    context: evaluate.EvalContext, tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:  # fmt: skip
    ours = evaluate.score(tiny_llama, tiny_tokenizer, ["hellaswag"], "test", 40, context)
    rows = harness.score(tiny_llama, tiny_tokenizer, ["forge_hellaswag"], "test", 40, context)
    theirs = next(row for row in rows if row["metric"] == "acc_bytes")
    assert theirs["n"] == ours["hellaswag"].n
    assert theirs["value"] == pytest.approx(ours["hellaswag"].mean, abs=1e-9)


@needs_harness
def test_a_task_file_of_the_user_needs_no_network_and_a_wrong_name_is_refused(
    context: evaluate.EvalContext, tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
) -> None:  # fmt: skip
    data = tmp_path / "mine.jsonl"
    rows = [{"prompt": "a", "choices": [" b", " c"], "expected": i % 2} for i in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    content = harness.CHOICE_FILE.format(name="mine", file=json.dumps(str(data)))
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    scored = harness.score(tiny_llama, tiny_tokenizer, ["mine"], "test", 9, context, tmp_path)
    # All prompts are one, and half of them have each choice right.
    assert {row["metric"]: row["value"] for row in scored} == {"acc": 0.5, "acc_bytes": 0.5}
    with pytest.raises(ConfigError, match="no task arc_eazy"):
        harness.score(tiny_llama, tiny_tokenizer, ["arc_eazy"], "test", 4, context)


@needs_harness
@pytest.mark.parametrize("adds", [True, False])
def test_prompts_begin_with_bos_once_where_the_tokenizer_puts_it(
    context: evaluate.EvalContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adds: bool
) -> None:
    """Those of a task file of the user, and ours, which bring it."""
    words = tiny_families.tokenizer(more=["<bos>"], bos_token="<bos>" if adds else None)
    if adds:
        tiny_families.beginning_with(words, "<bos>")
    # Longer prompts than the positions are cut by the harness itself, BOS included.
    model = tiny_families.build("gemma3_text", vocab_size=len(words), max_position_embeddings=8192)
    seen: list[list[int]] = []
    call = type(model).__call__

    def noted(self: Any, ids: Any, *rest: Any, **more: Any) -> Any:
        seen.extend(ids.tolist())
        return call(self, ids, *rest, **more)

    monkeypatch.setattr(type(model), "__call__", noted, raising=False)
    data = tmp_path / "mine.jsonl"
    row = {"prompt": "what is 48", "choices": [" plus", " 77"], "expected": 0}
    data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    content = harness.CHOICE_FILE.format(name="mine", file=json.dumps(str(data)))
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    for name in ("mine", "forge_hellaswag"):
        harness.score(model, words, [name], "test", 2, context, tmp_path)
        rows, seen[:] = list(seen), []
        assert rows
        for ids in rows:
            if adds:
                assert ids[0] == words.bos_token_id
                assert ids[1] != words.bos_token_id
            else:
                assert ids.count(words.convert_tokens_to_ids("<bos>")) == 0
