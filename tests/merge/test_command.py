"""`forge merge`: everything is checked before the first write, and what is written is a checkpoint
that anyone opens.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from agent_forge import checkpoint, models
from agent_forge.cli.app import app
from agent_forge.core.errors import CheckpointError, ConfigError, ForgeError, StorageError
from agent_forge.learn.fisher import fisher_diagonal
from agent_forge.merge import Weights, make_plan, merge_tensor, parse_recipe
from agent_forge.merge import job as merge_job


@pytest.fixture
def family(llama_config, tiny_tokenizer, tmp_path: Path) -> Path:
    """Return a folder with a base and three models tuned from it, as plain Hugging Face
    directories.
    """
    torch.manual_seed(0)
    base = LlamaForCausalLM(llama_config).eval()
    for number, name in enumerate(("base", "m1", "m2", "m3")):
        torch.manual_seed(number)
        if number:
            for parameter in base.parameters():
                parameter.data += torch.randn_like(parameter) * 0.02
        models.save(base, tiny_tokenizer, tmp_path / name)
    return tmp_path


def recipe(folder: Path, method: str = "ties", **changes: Any) -> Path:
    each = {"weight": 0.5, "density": 0.5} if method == "ties" else {"weight": 0.5}
    content: dict[str, Any] = {
        "merge_method": method, "base_model": "base",
        "models": [{"model": name, "parameters": dict(each)} for name in ("m1", "m2", "m3")],
    }  # fmt: skip
    content |= changes
    file = folder / "recipe.yml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return file


def merge(file: Path, out: str = "out", **settings: Any) -> checkpoint.Checkpoint:
    job = merge_job.prepare(file, **settings)
    try:
        return merge_job.run(job, file.parent / out)
    finally:
        job.close()


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return {
        k: v for file in sorted(directory.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def change(directory: Path, alter: Any) -> None:
    """Rewrite a model's weights after `alter` changed them."""
    weights = weights_of(directory)
    alter(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def change_config(directory: Path, **settings: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "model_stock"])
def test_the_written_weights_are_those_of_a_merge_in_memory(family: Path, method: str) -> None:
    each = (
        {}
        if method == "model_stock"
        else {"weight": 0.4} | ({"density": 0.5} if method != "linear" else {})
    )
    entries = [{"model": name, "parameters": each} for name in ("m1", "m2")]
    file = recipe(family, method, models=entries, base_model=None if method == "linear" else "base")
    written = weights_of(merge(file, seed=5).path)
    parsed = parse_recipe(yaml.safe_load(file.read_text()))
    sources = {label: Weights.open(family / label, label) for label in parsed.labels()}
    plan = make_plan(parsed, sources)
    assert {tensor.target for tensor in plan.tensors} == set(written)
    for tensor in plan.tensors:
        assert torch.equal(merge_tensor(plan, tensor, sources, 5), written[tensor.target])


