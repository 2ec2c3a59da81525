"""Thought: a wrapper around any Hugging Face causal LM that can think before each token.

    model.py    the wrapper: think, generate
    chains.py   many thoughts at once behind one prefix
    layout.py   positions, masks and draws
    mixing.py   the head that weighs a thought

The names below are for other rooms; `register` makes the model type known to transformers.
"""

from agent_forge.models.thought.mixing import MixingHead, entropy_nats, mix
from agent_forge.models.thought.model import ThoughtConfig, ThoughtForCausalLM, Thoughts, register

__all__ = [
    "MixingHead",
    "ThoughtConfig",
    "ThoughtForCausalLM",
    "Thoughts",
    "entropy_nats",
    "mix",
    "register",
]
