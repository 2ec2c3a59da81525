"""Recipes: read as typed, refused by name at every level, and one model as often and as spelled as
one likes.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from agent_forge.cli.app import app
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.merge import Weights, make_plan, merge_tensor, parse_recipe
from agent_forge.merge.document import read_document
from agent_forge.merge.recipe import Recipe

from .small import change, mean, merge, notes, put, recipe, weights

# -- numbers and text ------------------------------------------------------------------------------


def test_numbers_are_numbers_however_they_are_written_and_text_stays_as_typed() -> None:
    text = """
merge_method: ties
base_model: 007
models:
- {model: 2024_01, parameters: {weight: 1e-3, density: [5e-1, 1E0]}}
- {model: yes, parameters: {weight: [{filter: 1e3, value: -2e-1}, {value: "3e-1"}], density: .5}}
parameters: {normalize: no, lambda: 1.5e0, int8_mask: False}
tokenizer:
  pad_to_multiple_of: 6.4e1
  source: 1e3
  tokens: {"1_0": {source: {kind: model_token, model: 007, token_id: 1e1}, force: on}}
chat_template: 1.0
"""
    result = parse_recipe(read_document(text))
    assert (result.base, [m.model for m in result.models]) == ("007", ["2024_01", "yes"])
    assert result.models[0].parameters == {"weight": 1e-3, "density": [0.5, 1.0]}
    assert result.models[1].parameters["weight"] == [
        {"filter": "1e3", "value": -0.2},
        {"value": 0.3},
    ]
    assert result.parameters == {"normalize": False, "lambda": 1.5, "int8_mask": False}
    assert (result.pad_to_multiple_of, result.tokenizer_source, result.chat_template) == (
        64,
        "1e3",
        "1.0",
    )
    token = result.tokens["1_0"]
    assert (token.model, token.token, token.force) == ("007", 10, True)
    sliced = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "a", "layer_range": ["0", "2e0"]}]}],
    }
    assert parse_recipe(sliced).slices[0].sources[0].layer_range == (0, 2)


def test_a_merge_by_a_number_in_another_spelling_is_that_merge(tmp_path: Path) -> None:
    for seed, name in enumerate(("1e3", "2024_01")):
        put(tmp_path / name, seed)
    file = tmp_path / "recipe.yml"
    file.write_text(
        "merge_method: linear\nmodels:\n- {model: 1e3, parameters: {weight: 1e-3}}\n"
        "- {model: 2024_01, parameters: {weight: 3e-3}}\n"
    )
    result = merge(file)
    one, two = weights(tmp_path / "1e3"), weights(tmp_path / "2024_01")
    for name, value in weights(result.path).items():
        torch.testing.assert_close(value, one[name] / 4 + two[name] * 3 / 4)
    assert result.manifest.config["recipe"]["models"][1] == {
        "model": "2024_01",
        "parameters": {"weight": 0.003},
    }


@pytest.mark.parametrize(
    "value", ["much", "1e", "0x10", "1:30", "", None, {"a": 1}, [], [None], float("nan"), ".inf"]
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    models = [{"model": "a", "parameters": {"weight": value}}, {"model": "b"}]
    with pytest.raises(ConfigError, match="weight"):
        make_plan(
            parse_recipe({"merge_method": "linear", "models": models}), random_models("a", "b")
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "merge_method: linear\nmerge_method: ties\nmodels: []",
            "'merge_method' stands twice, in line 1 and line 2",
        ),
        (
            "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1, weight: 2}}",
            "'weight' stands twice",
        ),
        ("merge_method: [linear", "not valid YAML"),
        ("- linear", "KEY: VALUE entries expected"),
        ("", "KEY: VALUE entries expected"),
        ("merge_method: linear\n---\nmerge_method: ties", "not valid YAML"),
    ],
)
def test_documents_of_no_recipe_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        merge(tmp_path / "recipe.yml")


@pytest.mark.parametrize(
    "content_of_source", [{}, {"token": "x", "token_id": 1}, {"token_id": None}]
)
def test_a_token_of_another_model_is_named_by_its_text_or_by_its_number(
    content_of_source: dict[str, Any],
) -> None:
    def parsed(content: dict[str, Any]) -> Recipe:
        source = {"kind": "model_token", "model": "a", **content}
        tokenizer = {"tokens": {"new": {"source": source}}}
        models = [{"model": "a"}]
        return parse_recipe({"merge_method": "linear", "models": models, "tokenizer": tokenizer})

    with pytest.raises(
        ConfigError, match=r"^tokenizer: tokens: new: give either token or token_id"
    ):
        parsed(content_of_source)
    assert parsed({"token": "x"}).tokens["new"].token == "x"
    assert parsed({"token_id": 0}).tokens["new"].token == 0


# -- unknown keys ----------------------------------------------------------------------------------

FULL: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {
            "model": "a",
            "parameters": {
                "weight": [{"filter": "mlp", "value": 0.5}, {"value": 1.0}],
                "density": 0.5,
            },
        },
        {"model": "b", "parameters": {"weight": [0.2, 0.8]}},
    ],
    "parameters": {"normalize": True},
    "dtype": "float32",
    "tokenizer": {
        "source": "union",
        "tokens": {
            "<end>": {"source": {"kind": "model_token", "model": "a", "token": "<turn>"}},
            "x": {"source": "b"},
        },
    },
}
SLICED: dict[str, Any] = {
    "merge_method": "passthrough",
    "slices": [
        {
            "sources": [{"model": "a", "layer_range": [0, 1], "parameters": {"scale": 0.5}}],
            "parameters": {"scale": 1.0},
        },
        {"sources": [{"model": "b", "layer_range": [1, 2]}]},
    ],
}
MODULES: dict[str, Any] = {
    "merge_method": "linear",
    "modules": {"text": {"models": [{"model": "a"}, {"model": "b"}], "parameters": {}}},
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every set of entries in a document whose names are fixed."""
    if isinstance(value, dict):
        if path[-1:] not in (("tokens",), ("modules",)):
            yield path
        for key, entry in value.items():
            yield from places(entry, (*path, key))
    if isinstance(value, list):
        for i, entry in enumerate(value):
            yield from places(entry, (*path, i))