def test_transformers_and_forge_open_the_result_and_its_lineage_names_the_parents(
    family: Path,
) -> None:
    result = merge(recipe(family))
    again = checkpoint.open(result.path)
    assert again.id == result.id
    assert [parent["name"] for parent in again.manifest.parents] == ["base", "m1", "m2", "m3"]
    assert all(len(parent["id"]) == 16 for parent in again.manifest.parents)
    assert again.manifest.phase == "merge"
    loaded, info = AutoModelForCausalLM.from_pretrained(result.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in weights_of(result.path).items():
        assert torch.equal(loaded.state_dict()[name], value)
    text = "The state of the union."
    theirs = AutoTokenizer.from_pretrained(family / "base")
    assert AutoTokenizer.from_pretrained(result.path)(text).input_ids == theirs(text).input_ids
    card = (result.path / "README.md").read_text()
    assert all(parent["id"] in card for parent in again.manifest.parents)
    assert "config.json and all that is not merged come from base" in card
    assert "density: 0.5" in card


def test_without_a_base_the_config_is_that_of_the_first_model_and_the_difference_is_said(
    family: Path,
) -> None:
    change_config(family / "m1", rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    entries = [{"model": name} for name in ("m2", "m1")]
    for _ in range(3):
        result = merge(recipe(family, "linear", base_model=None, models=entries), f"out{_}")
        config = json.loads((result.path / "config.json").read_text())
        assert (
            config["rope_parameters"]
            == json.loads((family / "m2" / "config.json").read_text())["rope_parameters"]
        )
        assert result.manifest.extra["donor"] == "m2"
        assert any(
            "rope_parameters is" in note and "in m1" in note
            for note in result.manifest.extra["notes"]
        )


@pytest.mark.parametrize("method", ["dare_ties", "della"])
def test_a_random_merge_has_the_same_id_for_any_threads_and_order_and_another_for_another_seed(
    family: Path, method: str
) -> None:
    each = {"weight": 0.5, "density": 0.5} | ({"epsilon": 0.1} if method == "della" else {})
    entries = [{"model": name, "parameters": each} for name in ("m1", "m2", "m3")]
    first = merge(recipe(family, method, models=entries), "a", threads=1)
    second = merge(recipe(family, method, models=entries), "b", threads=2)
    assert weights_hash(first) == weights_hash(second)
    turned = merge(recipe(family, method, models=entries[::-1]), "c", threads=2)
    for name, value in weights_of(first.path).items():
        # The masks are equal; only sums run in another order.
        torch.testing.assert_close(weights_of(turned.path)[name], value, rtol=0, atol=1e-6)
    assert weights_hash(merge(recipe(family, method, models=entries), "d", seed=1)) != weights_hash(
        first
    )


def weights_hash(merged: checkpoint.Checkpoint) -> str:
    return str(merged.manifest.files["model.safetensors"]["sha256"])


def test_shards_of_any_size_in_and_out_hold_the_same_tensors(family: Path) -> None:
    whole = weights_of(merge(recipe(family), "whole").path)
    weights = weights_of(family / "m2")
    names = sorted(weights)
    for part in range(3):
        save_file(
            {n: weights[n] for n in names[part::3]},
            family / "m2" / f"model-0000{part + 1}-of-00003.safetensors",
        )
    where = {n: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, n in enumerate(names)}
    (family / "m2" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (family / "m2" / "model.safetensors").unlink()
    result = merge(recipe(family), "parts", shard_bytes=20_000)
    files = sorted(path.name for path in result.path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((result.path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(
        v.numel() * v.element_size() for v in whole.values()
    )
    parts = weights_of(result.path)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    loaded = AutoModelForCausalLM.from_pretrained(result.path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in whole.items())


def test_a_shard_is_filled_to_its_limit_and_no_further(family: Path) -> None:
    job = merge_job.prepare(recipe(family))
    try:
        sizes = [output.size_bytes for output in job.layout.outputs]
    finally:
        job.close()
    for limit, count in ((sum(sizes), 1), (sum(sizes) - 1, 2)):
        job = merge_job.prepare(recipe(family), shard_bytes=limit)
        assert len(job.layout.shards) == count
        assert job.layout.size_bytes == sum(sizes)
        job.close()


@pytest.mark.parametrize("sample_bytes", [1, 20_000, 1 << 30])
def test_the_time_of_a_merge_is_that_of_its_smaller_half_scaled_to_all_bytes(
    family: Path, monkeypatch: pytest.MonkeyPatch, sample_bytes: int
) -> None:
    """The sample begins with the tensor of median size and goes on to smaller ones."""
    job = merge_job.prepare(recipe(family))
    sizes = sorted(output.size_bytes for output in job.layout.outputs)
    expected: list[int] = []
    for size in reversed(sizes[: len(sizes) // 2 + 1]):
        if sum(expected) < sample_bytes:
            expected.append(size)
    sample: list[int] = []

    def blocks(_plan: object, _files: object, outputs: Any, *_: object) -> list[object]:
        sample.extend(output.size_bytes for output in outputs)
        return []

    clock = iter([10.0, 12.5])
    monkeypatch.setattr(merge_job.stream, "blocks", blocks)
    monkeypatch.setattr(merge_job.time, "perf_counter", lambda: next(clock))
    seconds = merge_job.estimate_seconds(job, sample_bytes)
    monkeypatch.undo()
    job.close()
    assert sample == expected
    assert seconds == pytest.approx(2.5 * sum(sizes) / sum(expected))


def test_out_dtype_is_what_is_stored_and_what_the_config_says(family: Path) -> None:
    result = merge(recipe(family, dtype="float32", out_dtype="bfloat16"))
    assert {value.dtype for value in weights_of(result.path).values()} == {torch.bfloat16}
    assert json.loads((result.path / "config.json").read_text())["dtype"] == "bfloat16"
    full = weights_of(merge(recipe(family), "full").path)
    assert all(
        torch.equal(full[name].bfloat16(), value) for name, value in weights_of(result.path).items()
    )


def test_a_tied_and_an_untied_model_give_an_untied_one_with_both_merged(family: Path) -> None:
    head = torch.randn(weights_of(family / "m1")["model.embed_tokens.weight"].shape)
    change(family / "m1", lambda weights: weights.update({"lm_head.weight": head}))
    change_config(family / "m1", tie_word_embeddings=False)
    entries = [{"model": "m2"}, {"model": "m1"}]
    result = merge(recipe(family, "linear", base_model=None, models=entries))
    embedding = weights_of(family / "m2")["model.embed_tokens.weight"]
    torch.testing.assert_close(weights_of(result.path)["lm_head.weight"], (head + embedding) / 2)
    loaded = AutoModelForCausalLM.from_pretrained(result.path)
    torch.testing.assert_close(loaded.lm_head.weight, (head + embedding) / 2)
    assert any("ties its head" in note for note in result.manifest.extra["notes"])


def test_models_that_all_tie_their_head_stay_tied(family: Path) -> None:
    result = merge(recipe(family))
    assert "lm_head.weight" not in weights_of(result.path)
    loaded = AutoModelForCausalLM.from_pretrained(result.path)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


# -- vocabularies ----------------------------------------------------------------------------------


@pytest.fixture
def grown(family: Path) -> Path:
    """Give m1 two tokens more than the others, one of them before an old one."""
    tokenizer = Tokenizer.from_file(str(family / "m1" / "tokenizer.json"))
    old = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<extra>"])
    tokenizer.add_tokens(["zebra"])
    tokenizer.save(str(family / "m1" / "tokenizer.json"))

    def grow(weights: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(9)
        rows = weights["model.embed_tokens.weight"]
        weights["model.embed_tokens.weight"] = torch.cat([rows, torch.randn(2, rows.shape[1])])

    change(family / "m1", grow)
    change_config(family / "m1", vocab_size=old + 2)
    return family


def test_differing_tokenizers_are_refused_with_the_place_and_the_remedy(grown: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"base and m1 differ at added_tokens.*tokenizer_source: union"
    ):
        merge(recipe(grown))
    assert not (grown / "out").exists()


def test_a_union_has_every_token_and_new_rows_keep_their_owners_embedding(grown: Path) -> None:
    result = merge(recipe(grown, "task_arithmetic", tokenizer_source="union"))
    tokenizer = AutoTokenizer.from_pretrained(result.path)
    theirs = weights_of(grown / "m1")["model.embed_tokens.weight"]
    merged = weights_of(result.path)["model.embed_tokens.weight"]
    assert (
        len(merged)
        == len(theirs)
        == json.loads((result.path / "config.json").read_text())["vocab_size"]
    )
    for token in ("<extra>", "zebra"):
        # Nobody but m1 has the token: base and the others borrow its row, so no task vector moves
        # it.
        row = tokenizer.convert_tokens_to_ids(token)
        torch.testing.assert_close(merged[row], theirs[row])
    assert (
        tokenizer("The zebra.").input_ids
        != AutoTokenizer.from_pretrained(grown / "base")("The zebra.").input_ids
    )
    old = merge(recipe(grown, "task_arithmetic", tokenizer_source="base"), "based")
    rows = weights_of(old.path)["model.embed_tokens.weight"]
    assert len(rows) == len(theirs) - 2
    torch.testing.assert_close(merged[: len(rows)], rows)
    AutoModelForCausalLM.from_pretrained(result.path)


def test_a_vocabulary_in_another_order_is_merged_token_by_token(family: Path) -> None:
    file = family / "m1" / "tokenizer.json"
    content = json.loads(file.read_text())
    plain = [token for token, row in content["model"]["vocab"].items() if row > 300]
    vocab = content["model"]["vocab"]
    first, last = plain[0], plain[-1]
    vocab[first], vocab[last] = vocab[last], vocab[first]
    file.write_text(json.dumps(content))
    usual = weights_of(family / "m1")["model.embed_tokens.weight"].clone()

    def swap(weights: dict[str, torch.Tensor]) -> None:
        rows = weights["model.embed_tokens.weight"]
        rows[[vocab[first], vocab[last]]] = rows[[vocab[last], vocab[first]]].clone()

    change(family / "m1", swap)
    entries = [{"model": "base"}, {"model": "m1"}]
    result = merge(
        recipe(
            family,
            "linear",
            base_model=None,
            models=entries,
            tokenizer_source="base".replace("base", "union"),
        )
    )
    base = weights_of(family / "base")["model.embed_tokens.weight"]
    torch.testing.assert_close(
        weights_of(result.path)["model.embed_tokens.weight"], (base + usual) / 2
    )


def test_rows_are_padded_to_a_multiple(family: Path) -> None:
    result = merge(
        recipe(
            family,
            "linear",
            base_model=None,
            tokenizer={"source": "union", "pad_to_multiple_of": 128},
        )
    )
    merged = weights_of(result.path)["model.embed_tokens.weight"]
    assert len(merged) % 128 == 0
    assert json.loads((result.path / "config.json").read_text())["vocab_size"] == len(merged)
    old = len(weights_of(family / "m1")["model.embed_tokens.weight"])
    assert not merged[old:].any()


def test_a_recipe_names_whose_embedding_single_tokens_get(grown: Path) -> None:
    tokens = {
        "zebra": {"source": {"kind": "model_token", "model": "m1", "token": "<extra>"}},
        "<extra>": {"source": {"kind": "zero"}, "force": True},
        "a": {"source": {"kind": "model_token", "model": "m2", "token_id": 70}, "force": True},
    }
    result = merge(
        recipe(grown, "task_arithmetic", tokenizer={"source": "union", "tokens": tokens})
    )
    place = AutoTokenizer.from_pretrained(result.path).convert_tokens_to_ids
    merged = weights_of(result.path)["model.embed_tokens.weight"]
    theirs = weights_of(grown / "m1")["model.embed_tokens.weight"]
    # Base and m2 take <extra>'s row for zebra and m1 keeps its own, so m1's task vector is what is
    # between the two.
    usual = merge(recipe(grown, "task_arithmetic", tokenizer={"source": "union"}), "usual")
    usual_rows = weights_of(usual.path)["model.embed_tokens.weight"]
    zebra, extra = theirs[place("zebra")], theirs[place("<extra>")]
    weight = (merged[place("zebra")] - extra) / (zebra - extra)
    torch.testing.assert_close(weight, weight[0].expand_as(weight), atol=1e-4, rtol=0)
    assert 0.1 < float(weight[0]) < 1.1
    assert not merged[place("<extra>")].any()
    torch.testing.assert_close(
        merged[place("a")], weights_of(grown / "m2")["model.embed_tokens.weight"][70]
    )
    touched = [place(token) for token in tokens]
    rest = [row for row in range(len(merged)) if row not in touched]
    torch.testing.assert_close(merged[rest], usual_rows[rest])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"zebr": {"source": "m1"}}, "no such token in the result; did you mean 'zebra'"),
        ({"zebra": {"source": "m7"}}, "no model 'm7' in the recipe"),
        ({"zebra": {"source": "base"}}, "base has no token 'zebra'"),
        ({"zebra": {"source": {"kind": "model_token", "model": "m1"}}}, "either token or token_id"),
        ({"zebra": {"source": {"kind": "one"}}}, "kind zero or model_token"),
        ({"zebra": {}}, "'source' is missing"),
        (["zebra"], "TOKEN: {source: ...} entries"),
    ],
)
def test_wrong_token_embeddings_are_refused_by_name(grown: Path, tokens: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        merge(recipe(grown, "task_arithmetic", tokenizer={"source": "union", "tokens": tokens}))
    assert not (grown / "out").exists()


# -- what is refused, before anything is written ---------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt key": ({"paramters": {"normalize": True}},
                       "unknown key 'paramters'; did you mean 'parameters'"),
    "a misspelt method": ({"merge_method": "tise"}, "no merge method 'tise'; did you mean 'ties'"),
    "a misspelt parameter": ({"parameters": {"normalise": True}},
                             "no parameter 'normalise'.*did you mean 'normalize'"),
    "a misspelt parameter of a model": (
        {"models": [{"model": "m1", "parameters": {"wieght": 1}}]},
        "no parameter 'wieght'.*did you mean 'weight'",
    ),
    "a filter that fits nothing": (
        {"parameters": {"lambda": [{"filter": "self_atn", "value": 0.5}, {"value": 1.0}]}},
        "'self_atn' fits no tensor",
    ),
    "a density above 1": ({"models": [{"model": "m1", "parameters": {"density": 1.7}}]},
                          r"density must be in \(0, 1\]"),
    "a gradient that leaves the range": (
        {"models": [{"model": "m1", "parameters": {"density": [0.5, 1.7]}}]},
        r"density must be in \(0, 1\], got 1.7",
    ),
    "t beyond 1": (
        {"merge_method": "slerp", "models": [{"model": "m1"}], "parameters": {"t": 2.5}},
        r"t must be in \[0, 1\], got 2.5",
    ),
    "weights that cancel": (
        {"models": [{"model": "m1", "parameters": {"weight": 1}},
                    {"model": "m2", "parameters": {"weight": -1}}]},
        "weights sum to 0",
    ),
    "a weight that is no number": ({"models": [{"model": "m1", "parameters": {"weight": "much"}}]},
                                   "must be a number"),
    "a weight that is not finite": (
        {"models": [{"model": "m1", "parameters": {"weight": float("nan")}}]}, "finite",
    ),
    "an unknown dtype": ({"dtype": "bfloat61"}, "did you mean 'bfloat16'"),
    "a model that is not there": ({"models": [{"model": "bases"}]},
                                  "no model directory at bases.*did you mean 'base'"),
    "models and slices": ({"slices": [{"sources": []}]}, "either `models` or `slices`"),
    "a layer range beyond the model": (
        {"merge_method": "passthrough", "base_model": None, "models": None,
         "slices": [{"sources": [{"model": "m1", "layer_range": [0, 9]}]}]},
        r"layer_range \[0, 9\) leaves the 2 layers",
    ),
    "an unknown tokenizer source": ({"tokenizer_source": "unoin"}, "did you mean 'union'"),
    "a named chat template": ({"chat_template": "chatlm"}, "chat_template must be"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_recipe_is_refused_by_name_and_nothing_is_written(family: Path, what: str) -> None:
    changes, message = BAD[what]
    before = sorted(family.iterdir())
    with pytest.raises((ConfigError, CheckpointError), match=message):
        merge(recipe(family, **changes))
    assert [path for path in sorted(family.iterdir()) if path.name != "recipe.yml"] == before


def _drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def _add(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.mlp.experts.0.weight"] = torch.ones(3)


def _reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] = torch.ones(31)


def _spoil(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (_drop, "m2 has no tensor model.layers.1.mlp.up_proj.weight|lacks"),
        (_add, r"experts\.0\.weight"),
        (_reshape, r"model.norm.weight is \[31\] in m2"),
        (_spoil, "m2: model.layers.1.mlp.up_proj.weight holds NaN or infinity"),
    ],
)
def test_models_that_do_not_belong_together_or_are_not_finite_leave_nothing(
    family: Path, alter: Any, message: str
) -> None:
    change(family / "m2", alter)
    before = sorted(family.iterdir())
    with pytest.raises(CheckpointError, match=message):
        merge(recipe(family))
    assert [path for path in sorted(family.iterdir()) if path.name != "recipe.yml"] == before


def test_a_merge_beyond_the_stored_range_is_refused(family: Path) -> None:
    entries = [{"model": "m1", "parameters": {"weight": 1e7}}]
    with pytest.raises(CheckpointError, match="beyond float16"):
        merge(
            recipe(
                family,
                "linear",
                base_model=None,
                models=entries,
                parameters={"normalize": False},
                dtype="float16",
            )
        )
    assert not (family / "out").exists()


def test_a_source_that_does_not_fit_its_manifest_stops_the_merge(family: Path) -> None:
    first = merge(recipe(family), "first")
    change(first.path, lambda weights: weights["model.norm.weight"].add_(1.0))
    entries = [{"model": "first"}, {"model": "m1"}]
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        merge(recipe(family, "linear", base_model=None, models=entries))
    assert not (family / "out").exists()


def test_a_tensor_that_one_model_lacks_is_said_of_the_other(family: Path) -> None:
    file = family / "m1" / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    entries = [{"model": "m1"}, {"model": "m2"}]
    with pytest.raises(
        CheckpointError, match=r"m1 has no tensor model\.norm\.weight, which m2 has"
    ):
        merge(recipe(family, "linear", base_model=None, models=entries))


def test_buffers_of_older_versions_are_left_out_and_told(family: Path) -> None:
    entries = [{"model": "m1"}, {"model": "m2"}]
    linear = recipe(family, "linear", base_model=None, models=entries)
    expected = load_file(merge(linear, "plain").path / "model.safetensors")
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(family / "m2", lambda weights: weights.update({old: torch.ones(4)}))
    job = merge_job.prepare(linear)
    assert any(f"m2: 1 buffers that follow from its config are left out ({old})" in note
               for note in job.notes)  # fmt: skip
    actual = load_file(merge(linear, "old").path / "model.safetensors")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_damaged_headers_and_existing_targets_are_named(family: Path) -> None:
    (family / "out").mkdir()
    with pytest.raises(StorageError, match="already exists"):
        merge(recipe(family))
    file = family / "m3" / "model.safetensors"
    content = file.read_bytes()
    for damaged in (
        b"",
        content[:5],
        content[:200],
        content[:-4],
        b"\xff" * 8 + content[8:],
        content[:8] + b"?" + content[9:],
    ):
        file.write_bytes(damaged)
        with pytest.raises(ForgeError, match=r"m3"):
            merge(recipe(family), "other")
        assert not (family / "other").exists()


def test_remote_code_quantised_weights_and_other_architectures_are_refused(family: Path) -> None:
    for settings, message in (
        ({"auto_map": {"AutoModel": "x.py"}}, "auto_map"),
        ({"auto_map": None, "quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ):
        change_config(family / "m2", **settings)
        with pytest.raises(CheckpointError, match=message):
            merge(recipe(family))
        content = json.loads((family / "m2" / "config.json").read_text())
        (family / "m2" / "config.json").write_text(
            json.dumps({k: v for k, v in content.items() if k not in settings})
        )
    change_config(family / "m2", model_type="mistral")
    with pytest.raises(CheckpointError, match="m2 is a mistral model, base a llama one"):
        merge(recipe(family))


# -- the command line ------------------------------------------------------------------------------


def test_a_dry_run_says_bytes_and_seconds_and_writes_nothing(family: Path) -> None:
    file = recipe(family)
    before = sorted(family.iterdir())
    result = CliRunner().invoke(app, ["merge", str(file), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert sorted(family.iterdir()) == before
    written = merge(file).path / "model.safetensors"
    header = int(np.frombuffer(written.read_bytes()[:8], "<u8")[0])
    assert results["writes_bytes"] == written.stat().st_size - 8 - header
    assert results["reads_bytes"] == sum(
        (family / name / "model.safetensors").stat().st_size for name in ("base", "m1", "m2", "m3")
    )
    assert results["donor"] == "base"
    assert results["seconds"] >= 0


def test_the_command_merges_and_errors_are_one_line(family: Path) -> None:
    result = CliRunner().invoke(
        app, ["merge", str(recipe(family)), "--out", str(family / "out"), "--json"]
    )
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["id"] == checkpoint.open(family / "out").id
    result = CliRunner().invoke(
        app, ["merge", str(recipe(family, dtype="f32")), "--out", str(family / "other")]
    )
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_a_merge_process_imports_no_torch_and_its_memory_does_not_grow_with_the_model(
    tmp_path: Path,
) -> None:
    shape = (8192, 1152)  # bfloat16: 18.9 MB each, 16 of them in each of three models
    generator = np.random.default_rng(0)
    config = {
        "model_type": "llama",
        "num_hidden_layers": 15,
        "vocab_size": shape[0],
        "hidden_size": shape[1],
    }
    for name in ("base", "m1", "m2"):
        (tmp_path / name).mkdir()
        weights = {"model.embed_tokens.weight": _noise(generator, shape)}
        weights |= {
            f"model.layers.{i}.mlp.up_proj.weight": _noise(generator, shape) for i in range(15)
        }
        save_file(weights, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    entries = [
        {"model": name, "parameters": {"weight": 0.5, "density": 0.3}} for name in ("m1", "m2")
    ]
    recipe(tmp_path, "ties", models=entries)
    script = (
        "import sys, re\n"
        "from agent_forge.cli.app import app\n"
        "try:\n    app(['merge', 'recipe.yml', '--out', 'out', '--threads', '2'])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "loaded = sorted({'torch', 'transformers', 'safetensors', 'tokenizers'} & "
        "set(sys.modules))\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(loaded, int(peak) // 1024)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules, peak_mb = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert modules == "[]"
    # Each model has 302 MB. The interpreter and its imports take about 50 MB.
    assert int(peak_mb) < 200
    written = weights_of(tmp_path / "out")
    assert sum(value.numel() * 2 for value in written.values()) > 300e6


def _noise(generator: np.random.Generator, shape: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(generator.standard_normal(shape, np.float32)).bfloat16()


def test_a_fisher_merge_reads_the_measured_importance_and_refuses_without_it(family: Path) -> None:
    entries = [{"model": name} for name in ("m1", "m2")]
    file = recipe(family, "fisher", base_model=None, models=entries)
    with pytest.raises(
        CheckpointError, match=r"needs the importance of model\.\S+ in m1; measure it with"
    ):
        merge(file)
    rows = [torch.arange(5, 25), torch.arange(40, 60)]
    rates = {}
    for name in ("m1", "m2"):
        rates[name] = fisher_diagonal(models.load(family / name), rows)
        (family / name / "fisher").mkdir()
        save_file(rates[name], family / name / "fisher" / "model.safetensors")
    written = weights_of(merge(file).path)
    for name, value in written.items():
        one, two = (weights_of(family / m)[name].double() for m in ("m1", "m2"))
        f1, f2 = (rates[m][name].double() + 1e-20 for m in ("m1", "m2"))
        torch.testing.assert_close(
            value.double(), (f1 * one + f2 * two) / (f1 + f2), rtol=0, atol=1e-6
        )


def test_a_lone_module_of_mergekit_is_the_whole_model_and_several_are_refused() -> None:
    models = [{"model": "a"}, {"model": "b", "parameters": {"weight": 2.0}}]
    plain = {
        "merge_method": "linear",
        "models": models,
        "parameters": {"normalize": True, "weight": 1.0},
    }
    inner = {"models": models, "parameters": {"weight": 1.0}}
    nested = {
        "merge_method": "linear",
        "parameters": {"normalize": True},
        "modules": {"default": inner},
    }
    assert parse_recipe(nested) == parse_recipe(plain)
    with pytest.raises(ConfigError, match="vision, text: models of several modules"):
        parse_recipe({"merge_method": "linear", "modules": {"vision": inner, "text": inner}})
    with pytest.raises(ConfigError, match="`models` stands both"):
        parse_recipe({**nested, "models": models})
