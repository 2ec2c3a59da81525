"""The thinking model against a plain sequential computation, closed forms and exact enumeration."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.models.thought import (
    MixingHead,
    ThoughtForCausalLM,
    Thoughts,
    entropy_nats,
    layout,
    mix,
)
from agent_forge.models.thought.chains import Chains
from agent_forge.phases.quietstar.objective import leave_one_out, policy_loss

VOCAB = 50


def tiny_base(
    attention: str = "sdpa",
    heads: int = 4,
    key_heads: int = 2,
    tied: bool = False,
    vocab: int = VOCAB,
    layers: int = 2,
) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=128,
        initializer_range=0.3, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=None,
        pad_token_id=0, attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def thinker(
    base: LlamaForCausalLM | None = None, weight: float | None = None, **settings: object
) -> ThoughtForCausalLM:
    """Return a thinking model; `weight` fixes the mixing weight."""
    settings = {"thought_length": 3, "gate_entropy_nats": 0.0, **settings}
    base = base or tiny_base()
    ends = [4, 5] if base.config.vocab_size > 5 else [1, 2]
    model = ThoughtForCausalLM.wrap(base, start_ids=[ends[0] - 1], end_ids=ends, **settings).eval()
    if weight is not None:
        with torch.no_grad():
            model.mixing.bias_3.fill_(weight)
    return model


def random_head(model: ThoughtForCausalLM) -> ThoughtForCausalLM:
    """Give the mixing head weights that spread over (0, 1)."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.mixing.weight_3.copy_(
            torch.randn(model.mixing.weight_3.shape, generator=generator) * 0.05
        )
        model.mixing.bias_3.fill_(0.5)
    return model


@torch.no_grad()
def alone(
    model: ThoughtForCausalLM,
    ids: list[int],
    row: int,
    which: int,
    seed: int,
    heat: float,
    after: list[int],
) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """Think once after `ids`, alone, with no cache, mask or padding.

    Returns the thought's tokens and the base, thought and mixed logits (1 + len(after), V) of what
    follows.
    """
    embed = model.base.get_input_embeddings()

    def run(embeds: Tensor) -> tuple[Tensor, Tensor]:
        out = model.base(inputs_embeds=embeds[None], output_hidden_states=True, use_cache=False)
        return out.logits[0], out.hidden_states[-1][0]

    prefix = embed(torch.tensor(ids))
    embeds = torch.cat([prefix, model.start[None]])
    tokens: list[int] = []
    for step in range(model.config.thought_length):
        logits = run(embeds)[0][-1]
        index = [torch.tensor(value) for value in (row, len(ids) - 1, which)]
        token = layout.draw(logits, layout.uniforms(seed, index[0], index[1], step, index[2]), heat)
        tokens.append(int(token))
        embeds = torch.cat([embeds, embed(token)[None]])
    embeds = torch.cat([embeds, model.end[None], embed(torch.tensor(after, dtype=torch.long))])
    count = 1 + len(after)
    base_logits, base_hidden = (part[-count:] for part in run(embed(torch.tensor(ids + after))))
    logits, hidden = (part[-count:] for part in run(embeds))
    return tokens, base_logits, logits, mix(base_logits, logits, model.mixing(base_hidden, hidden))


PADDINGS = {"none": (0, 0), "left": (3, 0), "right": (0, 2)}