DOCUMENTS = {"models": FULL, "slices": SLICED, "modules": MODULES}
LEVELS = [(name, path) for name, document in DOCUMENTS.items() for path in places(document)]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for seed, name in enumerate(("base", "a", "b")):
        put(folder / name, seed)
    return folder


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_below_are_merged_as_they_stand(three: Path, name: str) -> None:
    file = three / f"{name}.yml"
    file.write_text(yaml.safe_dump(DOCUMENTS[name]))
    assert CliRunner().invoke(app, ["merge", str(file), "--dry-run"]).exit_code == 0


@pytest.mark.parametrize(
    ("name", "path"), LEVELS, ids=lambda value: "-".join(map(str, value)) or "top"
)
def test_an_unknown_key_at_any_level_is_refused_by_name(
    three: Path, name: str, path: tuple[Any, ...]
) -> None:
    document = copy.deepcopy(DOCUMENTS[name])
    place = document
    for step in path:
        place = place[step]
    place["dnesity"] = 0.5
    file = three / "wrong.yml"
    file.write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["merge", str(file), "--dry-run"])
    assert result.exit_code == 2, result.output
    assert "dnesity" in result.stderr


def test_the_levels_tried_are_all_there_are() -> None:
    assert len(LEVELS) == 8 + 5 + 6 + 5, LEVELS


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "sources that are no list": (lambda d: d["slices"][0].update(sources={"model": "a"}),
                                 "sources must be a list"),
    "a model that is a mapping": (
        lambda d: d["slices"][1]["sources"][0].update(model={"path": "b"}), "as text",
    ),
    "a bound that is no number": (
        lambda d: d["slices"][1]["sources"][0].update(layer_range=[0, "x"]), "whole number",
    ),
    "half a layer": (lambda d: d["slices"][1]["sources"][0].update(layer_range=[0, 1.5]),
                     "whole number"),
    "parameters that are a list": (lambda d: d["slices"][1].update(parameters=[]),
                                   "parameters must be"),
    "a tokenizer that is a list": (lambda d: d.update(tokenizer=[]), "tokenizer: KEY: VALUE"),
    "padding by a flag": (lambda d: d.update(tokenizer={"pad_to_multiple_of": True}),
                          "pad_to_multiple_of"),
    "an adapter": (lambda d: d["slices"][1]["sources"][0].update(model="b+lora"),
                   "merge the adapter into its model"),
    "scale at a filter of nothing": (
        lambda d: d.update(parameters={"scale": [{"filter": "mpl", "value": 1}]}),
        "'mpl' fits no tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_values_of_another_form_are_refused(three: Path, what: str) -> None:
    alter, message = WRONG[what]
    document = copy.deepcopy(SLICED)
    alter(document)
    (three / "wrong.yml").write_text(yaml.safe_dump(document))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        merge(three / "wrong.yml")


# -- ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "each", "shared", "message"),
    [
        ("ties", {"density": 1.7}, {}, r"density must be in \(0, 1\], got 1.7"),
        ("ties", {"density": 0}, {}, r"density must be in \(0, 1\], got 0"),
        ("breadcrumbs", {"gamma": -0.1}, {}, r"gamma must be in \[0, 1\]"),
        ("della", {"density": 0.5, "epsilon": 0.6}, {}, r"epsilon must be in \[0, 0.5\]"),
        ("della", {"density": 0.9, "epsilon": 0.2}, {}, r"must stay in \(0, 1\]"),
        ("ties", {"weight": 0}, {}, "weights sum to 0"),
        ("della", {"density": 0.5, "weight": 0}, {}, "weights sum to 0"),
        ("slerp", {}, {"t": 2.5}, r"t must be in \[0, 1\], got 2.5"),
        ("slerp", {}, {"t": [0, 1.1]}, r"t must be in \[0, 1\], got 1.1"),
        ("slerp", {}, {}, "needs the parameter 't'"),
        ("nearswap", {}, {"t": -1}, r"t must be in \[0, inf\]"),
        ("sce", {}, {"select_topk": 0}, r"select_topk must be in \(0, 1\]"),
        ("ties", {}, {"normalize": 0.5}, "normalize must be true or false"),
        ("ram", {}, {"epsilon": -1}, "epsilon must be"),
        ("ramplus_tl", {}, {"r": -1}, "r must be"),
    ],
)
def test_parameters_out_of_range_are_refused(
    method: str, each: Any, shared: Any, message: str
) -> None:
    content = {
        "merge_method": method, "base_model": "base",
        "models": [{"model": "a", "parameters": each}], "parameters": shared,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        make_plan(parse_recipe(content), random_models("base", "a"))


@pytest.mark.parametrize("method", ["karcher"])
@pytest.mark.parametrize(("name", "value"), [("max_iter", 0), ("max_iter", 2.5), ("tol", -1)])
def test_iterations_and_tolerances_have_ranges(method: str, name: str, value: float) -> None:
    content = {
        "merge_method": method,
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {name: value},
    }
    with pytest.raises(ConfigError, match=f"{name} must be"):
        make_plan(parse_recipe(content), random_models("a", "b"))


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "fisher", "linear"])
def test_weights_that_cancel_are_refused_where_they_are_divided_by(method: str) -> None:
    models = [{"model": name, "parameters": {"weight": 0}} for name in "ab"]
    opened = random_models("a", "b")
    for weights_ in opened.values():
        weights_.importance = weights_  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"weights (are|sum to) 0"):
        make_plan(parse_recipe({"merge_method": method, "models": models}), opened)


