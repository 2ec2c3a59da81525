"""Every method against the golden outputs of mergekit 0.1.5 (../shared/golden/merge), and bf16
against float64 truth.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from agent_forge.merge import Weights, make_plan, merge_tensor, read_recipe

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "merge"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files at {GOLDEN}")
CASES = sorted(path.stem for path in GOLDEN.glob("*.yml")) if GOLDEN.is_dir() else []
TRUTHS = [case for case in CASES if case.endswith("_f64truth")]
RANDOM = [case for case in CASES if case.endswith("_seed0")]
EXACT = [case for case in CASES if case not in (*TRUTHS, *RANDOM)]
# In bf16 many magnitudes are equal, so which entries a top-k keeps is only defined up to ties.
TIED = ("ties__bf16in_f64truth", "breadcrumbs__bf16in_f64truth")


def merged(
    case: str, seed: int = 0, **shared: object
) -> tuple[dict[str, Tensor], dict[str, Weights]]:
    recipe = read_recipe(GOLDEN / f"{case}.yml")
    recipe.parameters.update(shared)
    models = {label: Weights.open(GOLDEN / label, label) for label in recipe.labels()}
    plan = make_plan(recipe, models)
    return {
        tensor.target: merge_tensor(plan, tensor, models, seed) for tensor in plan.tensors
    }, models


def golden(case: str) -> dict[str, Tensor]:
    weights = Weights.open(GOLDEN / f"{case}.safetensors")
    return {name: weights.get(name) for name in weights.forms}


@pytest.mark.parametrize("case", EXACT)
def test_a_deterministic_case_agrees_with_the_golden_file(case: str) -> None:
    ours, _ = merged(case)
    theirs = golden(case)
    assert set(ours) == set(theirs)
    assert sum(int(((ours[name] - theirs[name]).abs() > 1e-6).sum()) for name in theirs) == 0


@pytest.mark.parametrize("case", [case for case in TRUTHS if case not in TIED])
def test_a_bfloat16_merge_is_the_correctly_rounded_truth(case: str) -> None:
    ours, _ = merged(case)
    theirs = golden(case)
    wrong = sum(int((ours[name].bfloat16() != theirs[name].bfloat16()).sum()) for name in theirs)
    assert wrong <= 0.001 * sum(tensor.numel() for tensor in theirs.values())


def test_ties_in_bfloat16_is_right_wherever_the_kept_set_is_defined() -> None:
    # An entry at a threshold magnitude may be kept or not; everywhere else the merge must be the
    # truth.
    ours, models = merged(TIED[0])
    theirs = golden(TIED[0])
    recipe = read_recipe(GOLDEN / f"{TIED[0]}.yml")
    wrong = total = 0
    for name, truth in theirs.items():
        base = models[recipe.base].get(name).double()
        defined = torch.ones_like(truth, dtype=torch.bool)
        for entry in recipe.models:
            size = (models[entry.model].get(name).double() - base).abs()
            remaining = max(1, int(entry.parameters["density"] * size.numel()))
            threshold = size.flatten().sort(descending=True).values[remaining - 1]
            defined &= size != threshold
        wrong += int((ours[name].bfloat16() != truth.bfloat16())[defined].sum())
        total += int(defined.sum())
    assert total > 50_000
    assert wrong <= 0.001 * total


@pytest.mark.parametrize("case", RANDOM)
def test_a_random_case_keeps_the_share_and_the_scale_of_each_task_vector(case: str) -> None:
    recipe = read_recipe(GOLDEN / f"{case}.yml")
    for entry in recipe.models:
        alone = read_recipe(GOLDEN / f"{case}.yml")
        alone.models = [next(m for m in alone.models if m.model == entry.model)]
        alone.parameters["normalize"] = False
        density, weight = (
            alone.models[0].parameters["density"],
            alone.models[0].parameters["weight"],
        )
        labels = alone.labels()
        models = {label: Weights.open(GOLDEN / label, label) for label in labels}
        plan = make_plan(alone, models)
        remaining = nonzero = 0
        l1_before = l1_after = 0.0
        for tensor in plan.tensors:
            base = models[alone.base].get(tensor.target)
            delta = models[entry.model].get(tensor.target) - base
            change = (merge_tensor(plan, tensor, models, seed=0) - base) / weight
            remaining += int(((change != 0) & (delta != 0)).sum())
            nonzero += int((delta != 0).sum())
            l1_before += float(delta.abs().sum())
            l1_after += float(change.abs().sum())
        sigma = (density * (1 - density) / nonzero) ** 0.5
        if case.startswith("dare"):
            assert abs(remaining / nonzero - density) < 4 * sigma
        else:
            assert abs(remaining / nonzero - density) < 0.1
        assert l1_after == pytest.approx(l1_before, rel=0.02)


@pytest.mark.parametrize("case", RANDOM)
def test_a_random_case_changes_the_base_as_much_as_the_golden_file_does(case: str) -> None:
    ours, models = merged(case, rescale_l1=True)
    theirs = golden(case)
    base = models[read_recipe(GOLDEN / f"{case}.yml").base]
    sizes = [
        sum(float((tensors[name] - base.get(name)).square().sum()) for name in theirs)
        for tensors in (ours, theirs)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.03)


def test_dare_with_rescale_l1_restores_each_tensors_l1_norm_as_mergekit_does() -> None:
    recipe = read_recipe(GOLDEN / "dare_linear_seed0.yml")
    recipe.models = recipe.models[:1]
    recipe.parameters = {"rescale_l1": True}
    recipe.models[0].parameters["weight"] = 1.0
    models = {label: Weights.open(GOLDEN / label, label) for label in recipe.labels()}
    plan = make_plan(recipe, models)
    for tensor in plan.tensors:
        base = models[recipe.base].get(tensor.target)
        delta = models[recipe.models[0].model].get(tensor.target) - base
        change = merge_tensor(plan, tensor, models, seed=0) - base
        assert float(change.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-4)
