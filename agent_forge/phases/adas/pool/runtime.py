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
    RunTime("chain_of_thought", "scaffold", "ask to think step by step",
            lambda _: _prompt("Think step by step."), "Kojima et al. 2022, arXiv:2205.11916"),
    RunTime("plan_solve", "scaffold", "ask for a plan first",
            lambda _: _prompt("First make a plan, then follow it."),
            "Wang et al. 2023, arXiv:2305.04091"),
    RunTime("step_back", "scaffold", "ask for the principle first",
            lambda _: _prompt("What is asked in general? Then answer."),
            "Zheng et al. 2023, arXiv:2310.06117"),
    RunTime("few_shot", "scaffold", "show two solved examples",
            lambda examples: {"scaffold": {"name": "few_shot",
                                           "examples": [list(pair) for pair in examples[:2]]}},
            "Brown et al. 2020, arXiv:2005.14165"),
    RunTime("self_consistency", "scaffold", "vote over three sampled answers",
            lambda _: {"scaffold": {"name": "self_consistency", "samples": 3}},
            "Wang et al. 2022, arXiv:2203.11171"),
    RunTime("role", "scaffold", "give the agent a role",
            lambda _: {"system": "You answer exactly and briefly."},
            "Kong et al. 2023, arXiv:2308.07702"),
    RunTime("temperature", "decoding", "sample at a low temperature",
            lambda _: {"decoder": {"temperature": 0.3}}, "Ackley et al. 1985"),
    RunTime("nucleus", "decoding", "sample from the likeliest half of the mass",
            lambda _: {"decoder": {"temperature": 1.0, "top_p": 0.5}},
            "Holtzman et al. 2019, arXiv:1904.09751"),
)  # fmt: skip
