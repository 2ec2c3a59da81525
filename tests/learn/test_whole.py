# ruff: noqa: ARG001 - callbacks have the signature of the contract
"""Whole stacks as one graph: the same losses as layer by layer, no mask, a way back, and nothing
left behind.
"""

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from agent_forge import models
from agent_forge.anatomy import chunks, cross_entropy
from agent_forge.checkpoint import Workspace
from agent_forge.config import OptimConfig
from agent_forge.config.compose import default_runtime
from agent_forge.core.events import EventLog, read_events
from agent_forge.core.seeds import torch_generator
from agent_forge.learn import StepRecord, TrainRequest, gradients, lm_loss, speed, train
from agent_forge.learn.feed import Batch, on_host, parts_of, trained_tokens
from agent_forge.models.plain import PlainCall, stack_of
from agent_forge.models.ternary import TernarySettings, ternarise
from agent_forge.phases.bitnet import DistillConfig, head_loss
from agent_forge.phases.bitnet.distill import Distillation
from tests.pretend import counted_waits, pretend_accelerator

PLAIN = default_runtime()
OPTIM = OptimConfig(
    method="adamw", lr=3e-3, muon_lr=2e-2, warmup_steps=1, cooldown_share=0.4, weight_decay=0.1, beta1=0.9, beta2=0.95,
    clip_norm=1.0, average_share=0.0,
)  # fmt: skip
DISTILL = DistillConfig(
    kl_weight=1.0,
    ce_weight=0.2,
    relation_weight=0.0,
    relation_heads=1,
    hidden_weight=0.0,
    temperature=1.0,
)


class Tokens:
    """Seeded random batches whose length changes after the first two."""

    def batch(self, step: int) -> dict[str, Tensor]:
        ids = torch.randint(
            500, (3, 12 if step < 2 else 9 + step), generator=torch_generator(0, "tokens", step)
        )
        return {"input_ids": ids, "labels": ids}


def go(
    model: nn.Module, path: Path, loss: Any = lm_loss, *, on_step: Any = None, **keys: Any
) -> list[StepRecord]:
    out = Workspace(path / "out", phase="test", seed=0, config={})
    events = EventLog(path / "events.jsonl", "test")
    return train(
        model,
        TrainRequest(
            batches=Tokens(),
            loss_fn=loss,
            stage="stage",
            steps=5,
            optim=OPTIM,
            out=out,
            events=events,
            seed=7,
            on_step=on_step,
            runtime=replace(PLAIN, compile=keys.pop("compile", "on")),
            **keys,
        ),
    )


