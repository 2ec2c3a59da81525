"""Every merge method against its formula, written out in float64 entry by entry; no other files are
needed.

The truth is written as plainly as the formula reads, over small tensors whose shape, signs and
sizes make each term count: entries that agree and disagree, exact zeros, weights that are neither
equal nor sum to 1, and more columns than rows.
"""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent_forge.merge import load_method, method_names, sparsify
from agent_forge.merge.arrays import BY_NAME
from agent_forge.merge.methods import arcee_fusion
from agent_forge.merge.pieces import Stored, Whole

F64 = BY_NAME["float64"]
SHAPE = (4, 10)
WEIGHTS = (0.5, 0.9, -0.2)
Floats = np.ndarray[Any, np.dtype[np.float64]]


def arrays(count: int, shape: tuple[int, ...] = SHAPE) -> list[Floats]:
    """Return a base and `count` models near it, some entries untouched, the first two moved apart
    in half the places.
    """
    generator = np.random.default_rng(5)
    base = generator.standard_normal(shape)
    models = []
    for number in range(count):
        change = generator.standard_normal(shape) * (0.5 + number)
        change[generator.random(shape) < 0.2] = 0.0
        models.append(base + change)
    return [base, *models]


def run(
    name: str,
    models: list[Floats],
    base: Floats | None = None,
    each: Any = None,
    seed: int = 3,
    **shared: Any,
) -> Floats:
    """Return a method's merge of whole arrays; `each`: parameters of every model, or the same for
    all.
    """
    method = load_method(name)
    entries = each if isinstance(each, list) else [each or {}] * len(models)
    job = Whole(
        method=method, tensors=[_stored(m) for m in models],
        base=None if base is None else _stored(base),
        each=[_filled(method.METHOD.each, entry) for entry in entries],
        shared=_filled(method.METHOD.shared, shared), keys=[f"m{i}" for i in range(len(models))],
        name="w", seed=seed, wide=True,
    )  # fmt: skip
    out = np.empty(models[0].size)
    job.merge_into(out)
    return out.reshape(models[0].shape)


def _filled(known: Any, overrides: Any) -> dict[str, Any]:
    assert set(overrides) <= set(known), set(overrides) - set(known)
    return {
        name: parameter.check(name, overrides.get(name, parameter.default))
        for name, parameter in known.items()
    }


def _stored(values: Floats) -> Stored:
    return Stored.of(values.reshape(-1), values.shape, F64)


def close(merged: Floats, truth: Floats) -> None:
    # Narrow methods work in float32: 1e-6 of values near 1 is some ten of its steps.
    np.testing.assert_allclose(merged, truth, rtol=0, atol=2e-6)


def weighted(weights: tuple[float, ...] = WEIGHTS, **others: Any) -> list[dict[str, Any]]:
    return [{"weight": weight, **others} for weight in weights]


# -- means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_is_the_weighted_sum_over_the_sum_of_weights(normalize: bool) -> None:
    _, *models = arrays(3)
    truth = sum(w * x for w, x in zip(WEIGHTS, models, strict=True)) / (
        sum(WEIGHTS) if normalize else 1.0
    )
    close(run("linear", models, each=weighted(), normalize=normalize), truth)
    close(
        run("linear", models, each=weighted()),
        sum(w * x for w, x in zip(WEIGHTS, models, strict=True)) / sum(WEIGHTS),
    )


@pytest.mark.parametrize("name", ["passthrough", "dfs"])
def test_a_copy_is_scaled(name: str) -> None:
    model = arrays(1)[1]
    close(run(name, [model], each={"scale": -0.7}), -0.7 * model)
    close(run(name, [model]), model)


