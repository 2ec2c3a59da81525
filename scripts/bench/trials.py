"""Trainings that several benches compare: each done once, kept in a file, scored on held-out rows.

A trial is one run of the train phase from one parent. Its record is a line of a file, by the
settings that made it, so that a killed bench goes on where it stopped and other settings start
afresh.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_forge import checkpoint, data, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import PhaseConfig
from agent_forge.config.compose import compose
from agent_forge.core import device, registry
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import numpy_generator
from agent_forge.evaluate import row_nll
from agent_forge.phases import PhaseRun
from agent_forge.phases.train import STAGES, Config

KINDS = ("text", "reasoning", "tools")
IGNORE = -100
# What every trial sets: nothing is measured within it, and no plain run stands beside it.
BARE = (
    "baseline=false", "only_if_better=false", "measure.text_items=16", "measure.tasks=[]", "measure.probe_rows=1",
    "measure.probe_tokens=16", "measure.twin_steps=0", "runtime.device=cpu", "runtime.dtype=float32",
    "runtime.compile=off",
)  # fmt: skip
# A parent and trials that take seconds, to try a bench out.
SMOKE = (
    "model.hidden_size=64", "model.intermediate_size=128", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "model.memory_slots=16", "model.written_slots=8",
    "model.vocab_size=512", "trunk.rows=4", "trunk.length_tokens=96", "generated_rows=200",
    "tokenizer_rows=100",
)  # fmt: skip
SMOKE_DATA = "data.max_text_bytes=600000"
SMOKE_BITNET = ("linear.group_size=32", "init.rows=4", "train.optim.warmup_steps=1", SMOKE_DATA)


def add_arguments(parser: argparse.ArgumentParser, *, seeds: int) -> None:
    """Add what every bench of trials takes."""
    add = parser.add_argument
    add("--parent", type=Path, help="checkpoint to train further; without one a trunk is made")
    add("--trunk-steps", type=int, default=700, help="steps of that trunk")
    add("--seeds", type=int, default=seeds)
    add("--rows", type=int, default=16, help="windows per step")
    add("--length", type=int, default=128, help="tokens per window")
    add("--windows", type=int, default=96, help="held-out windows of each kind of data")
    add(
        "--work", type=Path, default=Path("outputs/bench_trials"), help="finished trials and parent"
    )
    add("--smoke", action="store_true", help="two seeds of a tiny model, in seconds")


def settled(options: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments, cut down with --smoke; threads are set to one."""
    device.set_threads(1)
    if options.smoke:
        small = {"seeds": 2, "rows": 2, "length": 64, "windows": 4, "trunk_steps": 4}
        options = argparse.Namespace(**{**vars(options), **small, "work": options.work / "smoke"})
    return options


