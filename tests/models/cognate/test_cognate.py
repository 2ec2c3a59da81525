"""Cognate: counted parameters, exits, cache, memory, save and load."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from transformers import AutoModelForCausalLM, DynamicCache

from agent_forge import models
from agent_forge.anatomy import cross_entropy
from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
from agent_forge.models.cognate import loss as cognate_loss
from agent_forge.models.cognate import model as cognate_model
from agent_forge.models.cognate.memory import bank_imbalance

CONF = Path(__file__).parents[3] / "conf" / "model"


def tiny(seed: int = 0, **changes) -> CognateForCausalLM:
    settings = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_loops": 3, "halting_size": 8, "memory_slots": 16,
        "written_slots": 6, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(seed)
    return CognateForCausalLM(CognateConfig(**{**settings, **changes})).eval()


def ids(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def mixed_exits(model: CognateForCausalLM, tokens: torch.Tensor) -> None:
    """Set the threshold so that tokens really leave after different passes."""
    with torch.no_grad():
        _, halts, _ = model.model.all_passes(tokens, None, None, 3)
    model.config.halting_threshold = float(torch.sigmoid(halts[0]).median())
    passes = model.model(tokens).passes
    assert set(passes.unique().tolist()) >= {1, 2}


@pytest.mark.parametrize(("name", "expected"), [("25m", 25_083_528), ("nano", 1_430_581)])
def test_the_shipped_sizes_have_exactly_the_stated_parameters(name: str, expected: int) -> None:
    shape = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    shape.pop("kind")
    with torch.device("meta"):
        model = CognateForCausalLM(CognateConfig(**shape))
    assert sum(p.numel() for p in model.parameters()) == expected


def test_a_config_that_leaves_everything_out_means_the_shipped_model_and_its_first_branch() -> None:
    """A config.json of another version may lack keys: then no other model may come of it."""
    plain = CognateConfig().to_dict()
    shape = yaml.safe_load((CONF / "25m.yaml").read_text())
    assert {key: plain[key] for key in shape if key != "kind"} == {
        key: value for key, value in shape.items() if key != "kind"
    }
    branch = yaml.safe_load((CONF.parent / "cognate.yaml").read_text())["reasoning"]
    own = set(branch) & set(plain)
    assert {"halting_threshold", "entropy_cost", "write_loss_weight", "novelty_weight"} <= own
    assert {key: plain[key] for key in own} == {key: branch[key] for key in own}
    assert (plain["rope_theta"], plain["rms_norm_eps"]) == (1e4, 1e-6)  # Llama's
    assert plain["memory_gate_init"] == 0.1


def test_one_loop_equals_the_plain_stack() -> None:
    model = tiny(max_loops=1)
    tokens = ids(2, 9)
    with torch.no_grad():
        x, rotary, mask, cache, readables = model.model.prepare(tokens)
        for layer, readable in zip(model.model.layers, readables, strict=True):
            x = layer(x, rotary, mask, readable, cache, 0)
        plain = model.lm_head(model.model.norm(x))
        assert torch.equal(model(tokens).logits, plain)


def test_a_threshold_never_reached_uses_every_pass_and_zero_uses_one() -> None:
    model, tokens = tiny(), ids(2, 9)
    with torch.no_grad():
        hidden, _, _ = model.model.all_passes(tokens, None, None, 3)
        model.config.halting_threshold = 1.1
        deepest = model(tokens)
        assert torch.equal(deepest.logits, model.lm_head(hidden[-1]))
        assert deepest.passes.eq(3).all()
        model.config.halting_threshold = 0.0
        assert torch.equal(model(tokens).logits, model.lm_head(hidden[0]))


def test_exit_probabilities_sum_to_one_and_follow_the_product_rule() -> None:
    logits = [torch.tensor([0.3, -40.0, 40.0]), torch.tensor([-1.2, 40.0, 0.0])]
    exits = cognate_loss.exit_probabilities(logits)
    assert torch.allclose(exits.sum(0), torch.ones(3))
    first, second = torch.sigmoid(logits[0]), torch.sigmoid(logits[1])
    expected = torch.stack([first, (1 - first) * second, (1 - first) * (1 - second)])
    assert torch.allclose(exits, expected, atol=1e-6)


def test_training_loss_is_the_expectation_over_exits() -> None:
    model = tiny(halting_loss_weight=0.0, read_loss_weight=0.0)
    tokens = ids(3, 8)
    labels = tokens.masked_fill(
        torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.4, -100
    )
    with torch.no_grad():
        loss, _ = model.training_loss(tokens, labels)
        hidden, halts, _ = model.model.all_passes(tokens, None, None, 3)
        total = count = 0.0
        for row in range(3):
            for time in range(7):
                if labels[row, time + 1] == -100:
                    continue
                stay = 1.0
                for r in range(3):
                    halt = float(torch.sigmoid(halts[r][row, time])) if r < 2 else 1.0
                    ce = F.cross_entropy(model.lm_head(hidden[r][row, time]), labels[row, time + 1])
                    total += stay * halt * float(ce)
                    stay *= 1 - halt
                count += 1
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_losses_in_chunks_equal_losses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny(), ids(2, 12)
    whole, _ = model.training_loss(tokens, tokens)
    whole.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr(cross_entropy, "LOGITS_IN_MEMORY", 5 * 64)
    parts, _ = model.training_loss(tokens, tokens)
    parts.backward()
    assert torch.allclose(whole, parts)
    assert torch.allclose(gradient, model.lm_head.weight.grad, atol=1e-6)


def test_cached_logits_equal_uncached_ones_with_mixed_exits() -> None:
    model, tokens = tiny(), ids(4, 14)
    mixed_exits(model, tokens)
    with torch.no_grad():
        whole = model(tokens, use_cache=False)
        cache = DynamicCache(config=model.config)
        parts = [model(tokens[:, :5], past_key_values=cache, use_cache=True)]
        parts += [
            model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True) for i in range(5, 12)
        ]
        parts.append(model(tokens[:, 12:], past_key_values=cache, use_cache=True))
    assert torch.allclose(torch.cat([p.logits for p in parts], 1), whole.logits, atol=1e-5)
    assert torch.equal(torch.cat([p.passes for p in parts], 1), whole.passes)


def test_a_step_of_one_token_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token sees all that is in the cache, so that a mask would hide nothing."""
    model, tokens, masks = tiny(), ids(2, 6), []
    make = cognate_model.create_causal_mask
    monkeypatch.setattr(
        cognate_model, "create_causal_mask", lambda **keys: (masks.append(1), make(**keys))[1]
    )
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens[:, :3], past_key_values=cache, use_cache=True)
        model(tokens[:, 3:4], past_key_values=cache, use_cache=True)
        assert not masks
        model(tokens[:, 4:6], past_key_values=cache, use_cache=True)
    assert masks


