"""Thought: a causal language model that can think before each token, around any Hugging Face causal LM.

    model.py    the wrapper: think, generate             layout.py   positions, masks and draws
    chains.py   many thoughts at once behind one prefix  mixing.py   the head that weighs a thought

What other rooms need is named here; transformers learns of the model type through `register`.
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