@pytest.mark.parametrize("heat", [0.0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_thoughts_in_parallel_equal_thoughts_one_by_one(
    heat: float, padding: str, attention: str
) -> None:
    model = random_head(thinker(tiny_base(attention)))
    left, right = PADDINGS[padding]
    rows = [[7, 8, 9, 10, 11, 12], [20, 21, 22, 23, 24, 25]]
    ids = torch.tensor([[0] * left + row + [0] * right for row in rows])
    mask = torch.tensor([[0] * left + [1] * 6 + [0] * right] * 2)
    with torch.no_grad():
        actual = model.think(ids, mask, thoughts=2, lookahead=2, temperature=heat, seed=9)
    mixed = actual.mixed_logits()
    for row, place, which in itertools.product(range(2), range(5), range(2)):
        column = left + place
        tokens, base, logits, expected = alone(
            model, rows[row][: place + 1], row, which, 9, heat, rows[row][place + 1 : place + 2]
        )
        assert actual.tokens[row, column, which].tolist() == tokens
        torch.testing.assert_close(actual.base_logits[row, column], base, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            actual.thought_logits[row, column, which], logits, rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(mixed[row, column, which], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 1)], ids=["multi_head", "one_key_head"])
def test_parallel_equals_sequential_for_every_head_layout(heads: tuple[int, int]) -> None:
    model = random_head(thinker(tiny_base(heads=heads[0], key_heads=heads[1], tied=True)))
    row = [7, 8, 9, 10]
    with torch.no_grad():
        actual = model.think(torch.tensor([row]), seed=2)
    for place in range(4):
        tokens, _, _, expected = alone(model, row[: place + 1], 0, 0, 2, 1.0, [])
        assert actual.tokens[0, place, 0].tolist() == tokens
        torch.testing.assert_close(
            actual.mixed_logits()[0, place, 0], expected, rtol=1e-5, atol=1e-5
        )


def test_some_positions_think_as_they_do_among_all() -> None:
    model = random_head(thinker())
    ids = torch.arange(12).reshape(2, 6) + 5
    chosen = torch.tensor([[1, 4], [0, 3]])
    with torch.no_grad():
        every, some = model.think(ids, seed=4), model.think(ids, positions=chosen, seed=4)
    for row, k in itertools.product(range(2), range(2)):
        assert torch.equal(some.tokens[row, k], every.tokens[row, chosen[row, k]])
        torch.testing.assert_close(
            some.mixed_logits()[row, k],
            every.mixed_logits()[row, chosen[row, k]],
            rtol=1e-5,
            atol=1e-5,
        )


def test_log_probs_are_those_of_the_sampled_tokens() -> None:
    model = thinker()
    row = [7, 8, 9]
    with torch.no_grad():
        actual = model.think(torch.tensor([row]), temperature=0.7, seed=1)
        embed = model.base.get_input_embeddings()
        tokens = actual.tokens[0, 2, 0]
        embeds = torch.cat([embed(torch.tensor(row)), model.start[None], embed(tokens[:-1])])
        logits = model.base(inputs_embeds=embeds[None]).logits[0, 3:]
    expected = torch.log_softmax(logits / 0.7, -1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(actual.log_probs[0, 2, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_changed_token_changes_no_thought_before_it() -> None:
    model = random_head(thinker())
    ids = torch.arange(8)[None] + 5
    for changed in range(8):
        other = ids.clone()
        other[0, changed] = 40
        with torch.no_grad():
            first, second = model.think(ids, seed=3), model.think(other, seed=3)
        before, after = slice(0, changed), slice(changed, 8)
        assert torch.equal(first.tokens[:, before], second.tokens[:, before])
        torch.testing.assert_close(
            first.mixed_logits()[:, before], second.mixed_logits()[:, before], rtol=1e-6, atol=1e-6
        )
        assert (
            (first.mixed_logits() - second.mixed_logits())[:, after].abs().amax((0, 2, 3, 4)) > 1e-3
        ).all()


def test_a_changed_thought_changes_no_other_thought() -> None:
    model = random_head(thinker())
    ids = torch.arange(5)[None] + 5
    with torch.no_grad():
        first = model.think(ids, thoughts=2, seed=3)
        tokens = first.tokens.clone()
        tokens[0, 2, 1, 1] = (tokens[0, 2, 1, 1] + 1) % VOCAB
        second = model.think(ids, thoughts=2, tokens=tokens)
    difference = (first.thought_logits - second.thought_logits).abs().amax((3, 4))[0]
    assert difference[2, 1] > 1e-3
    difference[2, 1] = 0
    assert difference.max() < 1e-5


def test_weight_zero_is_the_base_and_weight_one_the_thought_bit_for_bit() -> None:
    ids = torch.arange(6)[None] + 5
    with torch.no_grad():
        start, full = thinker().think(ids, thoughts=2), thinker(weight=1.0).think(ids, thoughts=2)
    assert not start.weights.any()
    assert (full.weights == 1).all()
    assert torch.equal(
        start.mixed_logits(), start.base_logits[:, :, None].expand_as(start.thought_logits)
    )
    assert torch.equal(full.mixed_logits(), full.thought_logits)


@pytest.mark.parametrize("thoughts", [1, 3])
def test_a_fresh_thinker_generates_exactly_what_its_base_does(thoughts: int) -> None:
    base = tiny_base()
    ids = torch.arange(10).reshape(2, 5) + 5
    settings = {
        "max_new_tokens": 8,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    expected = base.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    actual = thinker(base, thoughts=thoughts).generate(
        ids, attention_mask=torch.ones_like(ids), **settings
    )
    assert torch.equal(actual.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(actual.logits, expected.logits, strict=True))


def test_forward_is_the_base_bit_for_bit() -> None:
    base = tiny_base()
    model = thinker(base, weight=1.0)
    ids = torch.arange(10).reshape(2, 5)
    assert torch.equal(model(ids, labels=ids).logits, base(ids).logits)
    assert torch.equal(model(ids, labels=ids).loss, base(ids, labels=ids).loss)
    assert torch.equal(model.training_loss(ids, ids)[0], base(ids, labels=ids).loss)


@pytest.mark.parametrize("thoughts", [1, 2])
@pytest.mark.parametrize("left", [0, 2])
def test_generation_mixes_the_same_thoughts_that_parallel_thinking_does(
    left: int, thoughts: int
) -> None:
    model = random_head(thinker(thoughts=thoughts))
    prompt = torch.tensor([[0] * left + [7, 8, 9], [20, 21, 22][:1] * left + [20, 21, 22]])
    mask = torch.ones_like(prompt)
    mask[0, :left] = 0
    out = model.generate(
        prompt,
        attention_mask=mask,
        max_new_tokens=5,
        do_sample=False,
        thought_seed=6,
        output_logits=True,
        return_dict_in_generate=True,
    )
    whole = torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], dim=1)
    with torch.no_grad():
        actual = model.think(out.sequences, whole, seed=6)
    for step, logits in enumerate(out.logits):
        expected = actual.mixed_logits()[:, prompt.shape[1] - 1 + step, :, 0].mean(1)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_gate_decides_row_by_row_from_the_base_entropy() -> None:
    base = tiny_base()
    ids = torch.arange(12).reshape(4, 3) + 5
    with torch.no_grad():
        entropy = entropy_nats(base(ids).logits[:, -1])
    border = float(entropy.sort().values[1:3].mean())
    settings = {
        "max_new_tokens": 1,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    settings["attention_mask"] = torch.ones_like(ids)
    plain = base.generate(ids, **settings).logits[0]
    gated = thinker(base, weight=1.0, gate_entropy_nats=border).generate(ids, **settings).logits[0]
    changed = ~torch.isclose(plain, gated, rtol=0, atol=1e-4).all(-1)
    assert changed.tolist() == (entropy >= border).tolist()
    closed = thinker(base, weight=1.0, gate_entropy_nats=None)
    assert not closed.thinks
    assert torch.equal(closed.generate(ids, **settings).logits[0], plain)


@pytest.mark.parametrize(("budget", "thought_at"), [(None, 6), (2, 2), (0, 0)])
def test_forward_passes_per_token_are_the_formula_within_the_budget(
    budget: int | None, thought_at: int
) -> None:
    """One per token, and for each position that is thought at one for the start and each token of
    the thought; the end comes with the last of them.
    """
    model = thinker(weight=1.0)
    passes: list[int] = []
    model.base.register_forward_hook(lambda *_: passes.append(1))
    ids = torch.arange(8).reshape(2, 4) + 5
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False}
    model._require_masks()
    passes.clear()
    out = model.generate(ids, max_new_tokens=6, thought_budget=budget, **settings)
    assert len(passes) == 6 + thought_at * (model.config.thought_length + 1)
    model.config.thought_budget = budget
    assert torch.equal(model.generate(ids, max_new_tokens=6, **settings), out)
    if budget == 0:
        assert torch.equal(model.base.generate(ids, max_new_tokens=6, **settings), out)


@pytest.mark.parametrize(("thoughts", "length", "ahead"), [(1, 1, 1), (2, 3, 1), (4, 2, 3)])
def test_the_memory_of_thinking_is_the_formula(
    thoughts: int, length: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """METHODS 3: keys and values of 2 l d_kv B (T + N T S) numbers, because chains share the
    prefix; and as many activations per column as a plain decoder has per token.

    Sampling holds the start and all tokens but the last, S = L; the forward with gradient S = L + 1
    + A.
    """
    batch, width = 2, 7
    ids = torch.arange(batch * width).reshape(batch, width) + 6
    caches = []
    feed = Chains.feed

    def fed(self: Chains, *columns: Tensor, hidden: bool = False) -> Any:
        caches.append(self.cache)
        return feed(self, *columns, hidden=hidden)

    monkeypatch.setattr(Chains, "feed", fed)
    saved = {}
    for layers in (2, 3):
        model = thinker(tiny_base(layers=layers), thought_length=length)
        model._require_masks()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        blocks: dict[int, int] = {}
        alive = []

        def pack(
            tensor: Tensor,
            weights: set[int] = weights,
            blocks: dict[int, int] = blocks,
            alive: list[Tensor] = alive,
        ) -> Tensor:
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in weights:
                blocks[memory.data_ptr()] = memory.nbytes()
                alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.think(ids, thoughts=thoughts, lookahead=ahead)
        saved[layers] = sum(blocks.values())
        keys = sum(part.keys.numel() + part.values.numel() for part in caches[-1].layers)
        assert keys == 2 * layers * 16 * batch * (width + thoughts * width * length)
    columns = batch * (width + thoughts * width * (length + 1 + ahead))
    # Two norms with their inputs (4 x 32 and two numbers), queries, keys and values repeated for
    # all heads, and their output (4 x 32), a sum for each of 4 heads, two inputs of products
    # (2 x 32), and the SwiGLU (4 x 48).
    per_column = 4 * 32 + 2 + 4 * 32 + 4 + 2 * 32 + 4 * 48
    assert saved[3] - saved[2] == 4 * columns * per_column


def test_thoughts_of_the_first_row_are_kept_where_that_is_asked_for() -> None:
    model = thinker(weight=1.0)
    ids = torch.arange(4)[None] + 5
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 3}
    model.generate(ids, **settings)
    assert model.kept_thoughts() == []
    model.keeps_thoughts = True
    out = model.generate(ids, thought_seed=6, **settings)
    shown = model.kept_thoughts()
    with torch.no_grad():
        thoughts = model.think(out, seed=6).tokens[0, 3:6, 0]
    assert shown == thoughts.tolist()
    assert model.kept_thoughts() == []


def test_the_cache_after_generation_holds_no_thought() -> None:
    ids = torch.arange(5)[None] + 5
    out = thinker(weight=1.0).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert out.past_key_values.get_seq_length() == 5 + 4 - 1


def test_no_id_outside_the_vocabulary_is_ever_emitted() -> None:
    model = thinker(weight=1.0)
    assert (
        model.get_output_embeddings().weight.shape[0]
        == VOCAB
        == model.base.get_input_embeddings().weight.shape[0]
    )
    ids = torch.arange(4)[None] + 5
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=True, temperature=5.0
    )
    assert int(out.max()) < VOCAB
    assert int(model.think(ids).tokens.max()) < VOCAB


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.0])
def test_sampled_frequencies_follow_the_temperature(heat: float) -> None:
    model = thinker(tiny_base(vocab=8), thought_length=1)
    ids = torch.tensor([[1, 2, 3]])
    count = 4000
    with torch.no_grad():
        actual = model.think(
            ids, positions=torch.tensor([[2]]), thoughts=8, temperature=heat, seed=0
        )
        draws = [
            model.think(
                ids, positions=torch.tensor([[2]]), thoughts=500, temperature=heat, seed=s
            ).tokens
            for s in range(count // 500)
        ]
        embeds = torch.cat([model.base.get_input_embeddings()(ids), model.start[None, None]], dim=1)
        expected = torch.softmax(model.base(inputs_embeds=embeds).logits[0, -1] / heat, -1)
    frequency = torch.bincount(torch.cat([d.flatten() for d in draws]), minlength=8) / count
    chi_square = float((count * (frequency - expected) ** 2 / expected).sum())
    assert chi_square < 24.3  # 99.9% of the distribution with 7 degrees of freedom
    assert actual.tokens.shape == (1, 1, 8, 1)


def test_noise_is_splitmix64_in_whole_numbers_of_any_length() -> None:
    """Steele et al. 2014: add 0x9E3779B97F4A7C15, then mix; 53 bits make a number in [0, 1)."""
    keep = 2**64 - 1

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & keep
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & keep
        return z ^ (z >> 31)

    for seed, *index in ((0, 0, 0, 0, 0), (11, 3, 7, 2, 5), (2**40, 1, 0, 9, 1), (7, 500, 1, 0, 3)):
        state = seed
        for number in index:
            state = mixed(state + (number + 1) * 0x9E3779B97F4A7C15 & keep)
        row, position, step, thought = index
        drawn = layout.uniforms(
            seed, torch.tensor(row), torch.tensor(position), step, torch.tensor(thought)
        )
        assert float(drawn) == (state >> 11) / 2**53


def test_noise_is_uniform_and_depends_on_its_index_alone() -> None:
    grid = torch.meshgrid(*(torch.arange(n) for n in (4, 50, 20)), indexing="ij")
    every = layout.uniforms(11, grid[0], grid[1], 2, grid[2])
    assert float(every[3, 7, 5]) == float(
        layout.uniforms(11, torch.tensor(3), torch.tensor(7), 2, torch.tensor(5))
    )
    assert len(torch.unique(every)) == every.numel()
    assert float(every.min()) >= 0
    assert float(every.max()) < 1
    assert abs(float(every.mean()) - 0.5) < 4 * 0.2887 / every.numel() ** 0.5
    assert not torch.equal(every, layout.uniforms(12, grid[0], grid[1], 2, grid[2]))
    assert not torch.equal(every, layout.uniforms(11, grid[0], grid[1], 3, grid[2]))


def test_the_mixing_gradient_leads_back_inside_the_unit_interval() -> None:
    head = MixingHead(4)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    for bias, slope, passes in [
        (-0.5, -1.0, True),
        (-0.5, 1.0, False),
        (1.5, 1.0, True),
        (1.5, -1.0, False),
        (0.0, 1.0, True),
    ]:
        head.zero_grad()
        with torch.no_grad():
            head.bias_3.fill_(bias)
        (slope * head(torch.ones(4), torch.ones(4))).backward()
        assert (head.bias_3.grad is not None and bool(head.bias_3.grad.any())) is passes


def exact_gradient(model: ThoughtForCausalLM, ids: Tensor, reward: Tensor, length: int) -> Tensor:
    """Return d E[reward] / d start of one thought by enumerating all of them. reward: (V **
    length,)
    """
    every = torch.tensor(list(itertools.product(range(model.config.vocab_size), repeat=length)))
    place = torch.tensor([[ids.shape[1] - 1]])
    actual = model.think(ids, positions=place, tokens=every[None, None], temperature=1.0)
    expected = (actual.log_probs[0, 0].sum(-1).exp() * reward).sum()
    return torch.autograd.grad(expected, model.start)[0]


@pytest.mark.parametrize("clamped", [False, True])
def test_policy_gradient_is_exact_in_expectation_and_clamping_breaks_it(clamped: bool) -> None:
    """Vocabulary 3, two tokens a thought, two thoughts: all 81 pairs are enumerated, so nothing is
    left to chance.
    """
    vocab, length = 3, 2
    model = thinker(tiny_base(vocab=vocab, key_heads=4), thought_length=length).double()
    ids = torch.tensor([[1, 2, 0]])
    place = torch.tensor([[2]])
    every = torch.tensor(list(itertools.product(range(vocab), repeat=length)))
    reward = torch.linspace(-1.0, 2.0, len(every), dtype=torch.float64).sin()
    exact = exact_gradient(model, ids, reward, length)
    with torch.no_grad():
        chance = (
            model.think(ids, positions=place, tokens=every[None, None], temperature=1.0)
            .log_probs[0, 0]
            .sum(-1)
            .exp()
        )
    estimate = torch.zeros_like(exact)
    for a, b in itertools.product(range(len(every)), repeat=2):
        actual = model.think(
            ids, positions=place, tokens=every[[a, b]][None, None], temperature=1.0
        )
        advantage = leave_one_out(torch.stack([reward[a], reward[b]])[None, None])
        if clamped:
            advantage = advantage.clamp_min(0)
        loss = policy_loss(actual.log_probs, advantage)
        estimate -= chance[a] * chance[b] * torch.autograd.grad(loss, model.start)[0]
    error = float((estimate - exact).norm() / exact.norm())
    assert error > 0.1 if clamped else error < 1e-5


def test_leave_one_out_is_each_reward_less_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[[1.0, 2.0, 6.0, 3.0]]])
    expected = [1 - 11 / 3, 2 - 10 / 3, 6 - 2.0, 3 - 3.0]
    torch.testing.assert_close(leave_one_out(rewards)[0, 0], torch.tensor(expected))


