"""Training speed, memory and data efficiency beside two peers on the same machine, model, data, tokens and threads.

Peers: a plain loop in nanoGPT's manner (written here: fused AdamW, autocast, torch.compile, all logits at once) and
transformers.Trainer. Each engine runs in a process of its own, several times in turn; medians are compared.

    python scripts/bench_train.py --shape nano --repeats 3
    python scripts/bench_train.py --shape 25m --dtype bfloat16 --compile on
    python scripts/bench_train.py --device cuda --shape 25m --dtype bfloat16 --compile on        # prints MFU
    python scripts/bench_train.py --tokens-to-loss --seeds 5                                    # Muon against AdamW
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ENGINES = ("ours", "plain", "trainer")
# vocabulary, width, SwiGLU, layers, heads, rows, tokens in a row
SHAPES = {
    "tiny": (1024, 64, 192, 2, 2, 16, 64),
    "nano": (1024, 128, 384, 4, 4, 16, 128),
    "25m": (32000, 216, 864, 11, 3, 4, 256),
}
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4 ": 121.0, "4090": 165.0}  # dense bfloat16
LR, MUON_LR, WARMUP_SHARE, DECAY, CLIP, BETAS = 3e-3, 0.02, 0.05, 0.1, 1.0, (0.9, 0.95)
SKIPPED = 3  # steps before timing starts; compiled ones are skipped until the choice is made


def main() -> None:
    """Compare, or be one engine of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="off", help="of ours and of the plain loop")
    parser.add_argument("--method", choices=("adamw", "muon"), default="adamw", help="of ours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens-to-loss", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.75, help="share of the baseline's tokens that ours gets")
    parser.add_argument("--cache", default="outputs/.cache/bench")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if options.engine:
        print(json.dumps(run_engine(options)))
    elif options.tokens_to_loss:
        compare_losses(options)
    else:
        compare_speed(options)


def compare_speed(options: argparse.Namespace) -> None:
    """Run the engines in turn, and print medians and ratios."""
    prepare(options)  # tokenise once, outside every measurement
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
    for _ in range(options.repeats):
        for engine in ENGINES:
            command = [sys.executable, __file__, "--engine", engine]
            for name in ("shape", "steps", "threads", "dtype", "compile", "method", "device", "cache"):
                command += [f"--{name}", str(getattr(options, name))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{engine} failed:\n{done.stderr[-2000:]}")
            found[engine].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        engine: {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "note"}
        for engine, runs in found.items()
    }
    for engine, values in medians.items():
        print(
            f"{engine:8} {values['tokens_per_second']:10,.0f} tok/s  {values['cpu_ms']:8.1f} CPU-ms a step  "
            f"{values['peak_mb']:8,.0f} MB peak  data {values['data_share']:.2%}  loss {values['loss']:.4f}"
            + (f"  MFU {values['mfu']:.1%}" if values["mfu"] else "")
        )
    ours = medians["ours"]
    for peer in ENGINES[1:]:
        print(
            f"ours / {peer}: tokens per second x {ours['tokens_per_second'] / medians[peer]['tokens_per_second']:.3f}, "
            f"CPU time a step x {ours['cpu_ms'] / medians[peer]['cpu_ms']:.3f}, "
            f"peak memory x {ours['peak_mb'] / medians[peer]['peak_mb']:.3f}"
        )
    notes = {run["note"] for run in found["ours"] if run["note"]}
    print(json.dumps({"options": vars(options), "medians": medians, "notes": sorted(notes)}))


def prepare(options: argparse.Namespace, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return (model, training mixture, tokenizer) of the shape, seeded; the text is tokenised once into the cache."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from agent_forge import data
    from agent_forge.config import DataConfig

    vocabulary, width, inner, layers, heads, rows, length = SHAPES[options.shape]
    settings = DataConfig(
        text=["sotu"], max_text_bytes=4_000_000, cache=options.cache, rows=[], near_duplicates=0.0, sampling="random"
    )
    folder = Path(options.cache) / f"tokenizer-{vocabulary}"
    if not (folder / "tokenizer.json").exists():
        data.train_tokenizer(data.documents(settings, "train"), vocabulary).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    mixture = data.Mixture(
        {"text": data.TextSource(settings, tokenizer, "train")}, {"text": 1.0}, rows=rows, length_tokens=length,
        seed=seed, name="bench",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=max(length, 512),
            tie_word_embeddings=False, initializer_range=0.02 if width > 200 else 0.05,
        )
    )  # fmt: skip
    return model, mixture, tokenizer


