"""Distil a real model to ternary weights and print its perplexity on held-out text: parent,
rounded, compensated, trained.

    python scripts/fetch_debian_text.py outputs/text/debian.jsonl
    python -m scripts.bench run bitnet outputs/smollm2 outputs/text/debian.jsonl --steps 400 --rows 4

Documents are split by a hash of their names: a tenth is held out and only scored, another twentieth
(dev) is what settings are chosen on (--dev), the rest is trained on. Initialisation and training
are the bitnet phase's; KEY=VALUE are its settings. The state lies in --work, so that a killed run
goes on. --after DIRECTORY --skip N begins, with other settings, where a run of N steps ended, whose
model is in DIRECTORY. On a machine with a GPU:

    python -m scripts.bench run bitnet outputs/smollm2 outputs/text/debian.jsonl --rows 64 --steps 20000 --score-every 1000 \
        runtime.device=cuda train.optim.lr=0.0005
"""

import argparse
import hashlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent_forge import models
from agent_forge.checkpoint import Workspace
from agent_forge.config.compose import compose
from agent_forge.core.errors import Interrupted
from agent_forge.core.events import Event, EventLog
from agent_forge.core.seeds import torch_generator
from agent_forge.models.ternary import ternarise
from agent_forge.phases import PhaseRun
from agent_forge.phases.bitnet import Config
from agent_forge.phases.bitnet.run import distil, start_compensated
from scripts.bench.perplexity import LENGTH, figures, scored, split_documents, windows
from scripts.bench.result import Figure, Result, here

CLAIM = "SmolLM2-135M with ternary weights keeps its perplexity after half an hour of distillation"
BAR = "at most 1.8 times fp32 after 30 CPU minutes of training"
MOST_RATIO, MOST_CPU_SECONDS = 1.8, 1800.0


