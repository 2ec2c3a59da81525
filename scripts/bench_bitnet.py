"""Distil a real model to ternary weights and print its perplexity on held-out text: parent, rounded, compensated, trained.

    python scripts/fetch_debian_text.py outputs/text/debian.jsonl
    python scripts/bench_bitnet.py outputs/smollm2 outputs/text/debian.jsonl --steps 400 --rows 4

Documents are split by a hash of their names: a tenth is held out and only scored, another twentieth (dev) is what settings
are chosen on (--dev), the rest is trained on. Initialisation and training are those of the bitnet phase; KEY=VALUE are its
settings. The state lies in --work: a killed run goes on. --after DIRECTORY --skip N begins, with other settings, where a run
of N steps ended, whose model is in DIRECTORY. On a machine with a GPU:

    python scripts/bench_bitnet.py outputs/smollm2 outputs/text/debian.jsonl --rows 64 --steps 20000 --score-every 1000 \
        runtime.device=cuda train.optim.lr=0.0005
"""

import argparse
import hashlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_compress import HELD_OUT, figures, scored, windows
from torch import Tensor

from agent_forge import models
from agent_forge.checkpoint import Workspace
from agent_forge.config.compose import compose
from agent_forge.core.errors import Interrupted
from agent_forge.core.events import Event, EventLog
from agent_forge.core.seeds import torch_generator
from agent_forge.models.ternary import TernarySettings, ternarise
from agent_forge.phases.bitnet import Config
from agent_forge.phases.bitnet.run import distil, start_compensated

DEV = 13  # of 256 hash values, after the held-out ones


def split_documents(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the documents of a file by what they are for: held (only scored), dev (settings are chosen on), train."""
    parts: dict[str, list[dict[str, str]]] = {"held": [], "dev": [], "train": []}
    for line in Path(text).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        place = hashlib.sha256(row["source"].encode()).digest()[0]
        parts["held" if place < HELD_OUT else "dev" if place < HELD_OUT + DEV else "train"].append(row)
    return parts


class Windows:
    """Training batches: windows that tile the documents from their starts, in a random order, once an epoch."""

    pure = True

    def __init__(
        self, rows: list[dict[str, str]], tokenizer: Any, length: int, batch_rows: int, seed: int, skip: int
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
        ids = torch.stack([self.ids[self._order(int(p) // len(self.ids))[int(p) % len(self.ids)]] for p in places])
        return {"input_ids": ids, "labels": ids}

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.ids), generator=torch_generator(self.seed, "bench_bitnet", epoch))

    def fingerprint(self) -> str:
        """Return a name for the data."""
        return hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()[:16] + f"-{self.batch_rows}-{self.skip}"


class Bench:
    """A run: model, text, and the figures on the way."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        given = [f"out={args.work}/model", f"sources=[{args.model}]", f"train.steps={args.steps}"]
        given += [f"train.rows={args.rows}", f"train.length_tokens={args.length}", *args.settings]
        self.config = compose("bitnet", Config, ["runtime.dtype=bfloat16", *given])
        device = self.config.runtime.device
        self.device = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
        tokenizer = models.load_tokenizer(args.model)
        parts = split_documents(args.text)
        self.scored_ids = windows(parts["dev" if args.dev else "held"], tokenizer, args.windows).to(self.device)
        self.batches = Windows(parts["train"], tokenizer, args.length, args.rows, self.config.seed, args.skip)
        self.calibration = windows(parts["train"], tokenizer, self.config.init.rows)
        self.out = Workspace(f"{args.work}/model", phase="bitnet", seed=self.config.seed, config=self.config)
        self.out.save_every_seconds = self.config.runtime.save_every_seconds
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: setattr(self.out, "stop_signal", received))
        self.events = EventLog(None, "bitnet", (self._show,), interval_seconds=30)
        self.parent = models.load(args.model, device=self.device).requires_grad_(False)
        self.model = models.load(args.model, device=self.device)
        linear = self.config.linear
        ternarise(self.model, TernarySettings(**{n: getattr(linear, n) for n in linear.__dataclass_fields__}))
        self.dtype = getattr(torch, self.config.runtime.dtype)
        kept = self.out.remember_tensors(
            "parent", lambda: {"scores": scored(self.parent, self.scored_ids, self.dtype).cpu()}
        )
        self.base = kept["scores"]
        self.last = 0.0
        self.spent = {"tokens": 0, "train_seconds": 0.0}

    def _show(self, event: Event) -> None:
        if event.kind in ("message", "warning") or (event.kind == "progress" and event.stage == "distil"):
            told = {k: round(v, 3) for k, v in (event.metrics or {}).items()}
            print(
                f"  {event.stage} {event.step}/{event.total} {told} {event.message or ''}", file=sys.stderr, flush=True
            )

    def report(self, name: str, **more: Any) -> None:
        """Print the perplexity of the model as it is now; measured once, also across restarts."""

        def measure() -> dict[str, Any]:
            training = self.model.training
            found = figures(scored(self.model.eval(), self.scored_ids, self.dtype).cpu(), self.base)
            self.model.train(training)
            return found

        print(json.dumps({"model": name, **self.out.remember(f"scored-{name}", measure), **more}), flush=True)

    def __call__(self, record: Any, _: Any) -> None:
        """Print a row every so many steps. Seconds are the process's own, and those of scoring are not counted."""
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
        print(json.dumps({"model": "parent", **own, "train_tokens": self.batches.ids.numel()}), flush=True)
        if self.args.after:
            self.model.load_state_dict(models.load(self.args.after).state_dict())
            self.report(f"after {self.args.skip} steps")
        else:
            self.report("rounded")
        if self.config.init.method == "gptq" and not self.args.after:
            calibration = self.calibration.to(self.device)
            start_compensated(
                self.config, self.parent, self.model, lambda: list(calibration.split(4)), self.out, self.events
            )
            self.report("compensated", cpu_seconds=round(time.process_time()))
        if not self.config.train.steps:
            return
        self.last = time.process_time()
        distil(self.config, self.parent, self.model, self.batches, None, self.out, self.events, self)
        self.report("trained", **self.spent)
        models.save(self.model, models.load_tokenizer(self.args.model), Path(self.args.work) / "trained")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of the bitnet phase")
    parser.add_argument("--work", default="outputs/bench_bitnet")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=4, help="windows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--after", default="", help="directory of the model that an earlier run trained: begin with it")
    parser.add_argument("--skip", type=int, default=0, help="steps of batches that were seen already")
    parser.add_argument("--score-every", type=int, default=100, help="steps")
    parser.add_argument("--windows", type=int, default=16, help="scored windows of 512 tokens")
    parser.add_argument("--dev", action="store_true", help="score the documents that settings are chosen on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    try:
        Bench(args).run()
    except Interrupted as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        raise SystemExit(75) from None


if __name__ == "__main__":
    main()
