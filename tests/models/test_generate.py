"""Batched generation equals generation one by one."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import models
from agent_forge.core.errors import ConfigError
from agent_forge.models import generation
from agent_forge.models.sampling import Cuts


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def prompts(count: int, longest: int = 30) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(0, 50, (n,), generator=generator).tolist() for n in lengths]


def one_by_one(
    model: LlamaForCausalLM, prompt: list[int], steps: int, stops: set[int]
) -> list[int]:
    """Greedy without a cache: the definition."""
    row, tokens = list(prompt), []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            break
        row.append(token)
        tokens.append(token)
    return tokens


def test_greedy_batches_equal_uncached_greedy_one_by_one(model: LlamaForCausalLM) -> None:
    rows, stops = prompts(25), {3, 17, 40}
    expected = [one_by_one(model, row, 12, stops) for row in rows]
    assert len({len(row) for row in expected}) > 3
    assert (
        models.generate(model, rows, models.Decoding(max_new_tokens=12, stop_ids=stops)) == expected
    )
    assert (
        models.generate(
            model, rows, models.Decoding(max_new_tokens=12, stop_ids=stops, batch_rows=3)
        )
        == expected
    )


def test_a_shared_beginning_is_read_once_and_changes_nothing(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = [7 + i % 31 for i in range(40)]
    rows = [[*beginning, *row] for row in prompts(9, 6)] + [beginning]
    sizes: list[tuple[int, ...]] = []
    forward = model.forward

    def noting(input_ids: torch.Tensor, **settings: object) -> object:
        sizes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **settings)

    expected = [one_by_one(model, row, 6, {3}) for row in rows]
    monkeypatch.setattr(model, "forward", noting)
    assert models.generate(model, rows, models.Decoding(max_new_tokens=6, stop_ids={3})) == expected
    assert sizes[:2] == [(1, 39), (10, 1)]


def test_samples_depend_on_the_seed_and_not_on_batching_or_order(model: LlamaForCausalLM) -> None:
    rows = prompts(12)
    settings = {"max_new_tokens": 8, "stop_ids": [3], "temperature": 1.0, "top_p": 0.9}
    first = models.generate(model, rows, models.Decoding(seed=5, **settings))
    assert first == models.generate(model, rows, models.Decoding(seed=5, batch_rows=1, **settings))
    assert first != models.generate(model, rows, models.Decoding(seed=6, **settings))


def test_sample_frequencies_follow_temperature_and_top_p(model: LlamaForCausalLM) -> None:
    prompt = [4, 8, 15]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    probabilities = torch.softmax(logits / 0.7, -1)
    ordered, order = probabilities.sort(descending=True)
    nucleus = int((ordered.cumsum(0) - ordered < 0.8).sum())
    expected = torch.zeros(50)
    expected[order[:nucleus]] = ordered[:nucleus] / ordered[:nucleus].sum()
    draws = models.generate(
        model,
        [prompt] * 4000,
        models.Decoding(max_new_tokens=1, temperature=0.7, top_p=0.8, seed=1, batch_rows=4000),
    )
    frequencies = torch.bincount(torch.tensor([draw[0] for draw in draws]), minlength=50) / 4000
    assert nucleus < 50
    assert frequencies[expected == 0].sum() == 0
    assert float((frequencies - expected).abs().max()) < 4 * (0.25 / 4000) ** 0.5


def test_a_tiny_top_p_is_greedy(model: LlamaForCausalLM) -> None:
    rows = prompts(6)
    greedy = models.generate(model, rows, models.Decoding(max_new_tokens=6, stop_ids=[3]))
    assert (
        models.generate(
            model,
            rows,
            models.Decoding(max_new_tokens=6, stop_ids=[3], temperature=1.0, top_p=1e-9),
        )
        == greedy
    )


def test_a_model_that_thinks_generates_through_its_own_generate(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, stops = prompts(10, longest=4), [3, 17]
    expected = models.generate(model, rows, models.Decoding(max_new_tokens=7, stop_ids=stops))
    calls = []
    own = LlamaForCausalLM.generate

    def counted(self: LlamaForCausalLM, **inputs: torch.Tensor) -> torch.Tensor:
        calls.append(inputs["input_ids"].shape)
        return own(self, **inputs)

    monkeypatch.setattr(LlamaForCausalLM, "thinks", True, raising=False)
    monkeypatch.setattr(LlamaForCausalLM, "generate", counted)
    assert (
        models.generate(model, rows, models.Decoding(max_new_tokens=7, stop_ids=stops)) == expected
    )
    assert sorted(shape[1] for shape in calls) == sorted({len(row) for row in rows})


def test_a_model_that_thinks_samples_by_the_settings_in_transformers_terms() -> None:
    """There, None stands for no limit, and top_k would be 50 if it were left out."""
    neutral = {"top_k": 0, "min_p": None, "typical_p": None}
    for cuts, changes in (
        (Cuts(), {}),
        (Cuts(typical_p=0.9), {"typical_p": 0.9}),
        (Cuts(top_k=7, min_p=0.2), {"top_k": 7, "min_p": 0.2}),
    ):
        decoding = models.Decoding(max_new_tokens=3, temperature=0.7, top_p=0.8, cuts=cuts)
        assert generation._sampling(decoding) == {
            "do_sample": True, "temperature": 0.7, "top_p": 0.8, **neutral, **changes,
        }  # fmt: skip
    assert generation._sampling(models.Decoding(max_new_tokens=3)) == {"do_sample": False}


def test_edges_and_refusals(model: LlamaForCausalLM) -> None:
    assert models.generate(model, [], models.Decoding(max_new_tokens=3)) == []
    assert models.generate(model, [[1]], models.Decoding(max_new_tokens=0)) == [[]]
    everything = list(range(50))
    assert models.generate(
        model, [[1], [2, 3]], models.Decoding(max_new_tokens=5, stop_ids=everything)
    ) == [[], []]
    with pytest.raises(ConfigError, match="prompt 1 of 2 is empty"):
        models.generate(model, [[1], []], models.Decoding(max_new_tokens=3))
    with pytest.raises(ConfigError, match="temperature"):
        models.generate(model, [[1]], models.Decoding(max_new_tokens=3, temperature=-1.0))


def test_the_training_mode_is_put_back(model: LlamaForCausalLM) -> None:
    model.train()
    models.generate(model, [[1]], models.Decoding(max_new_tokens=1))
    assert model.training
    model.eval()


class Allowing:
    """A mask that allows some tokens, and notes what was taken."""

    def __init__(self, *tokens: int) -> None:
        self.tokens, self.taken = list(tokens), list[int]()

    def allowed(self, vocabulary: int) -> np.ndarray:
        allowed = np.zeros(vocabulary, np.bool_)
        allowed[self.tokens] = True
        return allowed

    def take(self, token: int) -> None:
        self.taken.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_decides_which_tokens_its_row_may_take(
    model: LlamaForCausalLM, temperature: float
) -> None:
    rows = [[4, 8], [15, 16, 23]]
    masks = [Allowing(5, 6), None]
    decoding = models.Decoding(max_new_tokens=6, stop_ids=set(), temperature=temperature)
    free = models.generate(model, rows, decoding)
    masked = models.generate(model, rows, decoding, masks)
    assert set(masked[0]) <= {5, 6}
    assert len(masked[0]) == 6
    assert masks[0] is not None
    assert masks[0].taken == masked[0]
    assert masked[1] == free[1]


def test_a_step_asks_for_the_logits_of_one_position(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions: list[object] = []
    forward = model.forward

    def noting(**settings: object) -> object:
        positions.append(settings.get("logits_to_keep"))
        return forward(**settings)

    monkeypatch.setattr(model, "forward", noting)
    models.generate(model, [[4, 8, 15], [16]], models.Decoding(max_new_tokens=3, stop_ids=set()))
    assert len(positions) >= 3
    assert set(positions) == {1}
