"""How long from the command to the first word of `forge chat`, beside the time the parts take.

    python -m scripts.bench run first_token outputs/smollm2 [--packed DIR] [--turns 5]

Reads a checkpoint of float weights and, with --packed, a compressed or ternary one; without it the
model's matrices are coded as ternary codes with an 8-bit embedding into --work first (speed needs
no quality). Each turn runs `forge chat DIR "…"` as a process of its own, for every case in turn,
and reads its output byte by byte: the figure is the time of the first byte of the answer. Beside it
stand the first token through torch (--engine torch), and the parts as the process itself measures
them: imports, checking the hashes, opening the model, reading the prompt. Files are in the page
cache, as after a first run. Refuses to judge on a machine that is busy (PSI above --most-pressure),
because then the figure is the neighbours'. The processes get no OMP_NUM_THREADS: it could keep them
on one core.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.bench.result import ROOT, Figure, Result, bars_met, here

CLAIM = '`forge chat DIR "…"`: the first word of a 135M model comes soon after the command'
BAR = "3 s with float weights, 1 s packed, on two quiet cores"
BARS_SECONDS = {"float weights": 3.0, "packed": 1.0}
QUESTION = "What is the capital of France?"
PARTS = """
import json, sys, time
start = time.perf_counter()
marks = {}
def mark(name):
    global start
    now = time.perf_counter()
    marks[name], start = now - start, now
import agent_forge.agent.chat, agent_forge.cli.app
mark("imports")
from agent_forge import checkpoint
opened = checkpoint.open(sys.argv[1])
mark("checking the hashes")
from agent_forge.agent import Agent
agent = Agent.from_checkpoint(sys.argv[1])
mark("opening the model, hashes again")
events = iter(agent.live([{"role": "user", "content": sys.argv[2]}]))
next(events)
mark("reading the prompt")
print(json.dumps(marks))
"""


def environment() -> dict[str, str]:
    """Return the environment of the processes: this tree's package, and every core of theirs."""
    others = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return {**others, "PYTHONPATH": str(ROOT)}


def first_byte_seconds(directory: Path, engine: str) -> float:
    """Return the time from the start of `forge chat` to the first byte of its answer."""
    command = [
        sys.executable, "-m", "agent_forge", "chat", str(directory), QUESTION,
        "--engine", engine, "--max-new-tokens", "4",
    ]  # fmt: skip
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(), bufsize=0
    ) as child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        seconds = time.perf_counter() - start
        child.stdout.read()
    if not first or child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    return seconds


def parts(directory: Path) -> dict[str, float]:
    """Return the seconds of each part, measured inside one process."""
    command = [sys.executable, "-c", PARTS, str(directory), QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    return {str(k): float(v) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}


def packed_copy(source: Path, target: Path) -> Path:
    """Return a compressed checkpoint of the model in `source`, made by plain rounding once."""
    if (target / "forge.json").exists():
        return target
    from agent_forge import checkpoint, codecs, models
    from agent_forge.models import compressed

    model, tokenizer = models.load(source), models.load_tokenizer(source)
    coded = {
        name: codecs.encode("intk", weight, {"bits": 8, "group": 0})
        if "embed" in name
        else codecs.encode("ternary", weight, {"group": 64})
        for name, weight in compressed.coded_tensors(model).items()
    }
    small = compressed.compress(model, coded)
    checkpoint.write(
        target, lambda folder: models.save(small, tokenizer, folder), phase="compress", seed=0,
        config={}, parents=[checkpoint.open(source)], name="first_token",
    )  # fmt: skip
    return target


def pressure() -> float:
    """Return the share of the last ten seconds in which something waited for a core, in percent."""
    file = Path("/proc/pressure/cpu")
    if not file.exists():
        return 0.0
    return float(file.read_text().split("avg10=")[1].split()[0])


def run(arguments: Sequence[str] = ()) -> Result:
    """Measure every case in turn, print a line each, and return the medians."""
    parser = argparse.ArgumentParser(prog="first_token", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("source", type=Path, help="a checkpoint of float weights")
    add("--packed", type=Path, default=None)
    add("--work", type=Path, default=Path("outputs/first_token"))
    add("--turns", type=int, default=5)
    add("--most-pressure", type=float, default=10.0)
    args = parser.parse_args(arguments)
    packed = args.packed or packed_copy(args.source, args.work / "packed")
    cases = {
        "float weights": (args.source, "auto"),
        "packed": (packed, "auto"),
        "float weights through torch": (args.source, "torch"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    busy = 0.0
    for turn in range(args.turns + 1):  # the first turn fills the page cache
        for name, (directory, engine) in cases.items():
            busy = max(busy, pressure() if turn == 0 else busy)
            measured = first_byte_seconds(directory, engine)
            if turn:
                seconds[name].append(measured)
            print(f"{name}: {measured:.2f} s{'' if turn else ' (not counted)'}", flush=True)
    is_quiet = busy <= args.most_pressure
    figures = [_figure(name, values, is_quiet) for name, values in seconds.items()]
    figures += [
        Figure(claim=f"{case}: {part}", figure=round(value, 3), unit="s", n="one process")
        for case in BARS_SECONDS
        for part, value in parts(cases[case][0]).items()
    ]
    note = "" if is_quiet else f"the machine was busy (CPU pressure {busy:.0f}%): not judged"
    for figure in figures:
        print(f"{figure.claim}: {figure.figure} {figure.unit} {figure.bar}")
    return Result(
        claim=CLAIM, topic="Chat", bar=BAR, n=f"{args.turns} processes per case", note=note,
        **bars_met(figures), figures=figures, **here("first_token", arguments),
    )  # fmt: skip


def _figure(name: str, values: Sequence[float], is_quiet: bool) -> Figure:
    """Return the median of a case with its range."""
    median = statistics.median(values)
    bar = BARS_SECONDS.get(name)
    return Figure(
        claim=f"first word, {name}", figure=round(median, 2), unit="s",
        n=f"median of {len(values)} processes, {min(values):.2f} to {max(values):.2f} s",
        bar="" if bar is None else f"at most {bar:.0f} s",
        met=None if bar is None or not is_quiet else median <= bar,
        key=f"first_token_{name.replace(' ', '_')}",
    )  # fmt: skip