# -- one model several times -----------------------------------------------------------------------


def random_models(*labels: str) -> dict[str, Weights]:
    """Return models of three layers of one matrix each, and an embedding."""
    names = ["embed_tokens.weight", *(f"layers.{i}.w" for i in range(3)), "norm.weight"]
    result = {}
    for number, label in enumerate(labels):
        generator = torch.Generator().manual_seed(number)
        result[label] = Weights(
            label, {name: torch.randn(6, 4, generator=generator) for name in names}
        )
    return result


def merged(content: dict[str, Any], models: dict[str, Weights]) -> dict[str, torch.Tensor]:
    plan = make_plan(parse_recipe(content), models)
    return {tensor.target: merge_tensor(plan, tensor, models, 0) for tensor in plan.tensors}


def test_a_slice_of_two_stretches_of_one_model_merges_both() -> None:
    models = random_models("a")
    sources = [
        {"model": "a", "layer_range": [0, 2], "parameters": {"weight": 1}},
        {"model": "a", "layer_range": [1, 3], "parameters": {"weight": 3}},
    ]
    result = merged({"merge_method": "linear", "slices": [{"sources": sources}]}, models)
    layers = [models["a"].get(f"layers.{i}.w") for i in range(3)]
    for i in range(2):
        torch.testing.assert_close(result[f"layers.{i}.w"], layers[i] / 4 + layers[i + 1] * 3 / 4)
    torch.testing.assert_close(result["norm.weight"], models["a"].get("norm.weight"))