def test_save_and_load_keep_every_bit_and_setting(tmp_path: Path) -> None:
    from agent_forge import models

    model = random_head(
        thinker(tiny_base(tied=True), gate_entropy_nats=1.5, thoughts=2, temperature=0.8)
    )
    models.save(model, None, tmp_path)
    again = models.load(tmp_path)
    assert isinstance(again, ThoughtForCausalLM)
    assert isinstance(again.base, LlamaForCausalLM)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert again.base.lm_head.weight is again.base.model.embed_tokens.weight
    for name in (
        "thought_length",
        "gate_entropy_nats",
        "thoughts",
        "temperature",
        "vocab_size",
        "hidden_size",
    ):
        assert getattr(again.config, name) == getattr(model.config, name)
    ids = torch.arange(4)[None]
    assert torch.equal(again.think(ids).mixed_logits(), model.think(ids).mixed_logits())


def test_wrapping_keeps_the_base_weights_and_the_global_random_state() -> None:
    base = tiny_base()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = thinker(base)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.base.state_dict().items())
    torch.testing.assert_close(model.end.data, before["model.embed_tokens.weight"][[4, 5]].mean(0))


def test_linears_of_the_base_can_be_replaced_and_the_mixing_head_has_none() -> None:
    model = thinker()
    linears = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    ]
    assert linears
    assert all(name.startswith("base.") for name in linears)


