"""Pieces, cuts and masks: the same numbers for any number of threads, any order of models, and in
memory as from files.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent_forge.merge import Method, load_method, method_names, pieces, sparsify
from agent_forge.merge.arrays import BY_NAME, all_finite, decode, encode
from agent_forge.merge.pieces import Stored, Whole

F32 = BY_NAME["float32"]
SHAPE = (300, 700)  # four pieces and a rest


def tensor(seed: int, shape: tuple[int, ...] = SHAPE, steps: int = 0) -> Stored:
    """Return a random tensor; `steps` rounds it to multiples of 1/steps, so that many magnitudes
    are equal.
    """
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    values = np.round(values * steps) / np.float32(steps) if steps else values
    return Stored.of(values.astype(np.float32).reshape(-1), shape, F32)


def squared(seed: int) -> Stored:
    return Stored.of(np.square(tensor(seed).read(0, 300 * 700)), SHAPE, F32)


def whole(
    name: str, count: int, order: list[int] | None = None, pool: Any = None, **changes: Any
) -> Whole:
    """Return a merge of `count` random models by method `name`, listed in `order`."""
    method = load_method(name)
    wants = {"weight": 0.5, "density": 0.4, "epsilon": 0.2, "t": 0.3, "scale": 0.5, "epsilon_": 0}
    each = {k: wants.get(k, p.default) for k, p in method.METHOD.each.items()}
    shared = {k: wants.get(k, p.default) for k, p in method.METHOD.shared.items()} | changes
    order = list(range(count)) if order is None else order
    return Whole(
        method=method, tensors=[tensor(1 + i) for i in order],
        base=tensor(0) if method.METHOD.base != "unused" else None,
        each=[{**each, **({"weight": 0.5 + 0.1 * i} if "weight" in each else {})} for i in order],
        shared=shared,
        importance=[squared(10 + i) for i in order] if method.METHOD.importance else [],
        keys=[f"m{i}" for i in order], name="layer.weight", seed=7, pool=pool,
    )  # fmt: skip


def merged(job: Whole) -> np.ndarray:
    out = np.empty(job.entries, np.float32)
    job.merge_into(out)
    return out


def models_of(name: str) -> int:
    fewest, most = load_method(name).METHOD.models
    return min(max(fewest, 3), most or 3)


@pytest.mark.parametrize("name", method_names())
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    alone = merged(whole(name, models_of(name)))
    with ThreadPoolExecutor(3) as pool:
        np.testing.assert_array_equal(merged(whole(name, models_of(name), pool=pool)), alone)


@pytest.mark.parametrize("name", [n for n in method_names() if models_of(n) == 3])
def test_the_order_of_the_models_changes_nothing_but_the_order_of_sums(name: str) -> None:
    np.testing.assert_allclose(
        merged(whole(name, 3, [2, 0, 1])), merged(whole(name, 3)), rtol=0, atol=2e-6, err_msg=name
    )


@pytest.mark.parametrize(
    "name", [n for n in method_names() if n not in ("nuslerp",) and not load_method(n).METHOD.rows]
)
def test_the_size_of_the_pieces_changes_nothing_but_the_order_of_sums(
    name: str, monkeypatch
) -> None:
    usual = merged(whole(name, models_of(name)))
    monkeypatch.setattr(pieces, "PIECE_ENTRIES", 12_345)
    np.testing.assert_allclose(merged(whole(name, models_of(name))), usual, rtol=0, atol=1e-6)


def test_masks_depend_on_seed_tensor_model_and_place_only() -> None:
    names = ("dare", "layer.weight", "m1")
    every = sparsify.draws(3, names, 0, 1000)
    for start, count in ((0, 1), (1, 7), (8, 8), (13, 500), (999, 1)):
        np.testing.assert_array_equal(
            sparsify.draws(3, names, start, count), every[start : start + count]
        )
    for other in (
        sparsify.draws(4, names, 0, 1000),
        sparsify.draws(3, ("dare", "layer.bias", "m1"), 0, 1000),
        sparsify.draws(3, ("dare", "layer.weight", "m2"), 0, 1000),
    ):
        assert abs(np.corrcoef(every, other)[0, 1]) < 0.12  # 3.8 sigma


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_a_random_method_repeats_with_its_seed_and_changes_with_another(name: str) -> None:
    first = merged(whole(name, 3))
    np.testing.assert_array_equal(merged(whole(name, 3)), first)
    other = whole(name, 3)
    other.seed = 8
    assert np.mean(merged(other) != first) > 0.5


def test_dare_keeps_its_share_without_bias_and_with_the_known_variance() -> None:
    job = whole("dare_linear", 1)
    job.each[0]["weight"] = 1.0
    base, model = (s.read(0, job.entries).astype(np.float64) for s in (job.base, job.tensors[0]))
    delta = model - base
    change = merged(job) - base
    density, n = 0.4, job.entries
    remaining = np.abs(change) > 1e-9
    assert abs(remaining.mean() - density) < 4 * np.sqrt(density * (1 - density) / n)
    np.testing.assert_allclose(change[remaining], delta[remaining] / density, atol=2e-6)
    # Mean of change - delta is 0, its variance delta^2 (1 - p) / p.
    variance = np.square(delta) * (1 - density) / density
    assert abs((change - delta).mean()) < 4 * np.sqrt(variance.mean() / n)
    assert np.square(change - delta).mean() == pytest.approx(variance.mean(), rel=0.05)


def test_della_keeps_larger_entries_more_often_by_rank_within_the_row() -> None:
    job = whole("della_linear", 1, rescale=False)
    job.each[0]["weight"] = 1.0
    base, model = (s.read(0, job.entries).reshape(SHAPE) for s in (job.base, job.tensors[0]))
    remaining = merged(job).reshape(SHAPE) != base
    ranks = np.abs(model - base).argsort(-1).argsort(-1)
    for low in range(0, SHAPE[1], 100):
        chosen = (ranks >= low) & (ranks < low + 100)
        expected = 0.4 - 0.2 + 2 * 0.2 * (low + 49.5) / (SHAPE[1] - 1)
        assert abs(remaining[chosen].mean() - expected) < 4 * np.sqrt(
            expected * (1 - expected) / chosen.sum()
        )


@pytest.mark.parametrize(("width", "exact"), [(7, False), (700, False), (9000, True)])
def test_keep_probabilities_are_linear_in_the_rank(width: int, exact: bool) -> None:
    delta = np.random.default_rng(width).standard_normal((5, width)).astype(np.float32)
    result = sparsify.keep_probabilities(delta, 0.5, 0.25)
    truth = 0.25 + 0.5 * np.abs(delta).argsort(-1, kind="stable").argsort(-1) / (width - 1)
    # Packed keys compare the leading bits; neighbours that agree in them may change places.
    np.testing.assert_allclose(result, truth, rtol=0, atol=1e-6 if exact else 2.5 / width)
    np.testing.assert_allclose(np.sort(result), np.sort(truth.astype(np.float32)), atol=1e-6)


@pytest.mark.parametrize("density", [1e-9, 0.001, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("steps", [0, 4])
def test_a_cut_keeps_exactly_the_largest_and_the_first_among_equals(
    density: float, steps: int
) -> None:
    job = whole("ties", 1)
    job.tensors, job.base = (
        [tensor(5, steps=steps)],
        Stored.of(np.zeros(job.entries, np.float32), SHAPE, F32),
    )
    (cut,) = sparsify.top_cuts(job, [density])
    values = np.abs(job.tensors[0].read(0, job.entries))
    count = sparsify.kept_count(density, job.entries)
    truth = np.zeros(job.entries, bool)
    truth[np.argsort(-values, kind="stable")[:count]] = True
    result = np.concatenate([cut.mask(values[a:b], a) for a, b in job.borders()])
    np.testing.assert_array_equal(result, truth)


def test_a_cut_outside_its_bracket_is_found_all_the_same() -> None:
    # The sample looks at the first entries of each piece only: here they are nothing like the rest.
    job = whole("ties", 1)
    values = np.random.default_rng(0).standard_normal(job.entries).astype(np.float32)
    for start, stop in job.borders():
        values[start : min(stop, start + sparsify.SAMPLE_ENTRIES)] *= 1e-6
    job.tensors, job.base = (
        [Stored.of(values, SHAPE, F32)],
        Stored.of(np.zeros_like(values), SHAPE, F32),
    )
    (cut,) = sparsify.top_cuts(job, [0.01])
    remaining = np.concatenate([cut.mask(np.abs(values[a:b]), a) for a, b in job.borders()])
    assert remaining.sum() == sparsify.kept_count(0.01, job.entries)
    assert np.abs(values[remaining]).min() >= np.abs(values[~remaining]).max()


def test_a_method_that_is_not_by_rows_sees_flat_pieces_and_one_by_rows_whole_rows() -> None:
    seen: list[tuple[int, ...]] = []

    def merge(inputs: Any) -> Any:
        seen.append(inputs.tensors[0].shape)
        return inputs.tensors[0]

    for rows in (False, True):
        method: Any = SimpleNamespace(
            METHOD=Method(summary="", base="unused", rows=rows), merge=merge
        )
        seen.clear()
        merged(Whole(method=method, tensors=[tensor(0, (260, 10, 100))], each=[{}]))
        assert seen[0] == (
            (pieces.PIECE_ENTRIES // 1000, 10, 100) if rows else (pieces.PIECE_ENTRIES,)
        )


def test_bfloat16_is_rounded_half_to_even_and_overflow_is_seen() -> None:
    bf16 = BY_NAME["bfloat16"]
    # 1 + 2^-8 is half way between 1 and 1 + 2^-7; 1 + 3 * 2^-8 between 1 + 2^-7 and 1 + 2^-6.
    values = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, -0.0, 3.4e38])
    stored = encode(values, bf16)
    np.testing.assert_array_equal(
        decode(stored, bf16, np.float64)[:4], [1.0, 1 + 2.0**-6, 1 + 2.0**-7, -0.0]
    )
    assert not all_finite(stored, bf16)
    assert all_finite(stored[:4], bf16)
    assert not all_finite(encode(np.array([1e6]), BY_NAME["float16"]), BY_NAME["float16"])
    assert not all_finite(np.array([1.0, np.nan], np.float32), F32)


def test_the_method_in_the_contributing_guide_works_as_it_stands() -> None:
    text = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()
    diff = text.split("+++ agent_forge/merge/methods/midrange.py\n")[1].split("+++ ")[0]
    method = ModuleType("midrange")
    exec("\n".join(line.removeprefix("+") for line in diff.splitlines()), method.__dict__)
    tensors = [tensor(i) for i in range(3)]
    job = Whole(method=method, tensors=tensors, each=[{}] * 3, shared={"pull": 0.25})
    values = np.stack([t.read(0, job.entries) for t in tensors]).astype(np.float64)
    truth = 0.75 * (values.min(0) + values.max(0)) / 2 + 0.25 * values.mean(0)
    np.testing.assert_allclose(merged(job), truth, rtol=0, atol=1e-6)


def test_a_fisher_merge_weighs_by_information_and_is_the_plain_mean_where_there_is_none() -> None:
    job = whole("fisher", 2)
    values = np.stack([t.read(0, job.entries) for t in job.tensors]).astype(np.float64)
    rates = np.stack([t.read(0, job.entries) for t in job.importance]).astype(np.float64)
    weights = np.array([[0.5], [0.6]])
    truth = (weights * rates * values).sum(0) / (weights * rates).sum(0)
    np.testing.assert_allclose(merged(job), truth, rtol=0, atol=1e-6)
    job.importance = [Stored.of(np.zeros(job.entries, np.float32), SHAPE, F32)] * 2
    np.testing.assert_allclose(
        merged(job), (weights * values).sum(0) / weights.sum(), rtol=0, atol=1e-6
    )