class Clock:
    """Wall and CPU time of every step, and the time spent on data."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.stamps: list[tuple[float, float]] = []
        self.data: list[float] = []

    def tick(self) -> None:
        """Note the end of a step."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.stamps.append((time.perf_counter(), time.process_time()))

    def timed(self, mixture: Any) -> Any:
        """Return the mixture with its batches timed."""
        build = mixture.batch

        def batch(step: int) -> Any:
            started = time.perf_counter()
            found = build(step)
            self.data.append(time.perf_counter() - started)
            return found

        mixture.batch = batch
        return mixture

    def result(self, options: argparse.Namespace, model: Any, loss: float, note: str = "") -> dict[str, Any]:
        """Return the figures of one run."""
        skipped = min(SKIPPED if options.compile == "off" else 2 * SKIPPED + 4, len(self.stamps) - 3)
        pairs = list(zip(self.stamps[skipped:-1], self.stamps[skipped + 1 :], strict=True))
        wall = statistics.median(b[0] - a[0] for a, b in pairs)
        processor = statistics.median(b[1] - a[1] for a, b in pairs)
        _, width, _, layers, _, rows, length = SHAPES[options.shape]
        rate = rows * length / wall
        flop = 6 * sum(p.numel() for p in model.parameters()) + 12 * layers * width * length
        return {
            "tokens_per_second": rate, "cpu_ms": 1e3 * processor, "loss": loss, "note": note,
            "peak_mb": peak_bytes(options.device) / 1e6,
            "data_share": statistics.median(self.data[-len(pairs) :]) / wall if self.data else 0.0,
            "mfu": rate * flop / (peak_flops() or 1e30) if options.device == "cuda" else 0.0,
        }  # fmt: skip


def peak_bytes(device: str) -> float:
    """Return the peak memory of the process, or of the accelerator."""
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def peak_flops() -> float:
    """Return the accelerator's dense bfloat16 peak, 0 when it is not known."""
    import torch

    name = torch.cuda.get_device_name()
    return next((1e12 * tera for key, tera in PEAK_TFLOPS.items() if key in name), 0.0)


def run_engine(options: argparse.Namespace, seed: int = 0) -> dict[str, Any]:
    """Train with one engine and return its figures."""
    from agent_forge.core import device

    device.set_threads(options.threads)
    model, mixture, _ = prepare(options, seed)
    model.to(options.device)
    clock = Clock(options.device)
    engine = {"ours": ours, "plain": plain, "trainer": trainer}[options.engine]
    loss, note = engine(model, clock.timed(mixture), options, clock, seed)
    return clock.result(options, model, loss, note)


def ours(model: Any, mixture: Any, options: argparse.Namespace, clock: Clock, seed: int) -> tuple[float, str]:
    """Train by learn.train; return the last loss and what was decided on the way."""
    from dataclasses import replace

    import torch

    from agent_forge.checkpoint import Workspace
    from agent_forge.config import OptimConfig
    from agent_forge.core.events import EventLog
    from agent_forge.learn import lm_loss, train
    from agent_forge.learn.loop import PLAIN

    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        events = EventLog(None, "bench", (lambda e: notes.append(e.message) if e.message else None,))
        optim = OptimConfig(
            method=options.method, lr=LR, muon_lr=MUON_LR, warmup_steps=round(WARMUP_SHARE * options.steps),
            cooldown_share=0.5 if options.tokens_to_loss else 0.3, weight_decay=DECAY, beta1=BETAS[0], beta2=BETAS[1],
            clip_norm=CLIP, average_share=0.1 if options.tokens_to_loss else 0.0,
        )  # fmt: skip
        records = train(
            model, mixture, lm_loss, stage="bench", steps=options.steps, optim=optim,
            out=Workspace(Path(folder) / "out", phase="bench", seed=seed, config={}), events=events, seed=seed,
            on_step=lambda *_: clock.tick(), device=options.device,
            dtype=getattr(torch, options.dtype), runtime=replace(PLAIN, compile=options.compile),
        )  # fmt: skip
    return records[-1].loss, "; ".join(notes)


