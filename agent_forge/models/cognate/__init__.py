"""Cognate: a looped transformer that decides per token how often to pass its stack, with a memory bank.

    model.py     the stack run r = 1..R times, exits, the vocabulary head
    layers.py    config, attention, SwiGLU, one layer, the halting head
    memory.py    trainable and written slots, and how they are read
    loss.py      the expected loss over exits, and the costs of halting and memory

What other rooms need is named here; transformers learns of the model type through `register`.
"""

from agent_forge.models.cognate.layers import CognateConfig
from agent_forge.models.cognate.memory import MemoryState
from agent_forge.models.cognate.model import CognateForCausalLM, CognateModel, register

__all__ = ["CognateConfig", "CognateForCausalLM", "CognateModel", "MemoryState", "register"]