def test_no_token_sees_a_later_one() -> None:
    model, tokens = tiny(), ids(2, 10)
    mixed_exits(model, tokens)
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 7) % 64
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits[:, :6], model(changed).logits[:, :6], atol=1e-6)


def test_left_padding_changes_no_logit() -> None:
    model, tokens = tiny(), ids(2, 8)
    mixed_exits(model, tokens)
    padded = F.pad(tokens, (3, 0))
    mask = F.pad(torch.ones_like(tokens), (3, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model(tokens).logits
        shifted = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    assert torch.allclose(plain, shifted, atol=1e-5)


def test_generation_with_transformers_and_with_ours_agree() -> None:
    model = tiny()
    prompts = [ids(1, n, seed=n)[0].tolist() for n in (4, 7, 7, 12, 3)]
    mixed_exits(model, ids(4, 12))
    ours = models.generate(model, prompts, models.Decoding(max_new_tokens=10, stop_ids=[5]))
    for prompt, tokens in zip(prompts, ours, strict=True):
        row = torch.tensor([prompt])
        theirs = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=5,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert tokens == theirs[: theirs.index(5) if 5 in theirs else None]


def test_written_memory_changes_a_later_segment_and_writes_off_changes_nothing() -> None:
    model = tiny(memory_gate_init=1.0)
    first, other, second = ids(2, 10, 1), ids(2, 10, 2), ids(2, 6, 3)
    with torch.no_grad():
        plain = model(second)
        silent = model(first)
        assert plain.memory is None
        assert silent.memory is None
        written = model(first, write_memory=True).memory
        otherwise = model(other, write_memory=True).memory
        after = model(second, memory=written).logits
        assert not torch.allclose(after, plain.logits, atol=1e-4)
        assert not torch.allclose(after, model(second, memory=otherwise).logits, atol=1e-4)
        empty = model.model.memory.empty(2)
        assert torch.allclose(model(second, memory=empty).logits, plain.logits, atol=1e-6)


def test_the_most_surprising_tokens_are_written_and_padding_never() -> None:
    model = tiny(surprise_weight=1.0, novelty_weight=0.0)
    model.model.memory.write_gate.weight.data.zero_()  # makes every gate one half
    tokens = ids(1, 20)
    mask = torch.ones_like(tokens)
    mask[:, :8] = 0
    with torch.no_grad():
        state = model(tokens, attention_mask=mask, write_memory=True).memory
        logits = model(tokens, attention_mask=mask).logits
    losses = F.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none")
    expected = losses[8:].topk(6).values.sort().values / torch.tensor(64.0).log() / 2
    assert torch.allclose(state.priority[0].sort().values, expected, atol=1e-5)
    short = torch.ones_like(tokens)
    short[:, :-3] = 0
    with torch.no_grad():  # The first of three real tokens has no token before it as its key.
        assert (
            int(
                model(tokens, attention_mask=short, write_memory=True).memory.priority.isinf().sum()
            )
            == 4
        )


def test_a_slot_holds_a_token_under_the_stream_of_the_one_before_it() -> None:
    model = tiny(written_slots=9)  # all of ten tokens except the first
    tokens = ids(2, 10)
    with torch.no_grad():
        output = model.model(tokens)
        state = model(tokens, write_memory=True).memory
        bank = model.model.memory
        content = bank.write_proj(bank.norm(output.middle))
    assert torch.allclose(state.keys, content[:, :-1], atol=1e-6)
    assert torch.allclose(state.values, content[:, 1:], atol=1e-6)


def test_a_closed_gate_keeps_a_surprising_token_from_driving_out_others() -> None:
    bank = tiny().model.memory
    stream = torch.randn(1, 21, 32, generator=torch.Generator().manual_seed(3))
    surprise, valid = torch.linspace(0.1, 1, 21)[None], torch.ones(1, 21, dtype=torch.bool)
    with torch.no_grad():
        gates = torch.sigmoid(bank.write_gate(bank.norm(stream)))[0, 1:, 0]
        state, cost = bank.write(bank.empty(1), stream, surprise, valid, 1.0, 0.0)
    expected = (gates * surprise[0, 1:]).topk(6)
    assert torch.allclose(state.priority[0].sort().values, expected.values.sort().values)
    assert float(cost) == pytest.approx(float(gates[expected.indices].mean()), rel=1e-5)


def test_untrained_reads_find_the_context_that_was_written_before_anything_is_learned() -> None:
    model = tiny(written_slots=9, hidden_size=64, num_attention_heads=4)
    stream = torch.randn(4, 10, 64, generator=torch.Generator().manual_seed(4))
    bank, attention = model.model.memory, model.model.layers[1].memory_attn
    with torch.no_grad():
        state, _ = bank.write(
            bank.empty(4), stream, torch.ones(4, 10), torch.ones(4, 10).bool(), 1.0, 0.0
        )
        readable = attention.with_written(
            attention.readable(bank.read(bank.slots, bank.slots)),
            bank.read(state.keys, state.values),
            state.log_gate,
        )
        actual = attention(stream[:, :-1], readable)
    similar = torch.einsum(
        "bqd,bkd->bqk", F.normalize(actual, dim=-1), F.normalize(state.values, dim=-1)
    )
    assert similar.argmax(-1).eq(torch.arange(9)).float().mean() > 0.95


def test_gates_that_reads_do_not_use_stay_open_when_the_static_slots_are_all_there_is() -> None:
    model = tiny(max_loops=1, memory_gate_init=0.1).train()
    tokens = ids(4, 12)
    with_bank = model(tokens).logits
    for layer in model.model.layers:
        layer.memory_attn.gate.data.zero_()
    without = model(tokens).logits
    assert float((with_bank - without).detach().std() / without.detach().std()) < 0.1


def test_gradient_reaches_every_parameter() -> None:
    model = tiny().train()
    first, second = ids(3, 12, 1), ids(3, 12, 2)
    before, _, memory = cognate_loss.expected_loss(model, first, first, write_memory=True)
    after, _, _ = cognate_loss.expected_loss(model, second, second, memory=memory)
    (before + after).backward()
    silent = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert silent == []


def test_a_token_that_surely_leaves_shows_the_others_what_inference_shows_them() -> None:
    model, tokens = tiny(max_loops=2), ids(3, 9)
    with torch.no_grad():
        halting = model.model.halting
        halting.down.weight.mul_(1e4)
        hidden, halts, _ = model.model.all_passes(tokens, None, None, 2, leaving=True)
        left = torch.sigmoid(halts[0]) > 0.5
        assert left.any()
        assert not left.all()
        output = model.model(tokens)
        assert torch.equal(output.passes, 2 - left.long())
        expected = torch.where(left[..., None], hidden[0], hidden[1])
        assert torch.allclose(output.last_hidden_state, expected, atol=1e-5)
        plain, _, _ = model.model.all_passes(tokens, None, None, 2)
        assert not torch.allclose(plain[1], hidden[1], atol=1e-3)


def test_what_points_away_from_all_slots_is_new_and_what_a_slot_holds_is_not() -> None:
    """Novelty is 1 less the largest cosine with a trainable or a written slot, whatever their
    lengths.
    """
    bank = tiny().model.memory
    width = bank.slots.shape[1]
    with torch.no_grad():
        bank.slots.zero_()
        bank.slots[0, 0] = 100.0
        bank.slots[1, 0], bank.slots[1, 1] = 3.0, 4.0
    state = bank.empty(1)
    content = torch.zeros(1, 4, width)
    content[0, 0, 0] = 3.0  # the first slot's direction
    content[0, 1, :2] = 2.0  # between the two slots, nearer to the second
    content[0, 2, 2] = 5.0  # a right angle to both
    content[0, 3, 0] = -1.0  # away from both
    expected = torch.tensor([[0.0, 1 - 7 / 50**0.5, 1.0, 1.0]])
    with torch.no_grad():
        torch.testing.assert_close(bank._novelty(content, state), expected)
    state.values[0, 0, 2], state.priority[0, 0] = 0.5, 1.0
    expected[0, 2] = 0.0  # written since
    with torch.no_grad():
        torch.testing.assert_close(bank._novelty(content, state), expected)


def test_a_question_is_charged_for_its_passes_though_nothing_in_it_is_trained() -> None:
    model = tiny(
        ponder_cost=1.0,
        entropy_cost=0.0,
        read_loss_weight=0.0,
        halting_loss_weight=1.0,
        pad_token_id=0,
    )
    tokens = ids(2, 8).clamp(min=1)
    labels = torch.full_like(tokens, -100)
    labels[:, -1] = tokens[:, -1]
    padded = F.pad(tokens, (0, 3))
    with torch.no_grad():
        loss, metrics = model.training_loss(tokens, labels)
        _, halts, _ = model.model.all_passes(tokens, None, None, 3, leaving=True)
        exits = cognate_loss.exit_probabilities([h.flatten() for h in halts])
        extra = float((exits[1] + 2 * exits[2]).mean())
        free, _ = tiny(**{**model.config.to_diff_dict(), "ponder_cost": 1e-12}).training_loss(
            tokens, labels
        )
        assert float(loss - free) == pytest.approx(extra / 2, rel=1e-4)
        assert metrics["passes"] == pytest.approx(1 + extra, rel=1e-5)
        again, _ = model.training_loss(padded, F.pad(labels, (0, 3), value=-100))
        assert float(again) == pytest.approx(float(loss), rel=1e-5)


def test_the_read_loss_is_zero_for_even_use_and_large_for_collapsed_use() -> None:
    model = tiny()
    with torch.no_grad():
        even, collapsed = model.model, tiny(initializer_range=2.0).model
        even.layers[-1].memory_attn.q_proj.weight.zero_()
        imbalance = bank_imbalance(even.layers[-1].memory_attn, even.memory, torch.randn(2, 64, 32))
        assert float(imbalance) == pytest.approx(0.0, abs=1e-5)
        assert (
            float(
                bank_imbalance(
                    collapsed.layers[-1].memory_attn, collapsed.memory, torch.ones(2, 64, 32)
                )
            )
            > 1
        )


def test_a_saved_model_loads_bit_exact_through_the_auto_class(tmp_path: Path) -> None:
    model = tiny()
    models.save(model, None, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, CognateForCausalLM)
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(ids(2, 9)).logits, model(ids(2, 9)).logits)


def test_hidden_states_have_the_embedding_first_and_the_normed_output_last() -> None:
    model, tokens = tiny(), ids(2, 5)
    output = model(tokens, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(output.hidden_states[0], model.model.embed_tokens(tokens))
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)


@pytest.mark.parametrize(("layers", "middle"), [(1, 1), (2, 1), (4, 2), (5, 3)])
def test_memory_writes_the_stream_after_half_of_the_layers_rounded_up(
    layers: int, middle: int
) -> None:
    model, tokens = tiny(num_hidden_layers=layers, max_loops=1), ids(2, 5)
    output = model.model(tokens, output_hidden_states=True)
    assert model.model.middle == middle
    if middle < layers:  # after the last layer the hidden state is the normed one
        assert torch.equal(output.middle, output.hidden_states[middle])


@pytest.mark.parametrize("loops", [1, 3])
def test_the_loss_without_logits_has_the_value_and_gradients_of_the_one_with(
    loops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = tiny(), ids(3, 9)
    labels = tokens.clone()
    labels[0, :5] = -100

    def both() -> tuple[torch.Tensor, dict[str, float], list[torch.Tensor | None]]:
        loss, metrics, _ = cognate_loss.expected_loss(model, tokens, labels, loops=loops)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        figures = {name: float(value) for name, value in metrics.items()}
        return loss.detach(), figures, list(gradients)

    whole, named, gradients = both()
    monkeypatch.setattr(cross_entropy, "LOGITS_IN_MEMORY", 10)
    monkeypatch.setattr(model.lm_head, "forward", None)  # computing logits now fails
    chunked, again, others = both()
    torch.testing.assert_close(chunked, whole)
    assert again == pytest.approx(named, rel=1e-5)
    for actual, target in zip(others, gradients, strict=True):
        torch.testing.assert_close(actual, target, rtol=1e-4, atol=1e-6)


def test_the_read_loss_is_that_of_the_last_layers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny().train()
    layers: list[object] = []

    def noted(attention: object, *_: object) -> torch.Tensor:
        layers.append(attention)
        return torch.zeros(())

    monkeypatch.setattr(cognate_loss, "bank_imbalance", noted)
    model.config.read_loss_weight = 1.0
    cognate_loss.expected_loss(model, ids(2, 9), ids(2, 9))
    assert len(model.model.layers) > 1
    assert layers == [model.model.layers[-1].memory_attn]