@pytest.mark.parametrize("normalize", [True, False])
def test_task_arithmetic_adds_lambda_times_the_weighted_task_vectors(normalize: bool) -> None:
    base, *models = arrays(3)
    change = sum(w * (x - base) for w, x in zip(WEIGHTS, models, strict=True)) / (
        sum(WEIGHTS) if normalize else 1.0
    )
    result = run(
        "task_arithmetic", models, base, weighted(), normalize=normalize, **{"lambda": 0.6}
    )
    close(result, base + 0.6 * change)
    close(run("task_arithmetic", models, base), base + sum(x - base for x in models))


def test_model_stock_goes_from_the_base_to_the_mean_by_the_angle() -> None:
    base, *models = arrays(3)

    def share(deltas: list[Floats]) -> float:
        pairs = [
            a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b)
            for a, b in combinations(deltas, 2)
        ]
        return 3 * np.mean(pairs) / (1 + 2 * np.mean(pairs))

    def truth(base: Floats, models: list[Floats]) -> Floats:
        t = share([x - base for x in models])
        return np.asarray(t * np.mean(models, axis=0) + (1 - t) * base)

    close(run("model_stock", models, base), truth(base, models))
    rows = [truth(base[i], [x[i] for x in models]) for i in range(len(base))]
    close(run("model_stock", models, base, filter_wise=True), np.stack(rows))


def test_nearswap_takes_over_what_lies_nearer_than_t() -> None:
    base, model = arrays(1)
    truth = np.empty(SHAPE)
    for place in np.ndindex(SHAPE):
        distance = abs(base[place] - model[place])
        w = 1.0 if distance <= 0.4 else 0.4 / distance
        truth[place] = w * model[place] + (1 - w) * base[place]
    close(run("nearswap", [model], base, t=0.4), truth)
    assert 0 < (np.abs(base - model) > 0.4).mean() < 1


# -- on the sphere ---------------------------------------------------------------------------------