class Trials:
    """The parent, and trainings from it by settings, each done once.

    place: where trials train and are scored; anything but cpu computes in bfloat16.
    """

    def __init__(self, options: argparse.Namespace, place: str = "cpu") -> None:
        self.options, self.work, self.place = options, options.work, device.pick_device(place)
        self.work.mkdir(parents=True, exist_ok=True)
        self.file = self.work / "trials.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.known = {line["key"]: line["record"] for line in map(json.loads, lines)}
        self.parent = checkpoint.open(options.parent or self._trunk())
        self.tokenizer = models.load_tokenizer(self.parent)
        self.rows: dict[str, list[tuple[list[int], list[bool]]]] = {}

    def once(self, key: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the record of `compute()`, computed once per key, parent and shape of batches."""
        options = self.options
        whole = {
            **key, "parent": self.parent.id, "rows": options.rows, "length": options.length,
            "windows": options.windows,
        }  # fmt: skip
        if self.place.type != "cpu":
            whole["device"] = str(self.place)
        name = json.dumps(whole, sort_keys=True)
        if name not in self.known:
            record = compute()
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"key": name, "record": record}) + "\n")
            self.known[name] = record
            print(f"{json.dumps(key)}: {json.dumps(record)}", flush=True)
        return self.known[name]

    def settings(self, seed: int, overrides: Sequence[str], place: Path) -> Config:
        """Return the settings of a trial."""
        options = self.options
        shape = [f"batch_rows={options.rows}", f"length_tokens={options.length}"]
        more = [SMOKE_DATA, "mix_rows=60", "dream.windows=4"] if options.smoke else []
        if self.place.type != "cpu":
            more += [f"runtime.device={self.place}", "runtime.dtype=bfloat16"]
        return compose(
            "train", Config,
            [*BARE, *shape, *more, *overrides, f"seed={seed}", f"out={place}"],
        )  # fmt: skip

    def train(
        self, seed: int, overrides: Sequence[str], parent: Checkpoint | None = None, name: str = "t"
    ) -> tuple[Checkpoint, float]:
        """Train once; return the checkpoint and the seconds of processor time."""
        config = self.settings(seed, overrides, self.work / name)
        return self.run("train", config, [parent or self.parent])

    def run(
        self, phase: str, config: PhaseConfig, sources: list[Checkpoint]
    ) -> tuple[Checkpoint, float]:
        """Run a phase afresh; return the checkpoint and the seconds of processor time."""
        shutil.rmtree(config.out, ignore_errors=True)
        shutil.rmtree(self.work / ".forge", ignore_errors=True)
        out = Workspace(config.out, phase=phase, seed=config.seed, config=config, parents=sources)
        started = time.process_time()
        run = registry.load(f"agent_forge.phases.{phase}", "run", "phase module").run
        run(PhaseRun(config, sources, out, EventLog(None, phase)))
        return checkpoint.open(config.out), time.process_time() - started

    def losses(self, child: Checkpoint) -> dict[str, float]:
        """Return held-out nats per learned token, kind by kind."""
        model = models.load(child, device=self.place).eval()
        by_kind = {}
        for kind in KINDS:
            pairs = row_nll(model, self.held_out(kind))
            by_kind[kind] = float(pairs[:, 0].sum() / pairs[:, 1].sum())
        return by_kind

    def held_out(self, kind: str) -> list[tuple[list[int], list[bool]]]:
        """Return held-out windows of a kind of data: ids, and which of them are scored."""
        if kind not in self.rows:
            options, config = self.options, self.settings(0, [], self.work / "unused")
            source = data.source(kind, config.data, self.tokenizer, "validation", 0, rows=400)
            generator = numpy_generator(0, "bench", "held out", kind)
            windows = [source.take(generator, options.length) for _ in range(options.windows)]
            self.rows[kind] = [
                (ids.tolist(), [False, *(labels[1:] != IGNORE).tolist()])
                for ids, labels in windows
                if np.any(labels[1:] != IGNORE)
            ]
        return self.rows[kind]

    def _trunk(self) -> Path:
        """Return a trunk, made where it is missing."""
        from agent_forge.phases.cognate import Config as CognateConfig

        options, place = self.options, self.work / f"parent-{self.options.trunk_steps}"
        if not (place / "trunk").is_dir():
            more = [*SMOKE, SMOKE_DATA] if options.smoke else []
            config = compose(
                "cognate", CognateConfig,
                [*more, f"trunk.steps={options.trunk_steps}", "branch.steps=1", "probe_items=2",
                 f"out={place}"],
            )  # fmt: skip
            out = Workspace(config.out, phase="cognate", seed=0, config=config, parents=[])
            run = registry.load("agent_forge.phases.cognate", "run", "phase module").run
            run(PhaseRun(config, [], out, EventLog(None, "cognate")))
        return place / "trunk"


def steps_of(stages: Mapping[str, float]) -> list[str]:
    """Return overrides that give the named stages their steps and leave the others out."""
    return [f"steps.{stage}={round(stages.get(stage, 0))}" for stage in STAGES]


def shipped_steps(scale: float = 1.0) -> dict[str, float]:
    """Return the default steps of every stage, times `scale`, at least one each."""
    steps = compose("train", Config, ["out=o", "sources=[s]"]).steps
    return {stage: max(1, round(scale * getattr(steps, stage))) for stage in STAGES}
