"""The bank of a search: whatever it shares between candidates, each comes out as a one-shot merge
of its recipe.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from agent_forge.merge import Weights, bank, make_plan, merge_tensor
from agent_forge.merge.bank import GRID, SUMS, Bank, rank_classes, stand_ins
from agent_forge.merge.recipe import ModelEntry, Recipe, Slice, SliceSource

SHAPES = {
    "embed_tokens.weight": (40, 16), "layers.0.a.weight": (16, 16), "layers.0.norm.weight": (16,),
    "layers.1.a.weight": (16, 16), "layers.1.norm.weight": (16,), "norm.weight": (16,),
    "odd.weight": (7, 5), "one": (1,),
}  # fmt: skip


def family(dtype: torch.dtype = torch.float32) -> dict[str, Weights]:
    """Return a trunk and three models tuned from it: exact ties, zeros, an untouched tensor, and
    equal models in one.
    """
    generator = torch.Generator().manual_seed(0)
    trunk = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    models = {"trunk": trunk}
    for number in range(3):
        tuned = {
            name: value + 0.05 * torch.randn(value.shape, generator=generator)
            for name, value in trunk.items()
        }
        tuned["layers.0.a.weight"] = trunk["layers.0.a.weight"] + 0.25 * torch.randint(
            -2, 3, (16, 16), generator=generator
        )
        tuned["layers.1.norm.weight"] = trunk["layers.1.norm.weight"].clone()
        if number == 2:
            tuned["norm.weight"] = models["m1"]["norm.weight"].clone()
        models[f"m{number}"] = tuned
    return {
        label: Weights(label, {n: v.to(dtype) for n, v in tensors.items()})
        for label, tensors in models.items()
    }


def recipes() -> list[Recipe]:
    """Return one recipe of every technique that a search uses, and some that the bank has no short
    way for.
    """

    def tuned(method: str, **each: object) -> Recipe:
        weights = (0.7, [1.2, -0.3], 0.4)
        models = [
            ModelEntry(model=f"m{i}", parameters={"weight": w, **each})
            for i, w in enumerate(weights)
        ]
        return Recipe(
            method=method,
            models=models,
            base="trunk",
            parameters={"normalize": False, "lambda": 0.9},
        )

    def plain(
        method: str, models: tuple[str, ...], base: str = "", each: bool = True, **shared: object
    ) -> Recipe:
        entries = [
            ModelEntry(model=m, parameters={"weight": [0.3 + i, 0.8]} if each else {})
            for i, m in enumerate(models)
        ]
        return Recipe(method=method, models=entries, base=base, parameters=shared)

    whole = ("trunk", "m0", "m1", "m2")
    path = [
        SliceSource(model="m1", layer_range=(0, 1)),
        SliceSource(model="m0", layer_range=(1, 2)),
    ]
    scaled = SliceSource(model="m2", layer_range=(0, 1), parameters={"scale": 0.5})
    negative = tuned("ties", density=40 / GRID)
    negative.parameters["lambda"] = -0.8
    return [
        plain("linear", whole), plain("slerp", ("m1",), "trunk", each=False, t=[0.2, 0.7]),
        plain("slerp", ("m1",), "m2", each=False, t=0.4), plain("nuslerp", ("m0", "m2")),
        plain("nuslerp", ("m0", "m2"), "trunk"), plain("multislerp", whole),
        plain("multislerp", whole[1:], "trunk"),
        plain("karcher", whole, each=False), plain("model_stock", whole[1:], "trunk", each=False),
        plain("sce", whole[1:], "trunk", each=False, select_topk=0.5), tuned("task_arithmetic"),
        tuned("ties", density=40 / GRID), negative, tuned("ties", density=0.333),
        tuned("ties", density=1.0),
        tuned("dare_linear", density=64 / GRID), tuned("dare_ties", density=100 / GRID),
        tuned("breadcrumbs", density=70 / GRID, gamma=9 / GRID),
        tuned("breadcrumbs_ties", density=33 / GRID, gamma=5 / GRID),
        Recipe(method="passthrough", slices=[Slice(sources=[part]) for part in path]),
        Recipe(method="dfs", slices=[Slice(sources=[part]) for part in (path[0], scaled)]),
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", recipes(), ids=lambda r: f"{r.method}-{r.base}-{len(r.models)}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_candidate_equals_the_one_shot_merge_of_its_recipe(
    recipe: Recipe, dtype: torch.dtype
) -> None:
    models = family(dtype)
    plan = make_plan(recipe, models)
    built = {tensor.target: torch.full(SHAPES[tensor.target], torch.nan) for tensor in plan.tensors}
    Bank(models, "trunk", seed=3).merge_into(plan, built)
    for tensor in plan.tensors:
        truth = merge_tensor(plan, tensor, models, 3)
        # Sums of 16-bit numbers are often 0 but for rounding, and then an election in float32 may
        # go either way.
        even = (
            0.005 * truth.numel()
            if dtype == torch.bfloat16 and recipe.method.endswith("ties")
            else 0
        )
        wrong = ~torch.isclose(built[tensor.target], truth, rtol=2e-5, atol=2e-6)
        assert int(wrong.sum()) <= even


@pytest.mark.parametrize("method", sorted(SUMS))
def test_densities_on_the_grid_take_the_short_way_and_all_others_the_merge_in_one_shot(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is the same; the short way is what makes a search fast."""
    models, slow = family(), []

    def noted(plan: Any, tensor: Any, *rest: Any) -> torch.Tensor:
        slow.append(tensor.target)
        return merge_tensor(plan, tensor, *rest)

    monkeypatch.setattr(bank, "merge_tensor", noted)
    top = {"gamma": 9 / GRID} if "breadcrumbs" in method else {}
    cases = [
        ({"density": 32 / GRID, **top}, {}, set()),
        ({"density": 1.0, **dict.fromkeys(top, 0.0)}, {}, set()),
        ({"density": 32.5 / GRID, **top}, {}, set(SHAPES)),
        ({"density": 32 / GRID, **top}, {"normalize": True}, set(SHAPES)),
    ]
    if top:
        # An outlier cap that leaves no room for the density is settled by the one-shot merge.
        cases.append(({"density": 120 / GRID, "gamma": 9 / GRID}, {}, set(SHAPES)))
        cases.append(({"density": 119 / GRID, **top}, {}, set()))
    for each, changes, expected in cases:
        recipe = Recipe(
            method=method,
            models=[
                ModelEntry(model=f"m{i}", parameters={"weight": 0.5, **each}) for i in range(3)
            ],
            base="trunk",
            parameters={"normalize": False, **changes},
        )
        plan = make_plan(recipe, models)
        slow.clear()
        Bank(models, "trunk", seed=3).merge_into(
            plan, {t.target: torch.empty(SHAPES[t.target]) for t in plan.tensors}
        )
        few = {"one", "odd.weight", "norm.weight", "layers.0.norm.weight", "layers.1.norm.weight"}
        # Where a share of few entries is less than one, the counts of the two cuts may not add up.
        assert set(slow) - few == expected - few, (each, changes)