def messages(path: Path) -> list[str]:
    return [event.message for event in read_events(path / "events.jsonl") if event.message]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Trace whole stacks here too, each as one graph without a break; yields the graphs, which are
    run as they are.
    """
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compile_ = functools.partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(speed, "runs_whole", lambda _: True)
    monkeypatch.setenv("CXX", "true")
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def losses(records: list[StepRecord]) -> list[float]:
    return [record.loss for record in records]


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # dynamo looks at every input's gradient
def test_a_whole_stack_learns_the_same_traced_twice_for_many_lengths(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, traced: list[Any]
) -> None:
    start = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    result = go(tiny_llama, tmp_path / "whole")
    other = LlamaForCausalLM(tiny_llama.config)
    other.load_state_dict(start)
    expected = go(other, tmp_path / "plain", compile="off")
    assert losses(result) == pytest.approx(losses(expected), rel=1e-5)
    # One graph for the first length and one for all others.
    assert len(traced) == 2
    assert tiny_llama.model._compiled_call_impl is None
    assert tiny_llama.config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_the_graph_has_causal_attention_and_no_mask(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, traced: list[Any]
) -> None:
    go(tiny_llama, tmp_path)
    attention = functional.scaled_dot_product_attention
    calls = [node for node in traced[0].graph.nodes if node.target is attention]
    assert len(calls) == tiny_llama.config.num_hidden_layers
    for call in calls:
        assert call.kwargs["is_causal"] is True
        assert call.kwargs.get("attn_mask") is None
        assert len(call.args) <= 3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_parent_and_its_ternary_student_are_one_graph_each_and_learn_the_same(
    llama_config: LlamaConfig, tmp_path: Path, traced: list[Any]
) -> None:
    result = []
    for mode in ("on", "off"):
        torch.manual_seed(0)
        parent = LlamaForCausalLM(llama_config).eval().requires_grad_(False)
        student = LlamaForCausalLM(llama_config)
        settings = {
            "group_size": 32,
            "activation_bits": 8,
            "packing": "five_trits",
            "skip": [],
            "embedding_bits": 8,
        }
        ternarise(student, TernarySettings(**settings))  # type: ignore[arg-type]
        loss = Distillation(parent, DISTILL, pad=None, steps=5, blend_share=0.0)
        result.append(losses(go(student, tmp_path / mode, loss, compile=mode)))
        assert parent.model._compiled_call_impl is None
    assert result[0] == pytest.approx(result[1], rel=1e-4)
    # Parent and student, each for one length and for all others.
    assert len(traced) == 4


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_between_two_steps_a_model_generates_and_takes_masks_as_ever(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, traced: list[Any]
) -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    padded = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    seen: list[tuple[Any, Tensor]] = []

    def look(record: StepRecord, model: Any) -> None:
        fresh = LlamaForCausalLM(model.config)
        fresh.load_state_dict(model.state_dict())
        for one in (model, fresh):
            tokens = models.generate(one, prompts, models.Decoding(max_new_tokens=4))
            with torch.no_grad():
                logits = one(input_ids=padded, attention_mask=mask).logits[0, 2:]
            seen.append((tokens, logits))

    go(tiny_llama, tmp_path, on_step=look)
    for (tokens, logits), (expected, target) in zip(seen[::2], seen[1::2], strict=True):
        assert tokens == expected
        torch.testing.assert_close(logits, target)


def test_what_does_not_compile_runs_by_blocks_and_then_eagerly_and_says_so(
    tiny_llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._dynamo.exc

    start = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    calls = []

    def failing(*_: Any, **__: Any) -> Any:
        def call(*args: Any, **keys: Any) -> Any:
            calls.append(1)
            raise torch._dynamo.exc.TorchDynamoException("no such operation")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    monkeypatch.setattr(speed, "runs_whole", lambda _: True)
    monkeypatch.setenv("CXX", "true")
    result = go(tiny_llama, tmp_path / "failing")
    assert len(calls) == 2
    said = [text for text in messages(tmp_path / "failing") if "fails" in text]
    assert [text.split(":")[1].split(" ")[2] for text in said] == ["blocks", "off"]
    assert all("no such operation" in text for text in said)
    other = LlamaForCausalLM(tiny_llama.config)
    other.load_state_dict(start)
    assert losses(result) == losses(go(other, tmp_path / "eager", compile="off"))


def test_other_errors_of_a_step_are_not_taken_for_failed_compiling(
    tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    def broken(model: Any, batch: dict[str, Tensor], step: int) -> Any:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        go(tiny_llama, tmp_path, broken, compile="off")


def test_a_narrow_stream_rounds_no_more_than_bfloat16_products_do(
    llama_config: LlamaConfig,
) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config)
    stack = stack_of(model)
    assert stack is not None
    ids = torch.randint(500, (4, 40), generator=torch_generator(0, "ids"))
    exact = model.model(input_ids=ids, use_cache=False).last_hidden_state
    errors = {}
    for narrow in (False, True):
        stack._compiled_call_impl = PlainCall(stack, stack._call_impl, narrow=narrow)  # type: ignore[assignment]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = model.model(input_ids=ids, use_cache=False).last_hidden_state
        errors[narrow] = float(((result.float() - exact).norm() / exact.norm()).detach())
    assert 0 < errors[False] < 0.01
    assert errors[False] < errors[True] < 0.02


def test_models_that_do_more_than_causal_attention_are_left_alone(
    llama_config: LlamaConfig,
) -> None:
    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    assert stack_of(Qwen2ForCausalLM(Qwen2Config(**small))) is not None
    windowed = Qwen2Config(**small, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert stack_of(Qwen2ForCausalLM(windowed)) is None

    class Scaled(LlamaForCausalLM):
        pass

    assert stack_of(Scaled(llama_config)) is None


def test_the_fused_losses_are_the_plain_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = (torch.randn(9, 30, generator=generator) * 3 for _ in range(2))
    targets = torch.randint(30, (9,), generator=generator)
    weights = torch.rand(9, 1, generator=generator)
    slope, each = cross_entropy._slopes(logits, targets[:, None], weights)
    leaf = logits.clone().requires_grad_()
    expected = functional.cross_entropy(leaf, targets, reduction="none")
    (expected * weights[:, 0]).sum().backward()
    torch.testing.assert_close(each, expected.detach())
    torch.testing.assert_close(slope, leaf.grad)
    targets[3] = -100
    for temperature, ce in ((1.0, 0.3), (2.0, 0.3), (1.5, 0.0)):
        how = head_loss.LossWeights(kl=0.7, ce=ce, temperature=temperature)
        for present in (None, torch.arange(9) < 6):
            shares = head_loss._shares(targets, present)
            losses, slope = head_loss._chunk(logits, target, targets, shares, how)
            fused, fused_slope = head_loss._written_for_a_compiler(
                logits, target, targets, shares, how
            )
            torch.testing.assert_close(fused, losses)
            torch.testing.assert_close(fused_slope, slope)


def test_positions_that_weigh_nothing_are_as_good_as_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, taught = (torch.randn(11, 6, generator=generator) for _ in range(2))
    head, taught_head = (torch.randn(20, 6, generator=generator) for _ in range(2))
    targets = torch.tensor([1, -100, 3, 4, 5, -100, 7, 8, 9, 10, 11])
    present = torch.tensor([True] * 7 + [False] * 4)
    weights = head_loss.LossWeights(kl=0.5, ce=0.25, temperature=1.5)
    result = []
    for where, chosen in ((slice(None), present), (present, None)):
        inputs = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        total, kl, ce = head_loss.head_loss(
            inputs[0][where], inputs[1], taught[where], taught_head, targets[where], weights, chosen
        )
        total.backward()
        result.append((total.detach(), kl, ce, inputs[0].grad, inputs[1].grad))
    for a, b in zip(*result, strict=True):
        torch.testing.assert_close(a, b)


def test_chunks_are_even_follow_the_free_memory_and_have_a_ceiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    somewhere = torch.device("meta")
    for free, rows in ((0, 171), (24 << 30, 5462), (1 << 40, 5462)):
        monkeypatch.setattr(chunks, "free_bytes", lambda _, free=free: free)
        chunks.rows_at_once.cache_clear()
        result = chunks.rows_at_once(16384, 49152, somewhere)
        assert result <= rows
        assert -(-16384 // result) * result - 16384 < -(-16384 // result)
    chunks.rows_at_once.cache_clear()


def test_a_loss_kernel_that_does_not_compile_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._dynamo.exc

    def failing(*_: Any, **__: Any) -> Any:
        raise torch._dynamo.exc.TorchDynamoException("no compiler")

    monkeypatch.setattr(torch, "compile", lambda _: failing)
    double = chunks.Fused(lambda x: 2 * x)
    assert [float(double(torch.ones(()))) for _ in range(2)] == [2.0, 2.0]
    assert sum("no compiler" in record.message for record in caplog.records) == 1


def test_tokens_counted_on_the_host_are_those_of_each_part() -> None:
    labels = torch.tensor(
        [[1, 2, -100, 4], [-100, -100, 3, 4], [5, -100, -100, -100], [1, 2, 3, 4]]
    )
    tensors = {"input_ids": labels.clamp_min(0), "labels": labels}
    elsewhere = {name: torch.full_like(value, -100) for name, value in tensors.items()}
    batch = Batch(elsewhere, tensors)
    assert trained_tokens(batch) == trained_tokens(tensors) == 7
    assert trained_tokens(Batch(tensors.items())) == 7  # FSDP makes a new dict
    for count in (1, 2, 3):
        cut, expected = parts_of(batch, count, "parts"), parts_of(tensors, count, "parts")
        assert [trained_tokens(part) for part in cut] == [trained_tokens(part) for part in expected]
        for a, b in zip(cut, expected, strict=True):
            assert torch.equal(on_host(a)["labels"], b["labels"])
            assert a["labels"].shape == b["labels"].shape


def test_metrics_are_read_as_they_are() -> None:
    values = {
        "float": 0.1,
        "whole": 3,
        "single": torch.tensor(0.3),
        "double": torch.tensor(0.7, dtype=torch.float64),
    }
    assert gradients.numbers(values) == {key: float(value) for key, value in values.items()}


def test_numbers_on_an_accelerator_are_read_all_at_once() -> None:
    with pretend_accelerator() as device:
        values = {"a": torch.tensor(0.25).to(device), "b": 2.0, "c": torch.tensor(3).to(device)}
        with counted_waits() as waits:
            assert gradients.numbers(values) == {"a": 0.25, "b": 2.0, "c": 3.0}
        assert not waits


def test_garbage_is_collected_at_intervals_and_the_collector_is_put_back() -> None:
    class Ring:
        def __init__(self) -> None:
            self.me = self

    with speed.garbage_at_intervals() as after:
        assert not gc.isenabled()
        gone = weakref.ref(Ring())
        after(1)
        assert gone() is not None
        after(speed.COLLECT_STEPS)
        assert gone() is None
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
