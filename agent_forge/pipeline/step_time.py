"""Time a training step on this machine, for the estimates of a dry run.

The step is that of a plain decoder with random weights and the widths of the model that a phase
will read. Two of few layers are timed, and the rest of the layers is added in proportion: the time
of a layer does not depend on its place, and a large model need not fit into memory for a dry run.
"""

import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from agent_forge.core.device import free_bytes, has_bfloat16, pick_device, pick_dtype, set_threads
from agent_forge.learn.precision import LEAST_GAIN, measured_gain

FEW, MORE = 1, 3  # layers of the two decoders
HEAD_WIDTH = 64
LENGTH = 128  # tokens per row
MOST_ROWS = 8  # The CPU gets no more.
# An accelerator is timed with as many rows as the phase has, for its small steps are the launches
# of kernels. Logits then take at most this share of its free memory, at this many bytes each.
SHARE_OF_FREE, LOGIT_BYTES = 0.25, 16
MOST_FLOP = 3e11  # a timed step has at most this many, where one row allows it
TRIALS = 4
MOST_SECONDS = 0.5  # seconds for the trials of a decoder, of which one always runs
FLOP_PER_PARAMETER_TOKEN = 6  # forward and backward
THREAD_GAIN = 0.85  # what each further thread adds to the first one's speed; 1.76 to 2.08 for two


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that an estimate uses.

    layers: how often a block runs per pass; a looped model runs each of its blocks several times.
    inner, keys, heads: of a plain decoder's block, the width of its SwiGLU, of its keys, and the
    attention heads; inner is 0 where the block is of another kind.
    """

    parameters: int
    hidden: int
    layers: int
    blocks: int
    words: int
    inner: int = 0
    keys: int = 0
    heads: int = 0


@cache
def seconds_per_token(
    shape: ModelShape, device: str, dtype: str, threads: int, step_tokens: int = 0
) -> float:
    """Return seconds per token, forward and backward.

    dtype: as in `runtime.dtype`; `auto` is what training would choose. threads: CPU threads, 0
    means all. step_tokens: tokens of a step of the phase, which decide on an accelerator alone.
    """
    place, before = pick_device(device), torch.get_num_threads()
    used = set_threads(threads)
    # The best time of one thread is what a busy machine disturbs least.
    torch.set_num_threads(1)
    try:
        few = _step_seconds(shape, FEW, place, dtype, step_tokens)
        more = _step_seconds(shape, MORE, place, dtype, step_tokens)
    finally:
        torch.set_num_threads(before)
    # Timing noise must not make a layer cost nothing.
    per_layer = max((more - few) / (MORE - FEW), 0.1 * more / MORE)
    gain = 1 + THREAD_GAIN * (used - 1) if place.type == "cpu" else 1.0
    return (few + (shape.layers - FEW) * per_layer) / gain


def _step_seconds(
    shape: ModelShape, layers: int, device: torch.device, dtype: str, step_tokens: int
) -> float:
    """Return the least seconds per token of a step of a decoder with this many layers."""
    model = _decoder(shape, layers).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = _rows(parameters, shape.words, device, step_tokens)
    tokens = torch.arange(rows * LENGTH, device=device).remainder(shape.words).view(rows, LENGTH)
    products = _products(dtype, model, tokens.numel(), device)
    best, end = float("inf"), time.perf_counter() + MOST_SECONDS
    for trial in range(1 + TRIALS):
        started = time.perf_counter()
        with torch.autocast(device.type, products, enabled=products != torch.float32):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        if trial:  # the first is the warm-up
            best = min(best, time.perf_counter() - started)
            if time.perf_counter() > end:
                break
    return best / tokens.numel()


def _rows(parameters: int, words: int, device: torch.device, step_tokens: int) -> int:
    """Return the rows of a timed step."""
    free = free_bytes(device)
    if not free:
        most = int(MOST_FLOP / (FLOP_PER_PARAMETER_TOKEN * parameters * LENGTH))
        return min(max(most, 1), MOST_ROWS)
    most = int(SHARE_OF_FREE * free / (LENGTH * words * LOGIT_BYTES))
    return min(max(most, 1), max(step_tokens // LENGTH, MOST_ROWS))


def _decoder(shape: ModelShape, layers: int) -> nn.Module:
    """Return a Llama of these widths whose layers have as many parameters as the model's blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden = shape.hidden + shape.hidden % 2  # rotary positions need pairs
    heads = hidden // HEAD_WIDTH if hidden % HEAD_WIDTH == 0 else 1
    per_block = (shape.parameters - shape.words * hidden) / shape.blocks
    attention = 4 * hidden * hidden
    config = LlamaConfig(
        vocab_size=shape.words,
        hidden_size=hidden,
        intermediate_size=max(round((per_block - attention) / (3 * hidden)), hidden),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def _products(dtype: str, model: nn.Module, tokens: int, device: torch.device) -> torch.dtype:
    """Return the dtype of products that training would take."""
    if dtype != "auto":
        return pick_dtype(dtype)
    if device.type != "cpu":
        faster = has_bfloat16(device)
    else:
        faster = measured_gain(model, tokens, device) >= LEAST_GAIN
    return torch.bfloat16 if faster else torch.float32