def _slerp(a: Floats, b: Floats, t: float) -> Floats:
    angle = math.acos(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))
    return np.asarray((math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_goes_along_the_arc_from_the_base(t: float) -> None:
    base, model = arrays(1)
    close(run("slerp", [model], base, t=t), _slerp(base, model, t))


def test_slerp_of_one_direction_is_linear() -> None:
    base = arrays(0)[0]
    near = 3 * base + 1e-3 * np.ones(SHAPE)
    close(run("slerp", [near], base, t=0.25), 0.75 * base + 0.25 * near)
    close(run("slerp", [np.zeros(SHAPE)], base, t=0.25), 0.75 * base)
    # .9995 is the border: a little farther apart, the angle decides the arc's weights.
    for cosine, linear in ((0.9996, True), (0.9994, False)):
        a, b = np.array([[2.0, 0.0]]), 5 * np.array([[cosine, math.sqrt(1 - cosine**2)]])
        truth = 0.5 * a + 0.5 * b if linear else _slerp(a, b, 0.5)
        np.testing.assert_allclose(run("slerp", [b], a, t=0.5), truth, rtol=2e-7)
        assert np.abs(_slerp(a, b, 0.5) / (0.5 * a + 0.5 * b) - 1).min() > 1e-6 or linear


@pytest.mark.parametrize("with_base", [True, False])
def test_nuslerp_goes_by_the_share_of_the_second_weight(with_base: bool) -> None:
    base, one, two = arrays(2)
    each = weighted((0.6, 1.4))
    origin = base if with_base else np.zeros(SHAPE)
    a, b = one - origin, two - origin
    inputs = base if with_base else None
    close(run("nuslerp", [one, two], inputs, each), origin + _slerp(a, b, 0.7))
    rows = np.stack([_slerp(x, y, 0.7) for x, y in zip(a, b, strict=True)])
    close(run("nuslerp", [one, two], inputs, each, nuslerp_flatten=False), origin + rows)
    columns = np.stack([_slerp(x, y, 0.7) for x, y in zip(a.T, b.T, strict=True)]).T
    result = run("nuslerp", [one, two], inputs, each, nuslerp_flatten=False, nuslerp_row_wise=True)
    close(result, origin + columns)


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp_maps_the_tangent_mean_back_onto_the_sphere(
    with_base: bool, normalize: bool
) -> None:
    base, *models = arrays(3)
    origin = base if with_base else np.zeros(SHAPE)
    vectors = [(x - origin).ravel() for x in models]
    weights = np.array([0.5, 0.9, 0.2]) / (1.6 if normalize else 1.0)
    lengths = np.array([np.linalg.norm(v) for v in vectors])
    units = [v / n for v, n in zip(vectors, lengths, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean /= np.linalg.norm(mean)
    tangent = sum(w * (u - (u @ mean) * mean) for w, u in zip(weights, units, strict=True))
    angle = np.linalg.norm(tangent)
    point = mean * math.cos(angle) + tangent * math.sin(angle) / angle
    truth = origin + (point * (weights @ lengths)).reshape(SHAPE)
    each = weighted((0.5, 0.9, 0.2))
    close(
        run("multislerp", models, base if with_base else None, each, normalize_weights=normalize),
        truth,
    )


def test_karcher_takes_one_step_after_another_to_the_mean_of_logarithms() -> None:
    _, *models = arrays(3)
    vectors = [x.ravel() for x in models]
    lengths = [np.linalg.norm(v) for v in vectors]
    units = [v / n for v, n in zip(vectors, lengths, strict=True)]

    def step(mean: Floats) -> tuple[Floats, float]:
        logs = []
        for unit in units:
            angle = math.acos(unit @ mean)
            logs.append(angle / math.sin(angle) * (unit - (unit @ mean) * mean))
        tangent = np.mean(logs, axis=0)
        size = float(np.linalg.norm(tangent))
        return math.cos(size) * mean + math.sin(size) / size * tangent, size

    start = np.mean(units, axis=0)
    mean = start / np.linalg.norm(start)
    for steps in (1, 2, 3):
        mean, _ = step(mean)
        close(
            run("karcher", models, max_iter=steps, tol=0.0),
            (mean * np.mean(lengths)).reshape(SHAPE),
        )
    # At the end the logarithms cancel: the defining property of the mean.
    result = run("karcher", models, max_iter=200, tol=1e-12).ravel()
    assert np.linalg.norm(result) == pytest.approx(np.mean(lengths), rel=1e-6)
    assert step(result / np.linalg.norm(result))[1] < 1e-6


def test_karcher_stops_at_its_tolerance_and_leaves_zeros_out() -> None:
    _, one, two, _ = arrays(3)
    halfway = run("karcher", [one, two], max_iter=1000, tol=1e-12)
    a, b = one / np.linalg.norm(one), two / np.linalg.norm(two)
    middle = (a + b) / np.linalg.norm(a + b)
    close(halfway, middle * (np.linalg.norm(one) + np.linalg.norm(two)) / 2)
    with_zeros = run("karcher", [one, two, np.zeros(SHAPE)], max_iter=1000, tol=1e-12)
    close(with_zeros, middle * (np.linalg.norm(one) + np.linalg.norm(two)) / 3)
    _, *models = arrays(3)
    first = run("karcher", models, max_iter=1, tol=0.0)
    # no step at all
    assert np.abs(run("karcher", models, max_iter=5, tol=10.0) - first).max() > 1e-4


# -- elections -------------------------------------------------------------------------------------


def top(delta: Floats, count: int) -> Floats:
    """Return the `count` largest entries by magnitude, zeros elsewhere."""
    order = np.argsort(-np.abs(delta), axis=None, kind="stable")
    remaining = np.zeros(delta.size)
    remaining[order[:count]] = delta.ravel()[order[:count]]
    return remaining.reshape(delta.shape)


def elected(deltas: list[Floats], weights: tuple[float, ...], normalize: bool) -> Floats:
    """Return at each entry the weighted sum of those with the sign of the whole sum, over their
    weights.
    """
    truth = np.zeros(deltas[0].shape)
    for place in np.ndindex(truth.shape):
        parts = [(w * d[place], w) for w, d in zip(weights, deltas, strict=True)]
        sign = 1.0 if sum(part for part, _ in parts) >= 0 else -1.0
        agreeing = [(part, w) for part, w in parts if part * sign > 0]
        divisor = sum(w for _, w in agreeing) if normalize and agreeing else 1.0
        truth[place] = sum(part for part, _ in agreeing) / divisor
    return truth


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_ties_trims_elects_and_averages(normalize: bool, rescale: bool) -> None:
    base, *models = arrays(3)
    weights = (0.5, 0.9, 0.2)
    deltas = []
    for model in models:
        remaining = top(model - base, 13)  # .34 of 40 entries is 13.6
        factor = np.abs(model - base).sum() / np.abs(remaining).sum() if rescale else 1.0
        deltas.append(remaining * factor)
    result = run(
        "ties",
        models,
        base,
        weighted(weights, density=0.34),
        normalize=normalize,
        rescale=rescale,
        **{"lambda": 0.8},
    )
    close(result, base + 0.8 * elected(deltas, weights, normalize))


def test_ties_normalises_by_default_and_keeps_at_least_one_entry() -> None:
    base, *models = arrays(2)
    result = run("ties", models, base, weighted((2.0, 3.0), density=0.34))
    close(result, base + elected([top(x - base, 13) for x in models], (2.0, 3.0), True))
    result = run("ties", models[:1], base, {"density": 1e-6})
    close(result, base + top(models[0] - base, 1))


def test_an_even_vote_is_positive_and_negative_weights_turn_their_models_round() -> None:
    base = np.zeros((1, 2))
    plus, minus = np.array([[3.0, -3.0]]), np.array([[-3.0, 3.0]])
    close(run("ties", [plus, minus], base, normalize=False), np.array([[3.0, 3.0]]))
    base, *models = arrays(3)
    close(
        run("ties", models, base, weighted(), normalize=False),
        base + elected([x - base for x in models], WEIGHTS, False),
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_drops_the_largest_and_the_smallest(
    name: str, normalize: bool, rescale: bool
) -> None:
    base, *models = arrays(3)
    weights = (0.5, 0.9, 0.2)
    deltas = []
    for model in models:
        delta = model - base
        # density .36 keeps 14 of 40, gamma .14 drops the top 5
        remaining = top(delta, 14 + 5) - top(delta, 5)
        deltas.append(
            remaining * (np.abs(delta).sum() / np.abs(remaining).sum() if rescale else 1.0)
        )
    each = weighted(weights, density=0.36, gamma=0.14)
    result = run(name, models, base, each, normalize=normalize, rescale=rescale, **{"lambda": 0.8})
    if name == "breadcrumbs_ties":
        truth = elected(deltas, weights, normalize)
    else:
        truth = sum(w * d for w, d in zip(weights, deltas, strict=True)) / (
            sum(weights) if normalize else 1.0
        )
    close(result, base + 0.8 * truth)


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_never_drops_more_outliers_than_leave_room_for_its_density(name: str) -> None:
    base, model = arrays(1)
    delta = model - base
    # density .9 keeps 36 of 40: there is room for 4 outliers, not for the 8 of gamma .2.
    result = run(name, [model], base, {"density": 0.9, "gamma": 0.2})
    close(result, base + delta - top(delta, 4))
    close(run(name, [model], base, {"density": 1.0, "gamma": 0.2}), model)
    # By default nothing is rescaled or normalised, and a hundredth of 40 entries is none.
    close(run(name, [model], base, {"weight": 2.0, "density": 0.5}), base + 2 * top(delta, 20))


def test_sce_weighs_models_by_the_energy_of_what_varies_most() -> None:
    base, *models = arrays(3)
    deltas = [x - base for x in models]
    variance = np.var(deltas, axis=0)
    count = int(0.4 * np.count_nonzero(variance))
    chosen = top(variance, count) > 0
    for share, mask in ((0.4, chosen), (1.0, np.ones(SHAPE, bool))):
        remaining = [d * mask for d in deltas]
        energy = np.array([np.square(d).sum() for d in remaining])
        weights = energy / energy.sum()
        truth = np.zeros(SHAPE)
        for place in np.ndindex(SHAPE):
            sign = 1.0 if sum(d[place] for d in remaining) >= 0 else -1.0
            agreeing = [
                (w, d[place])
                for w, d in zip(weights, remaining, strict=True)
                if d[place] * sign > 0
            ]
            if agreeing:
                truth[place] = sum(w * d for w, d in agreeing) / sum(w for w, _ in agreeing)
        close(run("sce", models, base, select_topk=share), base + truth)
    # Only entries that vary count: half of two is one, however many stand still.
    one, two = np.zeros((1, 8)), np.zeros((1, 8))
    one[0, :2] = 4.0, 1.0
    close(run("sce", [one, two], np.zeros((1, 8)), select_topk=0.5), np.array([[4.0, *[0.0] * 7]]))
    even = [np.array([[3.0, 1.0]]), np.array([[-3.0, 1.0]])]
    close(run("sce", even, np.zeros((1, 2))), np.array([[3.0, 1.0]]))  # an even vote is positive


def _changes(
    base: Floats, models: list[Floats], epsilon: float
) -> tuple[list[Floats], list[Any], Any]:
    deltas = [x - base for x in models]
    changed = [np.abs(d) > epsilon for d in deltas]
    return deltas, changed, np.sum(changed, axis=0)


def test_ram_keeps_unique_changes_and_averages_shared_ones() -> None:
    base, *models = arrays(3)
    deltas, changed, count = _changes(base, models, 0.3)
    truth = np.zeros(SHAPE)
    for place in np.ndindex(SHAPE):
        own = [d[place] for d, c in zip(deltas, changed, strict=True) if c[place]]
        truth[place] = np.mean(own) if own else 0.0
    close(run("ram", models, base, epsilon=0.3), base + truth)
    assert set(np.unique(count)) == {0, 1, 2, 3}


def test_ramplus_enlarges_unique_changes_by_the_share_of_shared_ones() -> None:
    base, *models = arrays(3)
    deltas, changed, count = _changes(base, models, 0.9)
    for r, alpha in ((0.5, 10.0), (0.5, 0.7)):  # once below the limit, once at it
        truth = np.zeros(SHAPE)
        ratios = [(c & (count > 1)).sum() / (c & (count == 1)).sum() for c in changed]
        assert min(ratios) > 0
        for place in np.ndindex(SHAPE):
            own = [
                (d[place], ratio)
                for d, c, ratio in zip(deltas, changed, ratios, strict=True)
                if c[place]
            ]
            if len(own) == 1:
                truth[place] = own[0][0] * (1 + r * min(max(own[0][1], 0.0), alpha))
            elif own:
                truth[place] = np.mean([d for d, _ in own])
        close(run("ramplus_tl", models, base, epsilon=0.9, r=r, alpha=alpha), base + truth)
        assert (max(ratios) > alpha) == (alpha == 0.7)


def test_arcee_fusion_takes_over_what_is_important() -> None:
    base, model = arrays(1, (6, 16))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (model, base))
    importance = np.abs(model - base) * (p * np.log(p / q)).sum(-1, keepdims=True)
    ranked = sorted(importance.ravel())
    low, middle, high = (ranked[int(share * 95)] for share in (0.25, 0.5, 0.75))
    threshold = middle + 1.5 * (high - low)
    remaining = importance >= threshold
    assert 2 < remaining.sum() < 40
    assert np.abs(importance / threshold - 1).min() > 1e-4
    close(run("arcee_fusion", [model], base), np.where(remaining, model, base))


def test_the_softmax_of_arcee_fusion_is_that_of_vector_units_rounding_for_rounding() -> None:
    rows = np.random.default_rng(0).normal(0, 3, (200, 100)).astype(np.float32)
    softmax = arcee_fusion._softmax(rows)
    truth = np.exp(rows.astype(np.float64))
    truth /= truth.sum(-1, keepdims=True)
    assert (
        np.abs(softmax / truth - 1).max() < 16 * np.finfo(np.float32).eps
    )  # the difference from the largest is rounded too
    below = np.linspace(-110, 0, 10_001).astype(np.float32)
    wrong = np.abs(arcee_fusion._exp(below) - np.exp(below.astype(np.float64)))
    assert (wrong <= np.spacing(np.exp(below.astype(np.float64)).astype(np.float32))).all()
    # Three that are not the nearest float32: the last bit is this polynomial's, in this order.
    bits = arcee_fusion._exp(np.array([-9.995, -9.9925, -9.985], np.float32)).view(np.uint32)
    assert bits.tolist() == [943677480, 943708870, 943803532]
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert np.array_equal(softmax, torch.from_numpy(rows).softmax(-1).numpy())


@pytest.mark.parametrize("width", [1, 7, 8, 16, 31, 64, 100, 577, 1536, 4099])
def test_the_divergence_of_arcee_fusion_is_summed_in_the_order_of_torch(width: int) -> None:
    rows = np.random.default_rng(width).normal(0, 1, (40, width)).astype(np.float32)
    sums = arcee_fusion._cascade_sum(rows)
    assert np.abs(sums - rows.sum(-1, dtype=np.float64)).max() < 1e-5 * width**0.5
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert np.array_equal(sums, torch.from_numpy(rows).sum(-1).numpy())


def test_arcee_fusion_takes_the_lower_of_two_order_statistics() -> None:
    # One row, a model entry apart: importance is |X - B| times one number, so it orders the entries
    # as their distances do.
    base = np.zeros((1, 6))
    model = np.array([[0.0, 1.0, 2.0, 3.0, 3.9, 30.0]])
    # sorted: 0 1 2 3 3.9 30; the lower quartiles of six are number 1, 2 and 3: 2 + 1.5 (3 - 1) = 5
    # (interpolated: 6.29).
    close(run("arcee_fusion", [model], base), np.array([[0, 0, 0, 0, 0, 30.0]]))
    model = np.array([[0.0, 1.0, 2.0, 3.0, 5.5, 30.0]])
    close(run("arcee_fusion", [model], base), np.array([[0, 0, 0, 0, 5.5, 30.0]]))


def test_fisher_counts_each_entry_by_its_information() -> None:
    _, one, two = arrays(2)
    rates = [np.square(x) for x in arrays(2)[:2]]
    method = load_method("fisher")
    job = Whole(
        method=method, tensors=[_stored(one), _stored(two)],
        importance=[_stored(rate) for rate in rates], each=weighted((0.5, 2.0)),
        shared={"floor": 0.1}, keys=["a", "b"], wide=True,
    )  # fmt: skip
    out = np.empty(one.size)
    job.merge_into(out)
    shares = [0.5 * (rates[0] + 0.1), 2.0 * (rates[1] + 0.1)]
    close(out.reshape(SHAPE), (shares[0] * one + shares[1] * two) / sum(shares))


# -- at random -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescaling", ["density", "l1", "none"])
def test_dare_drops_by_the_draws_and_rescales(name: str, normalize: bool, rescaling: str) -> None:
    base, *models = arrays(3)
    weights = (0.5, 0.9, 0.2)
    deltas = []
    for number, model in enumerate(models):
        draws = sparsify.draws(3, ("dare", "w", f"m{number}"), 0, 40).reshape(SHAPE)
        remaining = (model - base) * (draws < 0.4)
        restoring = np.abs(model - base).sum() / np.abs(remaining).sum()
        deltas.append(remaining * {"density": 2.5, "l1": restoring, "none": 1.0}[rescaling])
    shared = {
        "normalize": normalize,
        "rescale": rescaling != "none",
        "rescale_l1": rescaling == "l1",
        "lambda": 0.8,
    }
    result = run(name, models, base, weighted(weights, density=0.4), **shared)
    if name == "dare_ties":
        truth = elected(deltas, weights, normalize)
    else:
        truth = sum(w * d for w, d in zip(weights, deltas, strict=True)) / (
            sum(weights) if normalize else 1.0
        )
    close(result, base + 0.8 * truth)
    if rescaling == "density" and not normalize:  # the defaults
        close(
            run(name, models, base, weighted(weights, density=0.4), **{"lambda": 0.8}),
            base + 0.8 * truth,
        )


@pytest.mark.parametrize("name", ["della_linear", "della"])
@pytest.mark.parametrize("rescaling", ["probability", "l1", "none"])
def test_della_keeps_by_rank_in_the_row_and_rescales(name: str, rescaling: str) -> None:
    base, *models = arrays(3)
    weights = (0.5, 0.9, 0.2)
    deltas = []
    for number, model in enumerate(models):
        delta = model - base
        draws = sparsify.draws(3, ("della", "w", f"m{number}"), 0, 40).reshape(SHAPE)
        rank = np.argsort(
            np.argsort(np.abs(delta).astype(np.float32), axis=1, kind="stable"), axis=1
        )
        probability = (0.5 - 0.3) + 2 * 0.3 * rank / 9
        remaining = delta * (draws < probability)
        restoring = np.abs(delta).sum() / np.abs(remaining).sum()
        deltas.append(
            remaining * {"probability": 1 / probability, "l1": restoring, "none": 1.0}[rescaling]
        )
    shared = {"rescale": rescaling != "none", "rescale_l1": rescaling == "l1", "lambda": 0.8}
    result = run(name, models, base, weighted(weights, density=0.5, epsilon=0.3), **shared)
    # By default della averages the agreeing, della_linear adds.
    summed = sum(w * d for w, d in zip(weights, deltas, strict=True))
    close(result, base + 0.8 * (elected(deltas, weights, True) if name == "della" else summed))


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_density_one_drops_nothing(name: str) -> None:
    base, model = arrays(1)
    close(run(name, [model], base), model)


def test_a_column_keeps_by_the_density_alone() -> None:
    assert (
        sparsify.keep_probabilities(np.ones((5, 1)), 0.3, 0.2).ravel().tolist()
        == [np.float32(0.3)] * 5
    )


def test_every_method_has_its_formula_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in method_names() if f'"{name}"' not in text] == []


# -- defaults beside mergekit's --------------------------------------------------------------------

DEFAULTS: dict[str, dict[str, Any]] = {
    "linear": {"normalize": True}, "task_arithmetic": {"normalize": False, "lambda": 1.0},
    "ties": {"normalize": True, "rescale": False, "density": 1.0, "lambda": 1.0},
    "dare_linear": {"normalize": False, "rescale": True},
    "dare_ties": {"normalize": False, "rescale": True},
    "della": {"normalize": True, "rescale": True, "epsilon": 0.15},
    "della_linear": {"normalize": False, "rescale": True, "epsilon": 0.15},
    "breadcrumbs": {"normalize": False, "rescale": False, "gamma": 0.01},
    "breadcrumbs_ties": {"normalize": False, "rescale": False, "gamma": 0.01},
    "nuslerp": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
    "multislerp": {"normalize_weights": True, "eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5}, "model_stock": {"filter_wise": False},
    "sce": {"select_topk": 1.0}, "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}, "passthrough": {"scale": 1.0},
    "slerp": {"t": None}, "nearswap": {"t": None}, "arcee_fusion": {},
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_recipe_that_leaves_parameters_out_means_what_it_means_elsewhere(name: str) -> None:
    method = load_method(name).METHOD
    known = {**method.each, **method.shared}
    assert {key: known[key].default for key in DEFAULTS[name]} == DEFAULTS[name]