def test_the_base_may_be_a_member_at_other_layers() -> None:
    models = random_models("a")
    sources = [{"model": "a", "layer_range": [0, 2]}, {"model": "a", "layer_range": [1, 3]}]
    content = {"base_model": "a", "slices": [{"sources": sources}]}
    result = merged({"merge_method": "slerp", "parameters": {"t": 0.0}, **content}, models)
    torch.testing.assert_close(result["layers.1.w"], models["a"].get("layers.1.w"))
    result = merged({"merge_method": "slerp", "parameters": {"t": 1.0}, **content}, models)
    torch.testing.assert_close(result["layers.1.w"], models["a"].get("layers.2.w"))
    torch.testing.assert_close(
        result["embed_tokens.weight"], models["a"].get("embed_tokens.weight")
    )


def test_a_model_listed_twice_counts_twice_with_a_mask_of_its_own_each_time() -> None:
    models = random_models("base", "a")
    twice = [{"model": "a", "parameters": {"weight": 1.0, "density": 0.5}}] * 2
    result = merged({"merge_method": "dare_linear", "base_model": "base", "models": twice}, models)
    base, other = (models[label].get("layers.0.w") for label in ("base", "a"))
    # each keeps an entry at twice its size, or drops it
    times = (result["layers.0.w"] - base) / (other - base) / 2
    torch.testing.assert_close(times, times.round(), atol=1e-4, rtol=0)
    assert {int(time) for time in times.flatten().round()} == {0, 1, 2}


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "model_stock"])
def test_the_base_listed_among_the_models_is_no_model(method: str) -> None:
    models = random_models("base", "a", "b")
    listed = [{"model": name} for name in ("a", "base", "b")]
    content = {"merge_method": method, "base_model": "base"}
    result = merged({**content, "models": listed}, models)
    for name, value in merged({**content, "models": [listed[0], listed[2]]}, models).items():
        assert torch.equal(result[name], value)


def test_a_path_may_be_spelled_in_several_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("ab"):
        put(tmp_path / name, seed)
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    spelled = ("a", "./a/", str(tmp_path / "a"), "b/../a", "link")
    result = merge(recipe(tmp_path, *spelled[1:], "b", base_model="a", tokenizer_source="b/../b"))
    assert [parent["name"] for parent in result.manifest.parents] == ["a", "b"]
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name, value in weights(result.path).items():
        torch.testing.assert_close(value, (4 * a[name] + b[name]) / 5)
    # As base and as member: the base has no task vector, so b's alone is added.
    entries = [{"model": name} for name in ("./a", "b")]
    (tmp_path / "recipe.yml").write_text(
        yaml.safe_dump({"merge_method": "task_arithmetic", "base_model": "link", "models": entries})
    )
    for name, value in weights(merge(tmp_path / "recipe.yml", "second").path).items():
        torch.testing.assert_close(value, b[name])


