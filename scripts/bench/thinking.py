"""What thinking costs: generation on a cache against encoding the prefix again, and a training step
against a full forward pass per column.

    python -m scripts.bench run thinking --prefix 512 --new 8
    python -m scripts.bench run thinking --smoke

The model has random weights, of nano's or of SmolLM2's shape: speed asks for no more. The peers do
what the definition says and no more: a full forward pass over prefix and thought for every thought
token, and in training for every position and thought; both sides are checked to think the same.
Times are processor time of one thread, in turn, the medians of --repeats.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge.core import device
from agent_forge.models.thought import ThoughtForCausalLM, layout, mix
from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = (
    "Thinking on a cache is faster than encoding the prefix again, in generation and in training"
)
BAR = "generation at least 10 x, a training step at least 5 x"
LEAST_GENERATION, LEAST_TRAINING = 10.0, 5.0

# name -> width, inner width, layers, heads, key heads, vocabulary
SHAPES = {"nano": (128, 384, 4, 4, 4, 1024), "smollm2": (576, 1536, 30, 9, 3, 49152)}


def run(arguments: Sequence[str] = ()) -> Result:
    """Time both pairs and print their ratios."""
    parser = argparse.ArgumentParser(prog="thinking", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="nano")
    add("--prefix", type=int, default=512, help="tokens before the first that is generated")
    add("--new", type=int, default=8, help="generated tokens")
    add("--window", type=int, default=128, help="tokens of a training window")
    add("--positions", type=int, default=8)
    add("--thoughts", type=int, default=4)
    add("--length", type=int, default=4, help="tokens per thought")
    add("--repeats", type=int, default=5)
    add("--smoke", action="store_true", help="seconds: a short prefix, once")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.prefix, options.new, options.window, options.repeats = 64, 2, 32, 1
        options.positions, options.thoughts = 2, 2
    device.set_threads(1)
    model = thinker(options)
    generator = torch.Generator().manual_seed(0)
    vocabulary = SHAPES[options.shape][-1]
    prefix = torch.randint(vocabulary, (1, options.prefix), generator=generator)
    window = torch.randint(vocabulary, (1, options.window), generator=generator)
    figures = [
        pair(
            "generation", LEAST_GENERATION, options.repeats,
            lambda: cached(model, prefix, options.new), lambda: encoded(model, prefix, options.new),
        ),
        pair(
            "a training step", LEAST_TRAINING, options.repeats,
            lambda: step(model, window, options), lambda: alone_step(model, window, options),
        ),
    ]  # fmt: skip
    return Result(
        claim=CLAIM, topic="Training", bar=BAR, **bars_met(figures), figures=figures,
        n=f"medians of {options.repeats}, shape {options.shape}, prefix {options.prefix}",
        **here("thinking", arguments),
    )  # fmt: skip


def thinker(options: argparse.Namespace) -> ThoughtForCausalLM:
    """Return a model of random weights that thinks before every token."""
    width, inner, layers, heads, key_heads, vocabulary = SHAPES[options.shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
        max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=None, pad_token_id=0,
        initializer_range=0.1,
    )  # fmt: skip
    model = ThoughtForCausalLM.wrap(
        LlamaForCausalLM(config), start_ids=[1], end_ids=[2], thought_length=options.length,
        gate_entropy_nats=0.0, temperature=0.0,
    )  # fmt: skip
    with torch.no_grad():
        model.mixing.bias_3.fill_(0.5)
    return model.eval()


def pair(
    name: str, least: float, repeats: int, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]
) -> Figure:
    """Time both in turn and return the ratio. Raises AssertionError where they differ."""
    first, second = ours(), theirs()
    assert torch.allclose(first, second, rtol=1e-3, atol=1e-3), f"{name}: both sides differ"
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for work, seconds in zip((ours, theirs), times, strict=True):
            started = time.process_time()
            work()
            seconds.append(time.process_time() - started)
    middle = [statistics.median(seconds) for seconds in times]
    ratio = middle[1] / middle[0]
    print(f"{name}: {middle[0]:.3f} s against {middle[1]:.3f} s, x {ratio:.1f}", flush=True)
    return Figure(
        claim=f"{name} against full forward passes", figure=ratio, unit="x faster",
        bar=f"at least {least:g} x", met=ratio >= least,
    )  # fmt: skip


@torch.no_grad()
def cached(model: ThoughtForCausalLM, prefix: Tensor, new: int) -> Tensor:
    """Generate as the model does; return its tokens as floats."""
    out = model.generate(
        prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=new, do_sample=False
    )
    return torch.as_tensor(out[0, prefix.shape[1] :]).double()


@torch.no_grad()
def encoded(model: ThoughtForCausalLM, prefix: Tensor, new: int) -> Tensor:
    """Generate with a full forward pass for every token of every thought."""
    ids = prefix
    for _ in range(new):
        base, logits, weight, _ = thought_after(model, ids, 0)
        token = mix(base, logits, weight).argmax(-1)
        ids = torch.cat([ids, token[None, None]], dim=1)
    return ids[0, prefix.shape[1] :].double()


def thought_after(model: ThoughtForCausalLM, ids: Tensor, which: int) -> tuple[Any, ...]:
    """Return base logits, logits after a thought, mixing weight and log p of the thought's tokens.

    Nothing is cached: every token of the thought reads the whole prefix again.
    """
    embed = model.base.get_input_embeddings()

    def full(embeds: Tensor) -> tuple[Tensor, Tensor]:
        out = model.base(inputs_embeds=embeds, output_hidden_states=True, use_cache=False)
        return out.logits[0, -1], out.hidden_states[-1][0, -1]

    base, hidden = full(embed(ids))
    embeds = torch.cat([embed(ids), model.start[None, None]], dim=1)
    place = torch.tensor(ids.shape[1] - 1)
    spoken = []
    for number in range(model.config.thought_length):
        logits, _ = full(embeds)
        uniform = layout.uniforms(0, torch.tensor(0), place, number, torch.tensor(which))
        token = layout.draw(logits, uniform, model.config.temperature)
        spoken.append(logits.log_softmax(-1)[token])
        embeds = torch.cat([embeds, embed(token)[None, None]], dim=1)
    logits, after = full(torch.cat([embeds, model.end[None, None]], dim=1))
    return base, logits, model.mixing(hidden, after), torch.stack(spoken).sum()


def places(options: argparse.Namespace) -> Tensor:
    """Return the columns of a training window that are thought at, (P,)."""
    return torch.linspace(options.window // 4, options.window - 2, options.positions).long()


def step(model: ThoughtForCausalLM, window: Tensor, options: argparse.Namespace) -> Tensor:
    """Return the loss of a training step over many positions at once, after its backward pass."""
    model.zero_grad()
    thoughts = model.think(window, positions=places(options)[None], thoughts=options.thoughts)
    targets = window[0, places(options) + 1]
    log_p = thoughts.mixed_logits()[0, :, :, 0].log_softmax(-1)
    chosen = log_p.gather(-1, targets[:, None, None].expand(-1, options.thoughts, 1))
    loss = -chosen.mean() - thoughts.log_probs.sum(-1).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach().double()


def alone_step(model: ThoughtForCausalLM, window: Tensor, options: argparse.Namespace) -> Tensor:
    """Return the same loss from full forward passes, one thought after another."""
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    count = options.positions * options.thoughts
    for place in places(options).tolist():
        for which in range(options.thoughts):
            base, logits, weight, spoken = thought_after(model, window[:, : place + 1], which)
            log_p = mix(base, logits, weight).log_softmax(-1)[window[0, place + 1]]
            loss = -(log_p + spoken) / count
            loss.backward()
            total += loss.detach()
    return total
