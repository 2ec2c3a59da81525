"""Cognate: a looped transformer with a memory bank that chooses the number of passes per token.

    model.py     the stack run r = 1..R times, exits, the vocabulary head
    layers.py    config, attention, SwiGLU, one layer, the halting head
    memory.py    trainable and written slots, and how they are read
    loss.py      the expected loss over exits, and the costs of halting and memory

The names below are for other rooms; `register` makes the model type known to transformers.
"""

from agent_forge.models.cognate.layers import CognateConfig
from agent_forge.models.cognate.memory import MemoryState
from agent_forge.models.cognate.model import CognateForCausalLM, CognateModel, register

__all__ = ["CognateConfig", "CognateForCausalLM", "CognateModel", "MemoryState", "register"]