def test_candidates_do_not_depend_on_those_before_them_and_go_into_any_layout() -> None:
    models = family()
    shared = Bank(models, "trunk", seed=3)
    for recipe in recipes():
        plan = make_plan(recipe, models)
        names = {tensor.target for tensor in plan.tensors}
        again, alone = {name: torch.empty(SHAPES[name]) for name in names}, {}
        for name in names:
            shape = SHAPES[name]
            alone[name] = (
                torch.empty(shape[::-1]).T if len(shape) == 2 else torch.empty(2 * shape[0])[::2]
            )
        shared.merge_into(plan, again)
        Bank(models, "trunk", seed=3).merge_into(plan, alone)
        assert all(torch.equal(again[name], alone[name]) for name in names), recipe.method
    half = {name: torch.empty(SHAPES[name], dtype=torch.bfloat16) for name in names}
    shared.merge_into(plan, half)
    assert all(torch.equal(half[name], again[name].bfloat16()) for name in names)


@pytest.mark.parametrize("count", [1, 2, 5, 127, 128, 129, 1000])
def test_rank_classes_give_the_mask_of_every_density_on_the_grid(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    delta = (
        torch.randint(-4, 5, (count,), generator=generator) * 0.5 + 1.0
    )  # many ties, no zero after the shift of most
    delta[delta == 0] = 0.25
    ranks = rank_classes(delta)
    for density in range(1, GRID + 1):
        remaining = ranks.classes <= density
        # The first among equals, exactly so many.
        expected = max(1, density * count // GRID)
        first = torch.argsort(delta.abs(), descending=True, stable=True)[:expected]
        assert sorted(first.tolist()) == remaining.nonzero().flatten().tolist()
        if int(remaining.sum()) > int((ranks.classes < density).sum()):
            smallest = delta.abs()[ranks.classes == density].min()
            assert delta.abs()[ranks.last[density]] == smallest
            assert int(ranks.classes[ranks.last[density]]) == density


def test_stand_ins_have_the_inner_products_and_give_shares_back() -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 50))
    vectors[1:] *= [[1e-3], [1e-2], [0.0]]
    products = vectors @ vectors.T
    rows, back = stand_ins(products)
    np.testing.assert_allclose(rows @ rows.T, products, rtol=1e-9, atol=1e-12)
    shares = np.array([0.3, -2.0, 5.0, 0.0])
    np.testing.assert_allclose((shares @ rows) @ back, shares, rtol=1e-8, atol=1e-10)
    for i, j in itertools.combinations(range(3), 2):
        assert abs(rows[i] @ rows[j] - products[i, j]) < 1e-9
