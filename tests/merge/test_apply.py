"""A merge in memory: into whatever tensors a model has, whole numbers as they are; and layer paths
as their definition has them.
"""

import pytest
import torch

from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.merge import Weights, make_plan, merge_into, merge_tensor, parse_recipe
from agent_forge.merge import apply as applying
from agent_forge.merge.methods import dfs
from agent_forge.merge.recipe import ModelEntry, Recipe

NAMES = ("embed_tokens.weight", "layers.0.w", "layers.1.w", "norm.weight")
COUNTS = torch.arange(24).view(6, 4)


def two_models() -> dict[str, Weights]:
    """Return models of four random matrices and one of whole numbers, which both have alike."""
    models = {}
    for seed, label in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: torch.randn(6, 4, generator=generator) for name in NAMES}
        models[label] = Weights(label, {**tensors, "counts": COUNTS})
    return models


def halves() -> Recipe:
    return Recipe(method="linear", models=[ModelEntry(model="a"), ModelEntry(model="b")])


def test_merged_tensors_go_into_any_layout_and_dtype_of_a_model() -> None:
    models = two_models()
    plan = make_plan(halves(), models)
    target = {
        NAMES[0]: torch.empty(6, 4),
        NAMES[1]: torch.empty(4, 6).T,
        NAMES[2]: torch.empty(6, 4, dtype=torch.bfloat16),
        NAMES[3]: torch.empty(6, 4, dtype=torch.float64),
        "counts": torch.zeros(6, 4, dtype=torch.int64),
    }
    pauses: list[int] = []
    merge_into(plan, models, target, seed=0, between=lambda: pauses.append(1))
    for name in NAMES:
        mean = (models["a"].get(name) + models["b"].get(name)) / 2
        torch.testing.assert_close(target[name], mean.to(target[name].dtype), rtol=1e-6, atol=1e-6)
    assert torch.equal(target["counts"], COUNTS)
    assert len(pauses) == len(plan.tensors) == 5


def test_a_plain_tensor_is_written_in_place_and_others_from_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the copy, a merge needs no second tensor's memory."""
    models, copied = two_models(), []

    def noted(plan, tensor, *rest):  # type: ignore[no-untyped-def]
        copied.append(tensor.target)
        return merge_tensor(plan, tensor, *rest)

    monkeypatch.setattr(applying, "merge_tensor", noted)
    target = {name: torch.empty(6, 4) for name in NAMES}
    target["counts"] = torch.zeros(6, 4, dtype=torch.int64)
    target[NAMES[1]] = torch.empty(4, 6).T
    target[NAMES[2]] = torch.empty(6, 4, dtype=torch.float16)
    merge_into(make_plan(halves(), models), models, target, seed=0)
    assert sorted(copied) == sorted([NAMES[1], NAMES[2], "counts"])


def test_tensors_that_a_model_lacks_are_named_and_counted() -> None:
    models = two_models()
    target = {name: torch.empty(6, 4) for name in NAMES[2:]}
    with pytest.raises(CheckpointError, match=r"no tensor counts, .* \(3 in all\)"):
        merge_into(make_plan(halves(), models), models, target, seed=0)


def test_whole_numbers_that_differ_have_no_merge() -> None:
    models = two_models()
    models["b"] = Weights("b", {**{n: models["b"].get(n) for n in NAMES}, "counts": COUNTS + 1})
    plan = make_plan(halves(), models)
    (counts,) = [tensor for tensor in plan.tensors if tensor.target == "counts"]
    with pytest.raises(CheckpointError, match="counts holds whole numbers that differ between a"):
        merge_tensor(plan, counts, models, 0)


# -- layer paths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([], []),
        ([("a", 5)], [False]),  # the first follows the embeddings
        ([("a", 0), ("a", 1), ("a", 2)], [False, False, False]),
        ([("a", 0), ("a", 0)], [False, True]),
        ([("a", 1), ("a", 0)], [False, True]),
        ([("a", 0), ("a", 2)], [False, True]),
        ([("a", 0), ("b", 1), ("b", 2)], [False, True, False]),
    ],
)
def test_a_step_jumps_unless_it_goes_to_the_next_layer_of_the_same_model(
    path: list[tuple[str, int]], expected: list[bool]
) -> None:
    assert dfs.jumps(path) == expected


def test_scales_of_jumps_multiply_and_layers_in_between_write_by_the_inverse() -> None:
    path = [("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 0)]
    recipe = dfs.path_recipe(path, [7.0, 7.0, 0.5, 7.0, 4.0, 7.0, 0.5], ["out"])
    parts = [source for part in recipe.slices for source in part.sources]
    assert [(p.model, p.layer_range) for p in parts] == [
        ("a", (0, 2)),
        ("b", (1, 3)),
        ("a", (3, 5)),
        ("b", (0, 1)),
    ]  # stretches without a jump are one slice
    written = [{}, 1 / 0.5, 1 / (0.5 * 4.0), {}]  # 0.5 · 4 · 0.5 is 1: no scale
    assert [p.parameters for p in parts] == [
        {"scale": [{"filter": "out", "value": w}, {"value": 1.0}]} if w else {} for w in written
    ]
    assert recipe.method == "dfs"


@pytest.mark.parametrize(
    ("path", "scales", "message"),
    [
        ([], [], "one input scale per layer, got 0 for 0 layers"),
        ([("a", 0)], [1.0, 1.0], "one input scale per layer, got 2 for 1 layers"),
        ([("a", 0)], [0.0], "must be positive, got 0.0"),
        ([("a", 0)], [float("nan")], "must be positive, got nan"),
    ],
)
def test_paths_without_a_positive_scale_per_layer_are_refused(
    path: list[tuple[str, int]], scales: list[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dfs.path_recipe(path, scales)


def test_a_recipe_made_in_code_is_that_of_a_document_that_leaves_everything_out() -> None:
    document = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
    assert parse_recipe(document) == halves()