def test_a_folder_with_other_letters_and_spaces_merges(tmp_path: Path) -> None:
    folder = tmp_path / "модель ñ 模型"
    folder.mkdir()
    for seed, name in enumerate(("ä b", "c")):
        put(folder / name, seed)
    file = folder / "rezept.yml"
    file.write_text(
        yaml.safe_dump(
            {"merge_method": "linear", "models": [{"model": "ä b"}, {"model": "c"}]},
            allow_unicode=True,
        ),
        encoding="utf-8",
    )
    result = merge(file, "результат")
    for name, value in mean(folder / "ä b", folder / "c").items():
        torch.testing.assert_close(weights(result.path)[name], value)
    assert "ä b" in (result.path / "README.md").read_text(encoding="utf-8")


# -- which files -----------------------------------------------------------------------------------


def test_other_weights_beside_the_models_are_said_and_not_read(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        put(tmp_path / name, seed)
    odd = {"layers.0.attention.wq.weight": torch.full((16, 16), torch.nan)}
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "model.fp16.safetensors"):
        save_file(odd, tmp_path / "b" / name)
    (tmp_path / "b" / "original").mkdir()
    save_file(odd, tmp_path / "b" / "original" / "model.safetensors")
    result = merge(recipe(tmp_path, "a", "b"))
    for name, value in mean(tmp_path / "a", tmp_path / "b").items():
        torch.testing.assert_close(weights(result.path)[name], value)
    assert (
        "b: adapter_model.safetensors, consolidated.safetensors, model.fp16.safetensors is not read"
        in notes(result)
    )