@pytest.mark.parametrize("first", ["ternary", "thinking"])
def test_ternary_linears_and_thoughts_go_together_in_either_order(
    first: str, tmp_path: Path
) -> None:
    from agent_forge import models
    from agent_forge.models.ternary import TernaryLinear, TernarySettings, ternarise

    settings = TernarySettings(group_size=16, activation_bits=8, packing="two_bit", skip=[])
    base = tiny_base(tied=True)
    if first == "ternary":
        ternarise(base, settings)
    model = random_head(thinker(base))
    if first == "thinking":
        ternarise(model, settings)
    models.save(model, None, tmp_path)
    again = models.load(tmp_path)
    assert isinstance(again, ThoughtForCausalLM)
    kinds = {
        name: type(module)
        for name, module in again.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {kind for name, kind in kinds.items() if name != "base.lm_head"} == {TernaryLinear}
    assert kinds["base.lm_head"] is torch.nn.Linear
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert torch.equal(again.think(ids).mixed_logits(), model.think(ids).mixed_logits())
    assert torch.equal(again.mixing.weight_3, model.mixing.weight_3)


def test_a_model_without_attention_is_refused() -> None:
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = ThoughtForCausalLM.wrap(MambaForCausalLM(config).eval(), start_ids=[1], end_ids=[2])
    with pytest.raises(PhaseError, match="linear_attention"):
        model.think(torch.tensor([[1, 2, 3]]))


class Unmasked(LlamaForCausalLM):
    """A model that ignores its attention mask."""

    def forward(self, attention_mask: Tensor | None = None, **kwargs: object) -> object:  # noqa: ARG002
        return super().forward(attention_mask=None, **kwargs)


def test_a_model_that_ignores_its_mask_is_refused() -> None:
    model = thinker(Unmasked(tiny_base().config).eval())
    with pytest.raises(PhaseError, match="ignores a four-dimensional attention mask"):
        model.think(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("heat", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_cognate_thinks_in_parallel_as_one_by_one_whatever_depth_its_tokens_use(
    heat: float,
) -> None:
    from agent_forge.models.cognate import CognateConfig, CognateForCausalLM

    torch.manual_seed(2)
    config = CognateConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, memory_slots=16, halting_threshold=0.5, initializer_range=0.3,
    )  # fmt: skip
    base = CognateForCausalLM(config).eval()
    model = random_head(thinker(base))  # type: ignore[arg-type]
    row = [7, 8, 9, 10, 11, 12]
    left = torch.tensor([[0, 0, *row]])
    with torch.no_grad():
        passes = base(torch.tensor([row])).passes
        actual = model.think(
            left, (torch.arange(8) >= 2).long()[None], seed=2, temperature=heat, lookahead=2
        )
    assert set(passes.flatten().tolist()) == {1, 2}
    for place in range(5):
        tokens, _, _, expected = alone(model, row[: place + 1], 0, 0, 2, heat, [row[place + 1]])
        assert actual.tokens[0, 2 + place, 0].tolist() == tokens
        torch.testing.assert_close(
            actual.mixed_logits()[0, 2 + place, 0], expected, rtol=1e-5, atol=1e-5
        )
    prompt = torch.tensor([row])
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False,
        thought_seed=2, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    with torch.no_grad():
        again = model.think(out.sequences, seed=2)
    for step, logits in enumerate(out.logits):
        torch.testing.assert_close(
            logits, again.mixed_logits()[:, 5 + step, 0, 0], rtol=1e-5, atol=1e-5
        )


def test_sliding_windows_and_other_attention_are_refused() -> None:
    model = thinker()
    model.base.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(PhaseError, match="sliding_attention"):
        model.think(torch.tensor([[1, 2, 3]]))
    other = thinker()
    other.base.config._attn_implementation = "flash_attention_2"
    with pytest.raises(PhaseError, match="attn_implementation"):
        other.think(torch.tensor([[1, 2, 3]]))


def test_a_cache_that_cannot_be_cropped_is_refused() -> None:
    ids = torch.arange(4)[None]
    with pytest.raises(PhaseError, match="cropped"):
        thinker().generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=2,
            cache_implementation="static",
        )


def test_assisted_generation_is_refused() -> None:
    ids = torch.arange(4)[None]
    with pytest.raises(ConfigError, match="assisted"):
        thinker().generate(ids, prompt_lookup_num_tokens=2)


def test_a_thought_of_another_architecture_opens_through_auto_classes() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    ).eval()
    model = ThoughtForCausalLM.wrap(base, start_ids=[1], end_ids=[2], thought_length=2)
    random_head(model)
    with torch.no_grad():
        actual: Thoughts = model.think(torch.tensor([[5, 6, 7]]), seed=1)
    tokens, _, _, expected = alone(model, [5, 6], 0, 0, 1, 1.0, [])
    assert actual.tokens[0, 1, 0].tolist() == tokens
    torch.testing.assert_close(actual.mixed_logits()[0, 1, 0], expected, rtol=1e-5, atol=1e-5)
    assert isinstance(AutoModelForCausalLM.from_config(model.config), ThoughtForCausalLM)
