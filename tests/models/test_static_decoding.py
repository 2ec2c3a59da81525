"""Generation from a cache of fixed size, on a GPU as one graph, gives the same tokens."""

import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import codecs, models
from agent_forge.models import compressed, static_decoding
from agent_forge.models.ternary import TernarySettings, ternarise

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def llama(**changes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2,
             "initializer_range": 0.3} | changes  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def ternary() -> LlamaForCausalLM:
    model = llama()
    ternarise(
        model, TernarySettings(group_size=32, activation_bits=8, packing="five_trits", skip=[])
    )
    return model.eval()


def coded(codec: str = "ternary", bits: int = 2) -> LlamaForCausalLM:
    model = ternary() if codec == "ternary" else llama()
    settings = {"group": 32} if codec == "ternary" else {"bits": bits, "group": 32}
    payloads = {}
    for name, weight in compressed.coded_tensors(model).items():
        embedding = name == "model.embed_tokens"
        kind, options = ("intk", {"bits": 8, "group": 0}) if embedding else (codec, settings)
        payloads[name] = codecs.encode(kind, weight, options)
    compressed.compress(model, payloads)
    return model.eval()


def prompts(count: int, longest: int = 30) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(0, 50, (n,), generator=generator).tolist() for n in lengths]


# Sampled tokens of rounded activations part where a rounding falls the other way; their greedy ones
# do not here.
@pytest.mark.parametrize(
    ("make", "sampling"),
    [
        (llama, {}),
        (llama, {"temperature": 1.0, "top_p": 0.9, "seed": 5}),
        (ternary, {}),
        (coded, {}),
    ],
)
def test_the_tokens_are_those_of_the_growing_cache(make, sampling: dict[str, float]) -> None:  # type: ignore[no-untyped-def]
    model, rows = make(), prompts(17)
    settings = {"max_new_tokens": 40, "stop_ids": [3, 17], **sampling}
    expected = models.generate(model, rows, models.Decoding(static=False, **settings))
    assert len({len(row) for row in expected}) > 1  # some rows stop before others
    assert models.generate(model, rows, models.Decoding(static=True, **settings)) == expected
    assert (
        models.generate(model, rows, models.Decoding(static=True, batch_rows=4, **settings))
        == expected
    )


def test_only_the_last_token_of_a_prompt_has_logits() -> None:
    """Those that StaticDecoder does not need would take a vocabulary's worth of memory each."""
    model, rows = llama(), []
    model.lm_head.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:2]))
    questions = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    models.generate(model, questions, models.Decoding(static=True, max_new_tokens=3))
    assert set(rows) == {torch.Size([2, 1])}


def test_it_stops_looking_further_once_all_rows_have_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, steps = llama(), []
    advance = static_decoding.StaticDecoder._advance
    monkeypatch.setattr(
        static_decoding.StaticDecoder, "_advance", lambda self: (steps.append(1), advance(self))[1]
    )
    everything = list(range(50))
    rows = [[1, 2], [3, 4, 5]]
    assert models.generate(
        model, rows, models.Decoding(max_new_tokens=500, stop_ids=everything, static=True)
    ) == [
        [],
        [],
    ]
    assert len(steps) == static_decoding.LOOK_EVERY


def test_one_token_and_one_row() -> None:
    model = llama()
    for count in (1, 2):
        replies = models.generate(
            model, [[1, 2, 3]], models.Decoding(max_new_tokens=count, static=True)
        )
        assert replies == models.generate(model, [[1, 2, 3]], models.Decoding(max_new_tokens=count))
        assert len(replies[0]) == count


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("kind", ["plain", "ternary", "intk"])
class TestOnTheDevice:
    """What only a GPU shows."""

    pytestmark = gpu

    def test_a_graph_gives_the_tokens_of_the_processor(self, kind: str, rows: int) -> None:
        model = llama() if kind == "plain" else coded(kind, 4)
        rows_of_ids = prompts(rows)
        expected = models.generate(
            model, rows_of_ids, models.Decoding(max_new_tokens=24, stop_ids=[3])
        )
        replies = models.generate(
            model.cuda(), rows_of_ids, models.Decoding(max_new_tokens=24, stop_ids=[3])
        )
        agreeing = sum(a == b for a, b in zip(replies, expected, strict=True))
        assert agreeing >= rows - 1  # rounding may turn a tie around


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_is_faster_than_its_launches() -> None:
    model = llama(num_hidden_layers=12, hidden_size=256, intermediate_size=512).cuda().bfloat16()
    seconds = {}
    for static in (False, True):
        for _ in range(2):
            torch.cuda.synchronize()
            started = time.perf_counter()
            models.generate(model, [[1, 2, 3]], models.Decoding(max_new_tokens=128, static=static))
            torch.cuda.synchronize()
            seconds[static] = time.perf_counter() - started
    assert seconds[True] < seconds[False] / 2
