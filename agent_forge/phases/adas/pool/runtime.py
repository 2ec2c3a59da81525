"""Scaffolds and decoders: settings that the agent's run time follows; the winner's go into the
manifest.
"""

from collections.abc import Sequence
from typing import Any

from agent_forge.phases.adas.pool.technique import RunTime

Examples = Sequence[tuple[str, str]]


def _prompt(text: str) -> dict[str, Any]:
    return {"scaffold": {"name": "chain_of_thought", "prompt": text}}


TECHNIQUES = (
    RunTime("chain_of_thought", "scaffold", "ask to think step by step", lambda _: _prompt("Think step by step.")),
    RunTime("plan_solve", "scaffold", "ask for a plan first", lambda _: _prompt("First make a plan, then follow it.")),
    RunTime("step_back", "scaffold", "ask for the principle first",
            lambda _: _prompt("What is asked in general? Then answer.")),
    RunTime("few_shot", "scaffold", "show two solved examples",
            lambda examples: {"scaffold": {"name": "few_shot", "examples": [list(pair) for pair in examples[:2]]}}),
    RunTime("self_consistency", "scaffold", "vote over three sampled answers",
            lambda _: {"scaffold": {"name": "self_consistency", "samples": 3}}),
    RunTime("role", "scaffold", "give the agent a role", lambda _: {"system": "You answer exactly and briefly."}),
    RunTime("temperature", "decoding", "sample at a low temperature", lambda _: {"decoder": {"temperature": 0.3}}),
    RunTime("nucleus", "decoding", "sample from the likeliest half of the mass",
            lambda _: {"decoder": {"temperature": 1.0, "top_p": 0.5}}),
)  # fmt: skip
