"""How much of a phase each of its stages takes: the weights of progress.

Only ratios count, and they are estimates: of the default settings' steps and tokens, and of what
gates and measurements took beside them in small runs. Another budget has other ratios, so a bar may
go faster through one stage than through the next; it never goes back. A stage that is missing here
takes half of what is left of its phase.
"""

from collections.abc import Mapping

# Phase -> seconds, of the default run on two cores (results/run_all.json).
PHASE_SECONDS: Mapping[str, float] = {
    "cognate": 622.0, "evomerge": 191.0, "quietstar": 52.0, "bitnet": 129.0, "train": 116.0,
    "bake": 179.0, "adas": 120.0, "compress": 30.0,
}  # fmt: skip
GATE = {"gate: parent": 4.0, "gate: child": 8.0}
# Phase -> stage -> parts of the phase's time, in the order of the stages.
STAGE_SECONDS: Mapping[str, Mapping[str, float]] = {
    "cognate": {
        "trunk": 70.0, "reasoning": 6.0, "memory_integration": 6.0, "adaptive_computation": 6.0,
        "longer": 4.0, **GATE,
    },
    "evomerge": {"generations": 35.0, "random search (items)": 53.0, **GATE},
    "quietstar": {"think": 88.0, **GATE},
    "bitnet": {"compensate": 10.0, "distil": 78.0, **GATE},
    "train": {
        "adapt_1": 7.0, "adapt_2": 7.0, "adapt_3": 7.0, "chaos_1": 5.0, "chaos_2": 5.0,
        "chaos_3": 5.0, "dream_1": 7.0, "dream_2": 7.0, "self_model": 5.0, "settle": 33.0, **GATE,
    },
    "bake": {"traces": 25.0, "bake": 43.0, "plain": 20.0, **GATE},
    "adas": {
        **{f"expert-{domain}-{kind}": 5.0 for domain in ("text", "reasoning", "tools", "memory")
           for kind in ("svf", "task")},
        "adas": 48.0, **GATE,
    },
    "compress": {"calibrate": 20.0, "code": 40.0, "allocate": 10.0, "curve": 18.0, **GATE},
}  # fmt: skip