class Windows:
    """Training batches.

    Windows tile the documents from their starts and come in a random order, once per epoch.
    """

    pure = True

    def __init__(
        self,
        rows: list[dict[str, str]],
        tokenizer: Any,
        length: int,
        batch_rows: int,
        seed: int,
        skip: int,
    ) -> None:
        pieces, rest = [], []
        for row in rows:
            ids = torch.tensor(tokenizer(row["text"] + "\n\n").input_ids)
            whole = len(ids) // length * length
            pieces.append(ids[:whole].view(-1, length))
            rest.append(ids[whole:])
        tail = torch.cat(rest)
        self.ids = torch.cat([*pieces, tail[: len(tail) // length * length].view(-1, length)])
        self.batch_rows, self.seed, self.skip = batch_rows, seed, skip

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return {"input_ids", "labels"} of a step."""
        step += self.skip
        places = torch.arange(step * self.batch_rows, (step + 1) * self.batch_rows)
        ids = torch.stack(
            [self.ids[self._order(int(p) // len(self.ids))[int(p) % len(self.ids)]] for p in places]
        )
        return {"input_ids": ids, "labels": ids}

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(
            len(self.ids), generator=torch_generator(self.seed, "bench_bitnet", epoch)
        )

    def fingerprint(self) -> str:
        """Return a name for the data."""
        return (
            hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()[:16]
            + f"-{self.batch_rows}-{self.skip}"
        )


class Bench:
    """A run: model, text, and the figures on the way."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        overrides = [
            f"out={args.work}/model",
            f"sources=[{args.model}]",
            f"train.steps={args.steps}",
        ]
        overrides += [
            f"train.rows={args.rows}",
            f"train.length_tokens={args.length}",
            *args.settings,
        ]
        self.config = compose("bitnet", Config, ["runtime.dtype=bfloat16", *overrides])
        device = self.config.runtime.device
        self.device = (
            "cuda"
            if device == "auto" and torch.cuda.is_available()
            else device.replace("auto", "cpu")
        )
        tokenizer = models.load_tokenizer(args.model)
        parts = split_documents(args.text)
        self.scored_ids = windows(parts["dev" if args.dev else "held"], tokenizer, args.windows).to(
            self.device
        )
        self.batches = Windows(
            parts["train"], tokenizer, args.length, args.rows, self.config.seed, args.skip
        )
        self.calibration = windows(parts["train"], tokenizer, self.config.init.rows)
        self.out = Workspace(
            f"{args.work}/model", phase="bitnet", seed=self.config.seed, config=self.config
        )
        self.out.save_every_seconds = self.config.runtime.save_every_seconds
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: setattr(self.out, "stop_signal", received))
        events = EventLog(None, "bitnet", (self._show,), interval_seconds=30)
        self.phase = PhaseRun(self.config, [], self.out, events)
        self.parent = models.load(args.model, device=self.device).requires_grad_(False)
        self.model = models.load(args.model, device=self.device)
        linear = self.config.linear
        ternarise(
            self.model,
            linear,
        )
        self.dtype = getattr(torch, self.config.runtime.dtype)
        known = self.out.remember_tensors(
            "parent", lambda: {"scores": scored(self.parent, self.scored_ids, self.dtype).cpu()}
        )
        self.base = known["scores"]
        self.last = 0.0
        self.spent = {"tokens": 0, "train_seconds": 0.0}
        self.reported: list[dict[str, Any]] = []

    def _show(self, event: Event) -> None:
        if event.kind in ("message", "warning") or (
            event.kind == "progress" and event.stage == "distil"
        ):
            values = {k: round(v, 3) for k, v in (event.metrics or {}).items()}
            print(
                f"  {event.stage} {event.step}/{event.total} {values} {event.message or ''}",
                file=sys.stderr,
                flush=True,
            )

    def report(self, name: str, **more: Any) -> None:
        """Print the perplexity of the model as it is now; measured once, also across restarts."""

        def measure() -> dict[str, Any]:
            training = self.model.training
            row = figures(scored(self.model.eval(), self.scored_ids, self.dtype).cpu(), self.base)
            self.model.train(training)
            return row

        row = {"model": name, **self.out.remember(f"scored-{name}", measure), **more}
        self.reported.append(row)
        print(json.dumps(row), flush=True)

    def __call__(self, record: Any, _: Any) -> None:
        """Print a row every so many steps.

        Seconds are CPU seconds of this process, without the time of scoring.
        """
        self.spent["tokens"] += record.tokens
        self.spent["train_seconds"] += time.process_time() - self.last
        done = record.step + 1
        if done % self.args.score_every == 0 and done < self.config.train.steps:
            self.report(f"step {done}", **self.spent)
        self.last = time.process_time()

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart goes on from."""
        return dict(self.spent)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.spent = dict(state)

    def run(self) -> None:
        """Initialise, distil, and keep the trained model in --work."""
        own = figures(self.base, self.base)
        print(
            json.dumps({"model": "parent", **own, "train_tokens": self.batches.ids.numel()}),
            flush=True,
        )
        if self.args.after:
            self.model.load_state_dict(models.load(self.args.after).state_dict())
            self.report(f"after {self.args.skip} steps")
        else:
            self.report("rounded")
        if self.config.init.method == "gptq" and not self.args.after:
            calibration = self.calibration.to(self.device)
            start_compensated(
                self.phase, self.parent, self.model, lambda: list(calibration.split(4))
            )
            self.report("compensated", cpu_seconds=round(time.process_time()))
        if not self.config.train.steps:
            return
        self.last = time.process_time()
        distil(self.phase, self.parent, self.model, self.batches, None, self)
        self.report("trained", **self.spent)
        models.save(
            self.model, models.load_tokenizer(self.args.model), Path(self.args.work) / "trained"
        )


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="bitnet", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model")
    add("text")
    add("settings", nargs="*", help="KEY=VALUE of the bitnet phase")
    add("--work", default="outputs/bench_bitnet")
    add("--steps", type=int, default=400)
    add("--rows", type=int, default=4, help="windows per step")
    add("--length", type=int, default=256, help="tokens per window")
    add(
        "--after",
        default="",
        help="directory of the model that an earlier run trained: begin there",
    )
    add("--skip", type=int, default=0, help="steps of batches that were seen already")
    add("--score-every", type=int, default=100, help="steps")
    add("--windows", type=int, default=16, help="scored windows of 512 tokens")
    add("--dev", action="store_true", help="score the documents that settings are chosen on")
    add("--threads", type=int, default=1)
    return parser.parse_intermixed_args(arguments)


def run(arguments: Sequence[str] = ()) -> Result:
    """Run what the arguments ask for; exit code 75 when it was interrupted and can go on."""
    args = options(arguments)
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    try:
        bench.run()
    except Interrupted as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        raise SystemExit(75) from None
    base = float(figures(bench.base, bench.base)["perplexity"])
    rows = [ratio_of(row, base) for row in bench.reported]
    last = bench.reported[-1]
    in_time = last.get("train_seconds", 0.0) <= MOST_CPU_SECONDS
    return Result(
        claim=CLAIM, topic="Ternary weights", bar=BAR, figure=last["ratio"],
        unit="x fp32 perplexity", interval=rows[-1].interval,
        n=f"{args.windows * (LENGTH - 1):,} held-out tokens",
        met=last["ratio"] <= MOST_RATIO and in_time, figures=rows, **here("bitnet", arguments),
    )  # fmt: skip


def ratio_of(row: dict[str, Any], base: float) -> Figure:
    """Return a reported row as a figure: the ratio to the parent's perplexity `base`."""
    spent = ""
    if "tokens" in row:
        spent = f", {row['tokens']:,} tokens, {row['train_seconds']:.0f} CPU s"
    return Figure(
        claim=f"{row['model']}{spent}", figure=row["ratio"], unit="x fp32 perplexity",
        interval=(row["low"] / base, row["high"] / base),
    )  # fmt: skip