def test_the_files_of_an_index_are_read_and_no_others(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        put(tmp_path / name, seed)
    whole = weights(tmp_path / "b")
    AutoModelForCausalLM.from_pretrained(tmp_path / "b").save_pretrained(
        tmp_path / "parts", max_shard_size="20KB"
    )
    for file in tmp_path.joinpath("parts").glob("model*"):
        shutil.copy(file, tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").unlink()
    save_file(
        {name: value + 1 for name, value in whole.items()},
        tmp_path / "b" / "consolidated.safetensors",
    )
    assert len(list((tmp_path / "b").glob("model-*"))) > 1
    result = merge(recipe(tmp_path, "a", "b"))
    for name, value in weights(tmp_path / "a").items():
        torch.testing.assert_close(weights(result.path)[name], (value + whole[name]) / 2)
    opened = Weights.open(tmp_path / "b")
    assert torch.equal(opened.get("model.norm.weight"), whole["model.norm.weight"])


def test_files_of_which_nobody_says_that_they_are_the_model_are_refused(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        put(tmp_path / name, seed)
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "b" / "one.safetensors")
    merge(recipe(tmp_path, "a", "b"), "lone")
    save_file({"x": torch.ones(1)}, tmp_path / "b" / "two.safetensors")
    with pytest.raises(
        CheckpointError, match=r"2 \.safetensors files, but neither model\.safetensors nor"
    ):
        merge(recipe(tmp_path, "a", "b"))
    (tmp_path / "b" / "one.safetensors").unlink()
    (tmp_path / "b" / "two.safetensors").rename(tmp_path / "b" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="an adapter, not a model"):
        merge(recipe(tmp_path, "a", "b"))


# -- heads -----------------------------------------------------------------------------------------

TIED = {
    "gpt2": (
        "transformer.wte.weight",
        "lm_head.weight",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    ),
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight", {}),
    "llama": ("model.embed_tokens.weight", "lm_head.weight", {}),
    "gemma3_text": ("model.embed_tokens.weight", "lm_head.weight", {"head_dim": 8}),
    "smollm3": ("model.embed_tokens.weight", "lm_head.weight", {}),
}


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("order", [("tied", "apart"), ("apart", "tied")])
def test_a_head_shared_in_one_model_and_apart_in_the_other(
    tmp_path: Path, kind: str, order: tuple[str, str]
) -> None:
    embedding, head, sizes = TIED[kind]
    put(tmp_path / "tied", 0, kind, tie_word_embeddings=True, **sizes)
    put(tmp_path / "apart", 1, kind, tie_word_embeddings=False, **sizes)
    assert head not in weights(tmp_path / "tied")
    result = merge(recipe(tmp_path, *order))
    model, info = AutoModelForCausalLM.from_pretrained(result.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tied, apart = weights(tmp_path / "tied"), weights(tmp_path / "apart")
    torch.testing.assert_close(
        model.get_output_embeddings().weight, (tied[embedding] + apart[head]) / 2
    )
    torch.testing.assert_close(
        model.get_input_embeddings().weight, (tied[embedding] + apart[embedding]) / 2
    )
    assert "ties its head to its embedding" in notes(result)


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("said", [True, None])
def test_a_stored_duplicate_of_the_embedding_neither_unties_nor_grows_the_result(
    tmp_path: Path, kind: str, said: bool | None
) -> None:
    embedding, head, sizes = TIED[kind]
    for seed, name in enumerate("ab"):
        put(tmp_path / name, seed, kind, tie_word_embeddings=True, **sizes)
    own = weights(tmp_path / "b")
    save_file(
        own | {head: own[embedding].clone()}, tmp_path / "b" / "model.safetensors", {"format": "pt"}
    )
    change(tmp_path / "b", "config.json", tie_word_embeddings=said)
    for first, other in (("a", "b"), ("b", "a")):
        result = merge(recipe(tmp_path, first, other), f"from_{first}")
        assert head not in weights(result.path)
        model, info = AutoModelForCausalLM.from_pretrained(result.path, output_loading_info=True)
        assert not info["missing_keys"]
        assert (
            model.get_output_embeddings().weight.data_ptr()
            == model.get_input_embeddings().weight.data_ptr()
        )
        truth = (weights(tmp_path / "a")[embedding] + own[embedding]) / 2
        torch.testing.assert_close(weights(result.path)[embedding], truth)


def test_a_stored_head_that_differs_is_kept_as_transformers_keeps_it(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        put(tmp_path / name, seed, tie_word_embeddings=True)
    own = weights(tmp_path / "b")
    head = torch.randn_like(own["model.embed_tokens.weight"])
    save_file(
        own | {"lm_head.weight": head}, tmp_path / "b" / "model.safetensors", {"format": "pt"}
    )
    truth = AutoModelForCausalLM.from_pretrained(tmp_path / "b").lm_head.weight
    torch.testing.assert_close(truth, head)
    result = merge(recipe(tmp_path, "a", "b"))
    expected = (weights(tmp_path / "a")["model.embed_tokens.weight"] + head) / 2
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(result.path).lm_head.weight, expected
    )


# -- what is said ----------------------------------------------------------------------------------


def test_parameters_of_the_base_and_another_rescaling_than_mergekits_are_said(
    tmp_path: Path,
) -> None:
    for seed, name in enumerate("ab"):
        put(tmp_path / name, seed)
    result = merge(recipe(tmp_path, "a", "b", method="dare_ties", base_model="a"))
    assert "a is the base of dare_ties: parameters listed for it are not used" in notes(result)
    assert "mergekit restores the L1 norm instead: `rescale_l1: true`" in notes(result)
    for number, parameters in enumerate(({"rescale_l1": True}, {"rescale": False})):
        quiet = merge(
            recipe(tmp_path, "b", method="dare_ties", base_model="a", parameters=parameters),
            f"q{number}",
        )
        assert "L1" not in notes(quiet)
        assert "not used" not in notes(quiet)


def test_nan_in_a_model_is_refused_and_named(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        put(tmp_path / name, seed)
    own = weights(tmp_path / "b")
    own["model.norm.weight"][3] = float(np.nan)
    save_file(own, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    result = CliRunner().invoke(
        app, ["merge", str(recipe(tmp_path, "a", "b")), "--out", str(tmp_path / "out"), "--json"]
    )
    assert result.exit_code == 74
    assert "b: model.norm.weight holds NaN or infinity" in result.output
    assert not (tmp_path / "out").exists()