def plain(
    model: Any, mixture: Any, options: argparse.Namespace, clock: Clock, seed: int, lr: float = LR
) -> tuple[float, str]:
    """Train in nanoGPT's manner: one file, no state, no checks; return the last loss."""
    import math

    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}], lr=lr, betas=BETAS,
        fused=True,
    )  # fmt: skip
    called = model if options.compile == "off" else torch.compile(model)
    dtype = getattr(torch, options.dtype)
    warmup = max(round(WARMUP_SHARE * options.steps), 1)
    model.train()
    loss = torch.zeros(())
    for step in range(options.steps):
        share = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / options.steps)))
        for group in optimiser.param_groups:
            group["lr"] = lr * share
        batch = {key: value.to(options.device, non_blocking=True) for key, value in mixture.batch(step).items()}
        with torch.autocast(options.device, dtype=dtype, enabled=options.dtype != "float32"):
            logits = called(input_ids=batch["input_ids"], use_cache=False).logits
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        clock.tick()
    return float(loss.detach()), ""


def trainer(model: Any, mixture: Any, options: argparse.Namespace, clock: Clock, seed: int) -> tuple[float, str]:
    """Train by transformers.Trainer as its users do, with the same optimiser, clipping and precision."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = SHAPES[options.shape][5]

    class Rows(torch.utils.data.Dataset[Any]):
        """The same batches, row by row."""

        def __len__(self) -> int:
            return options.steps * rows

        def __getitem__(self, index: int) -> Any:
            step, row = divmod(index, rows)
            if not row:
                self.batch = mixture.batch(step)
            return {key: value[row] for key, value in self.batch.items()}

    class InOrder(Trainer):
        """Keeps the order of the rows."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Ticks(TrainerCallback):
        """Notes the time after each step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=rows, learning_rate=LR,
            lr_scheduler_type="cosine", warmup_steps=round(WARMUP_SHARE * options.steps), weight_decay=DECAY,
            adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=CLIP, optim="adamw_torch_fused",
            bf16=options.dtype == "bfloat16", use_cpu=options.device == "cpu", logging_steps=options.steps,
            save_strategy="no", report_to="none", disable_tqdm=True, seed=seed,
            torch_compile=options.compile == "on" and options.device == "cuda",
        )  # fmt: skip
        run = InOrder(model=model, args=settings, train_dataset=Rows(), callbacks=[Ticks()])
        done = run.train()
    return float(done.training_loss), ""


def compare_losses(options: argparse.Namespace) -> None:
    """Print, over seeds, the loss that AdamW (rate tuned on seed 100) ends with, and ours with a share of its tokens."""
    options.compile, options.dtype = "off", "float32"
    from agent_forge.core import device

    device.set_threads(options.threads)
    rates = {lr: final_loss(options, "plain", 100, options.steps, lr) for lr in (1e-3, 3e-3, 6e-3, 1e-2)}
    best = min(rates, key=rates.get)  # type: ignore[arg-type]
    print(f"AdamW tuned on a seed of its own: {', '.join(f'{lr:g}: {loss:.4f}' for lr, loss in rates.items())}")
    rows = []
    for seed in range(options.seeds):
        baseline = final_loss(options, "plain", seed, options.steps, best)
        found = final_loss(options, "ours", seed, round(options.budget * options.steps), LR)
        rows.append((baseline, found))
        print(
            f"seed {seed}: AdamW {baseline:.4f} after {options.steps} steps; ours {found:.4f} after {options.budget:.0%}"
        )
    differences = [found - baseline for baseline, found in rows]
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    print(
        f"ours - AdamW at {options.budget:.0%} of the tokens: {statistics.mean(differences):+.4f} nats, "
        f"standard deviation over seeds {spread:.4f}; {sum(d <= 0 for d in differences)} of {len(differences)} reach it"
    )


def final_loss(options: argparse.Namespace, engine: str, seed: int, steps: int, lr: float) -> float:
    """Train once and return the mean validation loss in nats."""
    import torch

    from agent_forge import data
    from agent_forge.config import DataConfig

    options = argparse.Namespace(**{**vars(options), "steps": steps, "method": "muon"})
    model, mixture, tokenizer = prepare(options, seed)
    clock = Clock("cpu")
    if engine == "plain":
        plain(model, mixture, options, clock, seed, lr)
    else:
        ours(model, mixture, options, clock, seed)
    settings = DataConfig(
        text=["sotu"], max_text_bytes=4_000_000, cache=options.cache, rows=[], near_duplicates=0.0, sampling="random"
    )
    ids = torch.from_numpy(data.TextSource(settings, tokenizer, "validation").windows(SHAPES[options.shape][6], 128))
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss)


if __name__ == "__main__":
    main()
