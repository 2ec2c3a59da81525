"""Scaffolds and decoders: settings that the agent's run time follows; the winner's go into the
manifest.
"""

from collections.abc import Sequence
from typing import Any

from agent_forge.phases.adas.pool.technique import RunTime

Examples = Sequence[tuple[str, str]]


def _prompt(text: str) -> dict[str, Any]:
    return {"scaffold": {"name": "chain_of_thought", "prompt": text}}


def _drafts(prompt: str, *drafts: str) -> dict[str, Any]:
    """Return the scaffold that asks for drafts, and for the answer with `prompt`."""
    return {"scaffold": {"name": "drafts", "prompt": prompt, "drafts": list(drafts)}}


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
    RunTime("top_k", "decoding", "sample from the four likeliest tokens",
            lambda _: {"decoder": {"temperature": 1.0, "top_k": 4}},
            "Fan et al. 2018, arXiv:1805.04833"),
    RunTime("min_p", "decoding", "sample from tokens with a fifth of the likeliest one's chance",
            lambda _: {"decoder": {"temperature": 1.0, "min_p": 0.2}},
            "Nguyen et al. 2024, arXiv:2407.01082"),
    RunTime("typical", "decoding", "sample from the tokens of typical surprise",
            lambda _: {"decoder": {"temperature": 1.0, "typical_p": 0.3}},
            "Meister et al. 2022, arXiv:2202.00666"),
    RunTime("grammar", "decoding", "let only calls through that fit their tool's schema",
            lambda _: {"grammar": "calls"}, "Willard & Louf 2023, arXiv:2307.09702"),
    RunTime("call_gate", "decoding", "begin no call of less than nine tenths of the chance",
            lambda _: {"decoder": {"call_gate": 0.9}},
            "Chow 1970, IEEE Transactions on Information Theory 16"),
    RunTime("re_reading", "scaffold", "say the question twice",
            lambda _: _drafts("{question}\nRead the question again: {question}"),
            "Xu et al. 2023, arXiv:2309.06275"),
    RunTime("plan_then_answer", "scaffold", "write a plan in a message of its own, then follow it",
            lambda _: _drafts("{question}\nFollow this plan: {draft}",
                              "{question}\nWrite a short plan. Do not answer yet."),
            "Khot et al. 2022, arXiv:2210.02406"),
    RunTime("self_refine", "scaffold", "answer, then correct the answer",
            lambda _: _drafts("{question}\nA first answer was: {draft}\nCorrect it, then answer.",
                              "{question}"),
            "Madaan et al. 2023, arXiv:2303.17651"),
    RunTime("self_check", "scaffold", "answer, ask what would show an error, then answer again",
            lambda _: _drafts("{question}\nCheck this first: {draft}", "{question}",
                              "{question}\nThe answer was: {draft}\nAsk one question that checks it."),
            "Dhuliawala et al. 2023, arXiv:2309.11495"),
    RunTime("nearest_shots", "scaffold", "show the two solved examples nearest to the question",
            lambda examples: {"scaffold": {"name": "few_shot", "nearest": 2,
                                           "examples": [list(pair) for pair in examples]}},
            "Liu et al. 2021, arXiv:2101.06804"),
    RunTime("best_by_execution", "scaffold", "run the calls of three sampled replies, and take the "
            "result that most of them have",
            lambda _: {"scaffold": {"name": "best_by_execution", "samples": 3}},
            "Shi et al. 2022, arXiv:2204.11454"),
    RunTime("early_stop", "scaffold", "sample up to five answers until two agree",
            lambda _: {"scaffold": {"name": "self_consistency", "samples": 5, "stop_after": 2}},
            "Li et al. 2024, arXiv:2401.10480"),
)  # fmt: skip
