"""Three functions of somebody else, baked into SmolLM2 by one command, and sixty questions after it.

    python -m scripts.bench run own_tools outputs/smollm2 [--tools FILE --questions ROWS] [KEY=VALUE ...]

Runs `forge bake experiment=smollm2_tools` with a file of tools, then `forge eval -t own_tools` on
rows of questions. Without --tools they are three functions of the simulated services in bfcl-eval
(2026.3.23, `pip install --no-deps bfcl-eval`): an exchange rate, gallons to liters, the zip code of
a city. Nobody of this project wrote them. Two kinds of held-out questions are counted: those that
the phase makes from the schemas, in sentence frames that no training question has, and the sixty of
own_tools_questions.jsonl, which were written by hand before the first run (48 that need a tool, 12
that none answers). Right is a question whose tools really ran with the right results and whose
reply says them, or, where no tool fits, one that called nothing. A model that the phase's gate
refuses is asked all the same, and the result says that it was refused.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = "A user's three functions, baked into SmolLM2-135M by one command, are used rightly"
BAR = "at least 85% of 60 held-out questions right end to end, in 30 minutes of CPU time"
LEAST_SHARE, MOST_MINUTES, MOST_VOICE_NATS = 0.85, 30.0, 0.05
GATE_REFUSED = 3  # exit code of a phase whose gate refused the result
FUNCTIONS = '''"""Three functions of the Berkeley leaderboard's simulated services."""

from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.travel_booking import TravelAPI
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.vehicle_control import (
    VehicleControlAPI,
)

car, travel = VehicleControlAPI(), TravelAPI()
tools = [travel.compute_exchange_rate, car.gallon_to_liter, car.get_zipcode_based_on_city]
'''
QUESTIONS = Path(__file__).with_name("own_tools_questions.jsonl")
# Kinds of the phase's own held-out questions -> what they are called here.
KINDS = {"own": "made from the schemas", "own: no tool fits": "made, no tool fits"}


def run(arguments: Sequence[str] = ()) -> Result:
    """Bake, ask, print the shares, and return them."""
    parser = argparse.ArgumentParser(prog="own_tools", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("source", type=Path, help="the checkpoint to bake into")
    add("--tools", type=Path, help="a file of tools of your own")
    add("--questions", type=Path, default=QUESTIONS, help="rows: question, and the call")
    add("--work", type=Path, default=Path("outputs/own_tools"))
    add("settings", nargs="*", metavar="KEY=VALUE", help="settings of forge bake")
    args = parser.parse_intermixed_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    tools = args.tools or args.work / "their_tools.py"
    if args.tools is None:
        tools.write_text(FUNCTIONS, encoding="utf-8")
    baked = args.work / "baked"
    minutes = forge(
        "bake", "experiment=smollm2_tools", f"sources=[{args.source}]", f"tools=[{tools}]",
        f"out={baked}", *args.settings, allowed=(0, GATE_REFUSED),
    )[1]  # fmt: skip
    refused = not baked.exists()
    if refused:
        baked = baked.with_name(f"{baked.name}.rejected")
    metrics = json.loads((baked / "forge.json").read_text(encoding="utf-8"))["metrics"]
    scored, _ = forge(
        "eval", str(baked), "-t", "own_tools", f"tools=[{tools}]", f"eval.rows=[{args.questions}]",
        "-n", "60", "--json",
    )  # fmt: skip
    figures = _figures(metrics, json.loads(scored.splitlines()[-1]), minutes)
    figures += _kept(metrics, refused=refused)
    for figure in figures:
        print(f"{figure.claim}: {figure.figure} {figure.unit} {figure.interval or ''}")
    return Result(
        claim=CLAIM, topic="Tools", bar=BAR, n="60 + 60 + 20 questions", figures=figures,
        **bars_met(figures), **here("own_tools", arguments),
    )  # fmt: skip


def forge(*words: str, allowed: Sequence[int] = (0,)) -> tuple[str, float]:
    """Run a command; return its output and the minutes of CPU time that it took. A command that
    ends with another code than those allowed ends the bench.
    """
    print("forge", *words, flush=True)
    before, start = _child_seconds(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "agent_forge", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in allowed:
        raise SystemExit(done.returncode)
    minutes = (_child_seconds() - before) / 60
    print(f"{minutes:.1f} minutes of CPU time, {(time.monotonic() - start) / 60:.1f} by the clock")
    return done.stdout, minutes


def _child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _figures(metrics: dict[str, Any], score: dict[str, Any], minutes: float) -> list[Figure]:
    """Return the shares of right answers and the minutes, each with its bar where it has one."""
    baked, before = metrics["tools/own"]["value"], metrics["tools before/own"]["value"]
    figures = [
        Figure(
            claim=f"right, {name}", figure=round(metrics[f"tools/{kind}"]["value"], 3),
            interval=(metrics[f"tools/{kind}"]["low"], metrics[f"tools/{kind}"]["high"]),
            n=f"{metrics[f'tools/{kind}']['n']} questions",
            bar=f"at least {LEAST_SHARE}" if kind == "own" else "",
            met=baked >= LEAST_SHARE if kind == "own" else None,
        )
        for kind, name in KINDS.items()
    ]  # fmt: skip
    figures += [
        Figure(claim="the same questions, the parent with the tools listed", figure=round(before, 3)),
        Figure(
            claim="right, written by hand", figure=round(score["value"], 3),
            interval=(score["low"], score["high"]), n=f"{score['n']} questions",
            bar=f"at least {LEAST_SHARE}", met=score["value"] >= LEAST_SHARE, key="own_tools_hand",
        ),
        Figure(
            claim="CPU time of the bake", figure=round(minutes, 1), unit="minutes",
            bar=f"at most {MOST_MINUTES:.0f}", met=minutes <= MOST_MINUTES,
        ),
    ]  # fmt: skip
    return figures


def _kept(metrics: dict[str, Any], *, refused: bool) -> list[Figure]:
    """Return what the model kept: its way of answering plain questions, and the gate's verdict."""
    voice = metrics.get("voice change (nats per token)")
    figures = [
        Figure(
            claim="the gate on text and skills passed (1: yes)", figure=float(not refused),
            bar="passed", met=not refused,
        )
    ]  # fmt: skip
    if voice is not None:
        figures.append(
            Figure(
                claim="KL to the parent on plain questions", figure=round(voice, 3),
                unit="nats per token", bar=f"below {MOST_VOICE_NATS}", met=voice < MOST_VOICE_NATS,
            )
        )  # fmt: skip
    return figures
