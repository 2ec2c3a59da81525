"""Agent Forge: turn a base language model into a small, compressed, tool-using agent in eight
phases.

Importing this package lets `transformers` open every checkpoint that a phase writes. The
registration waits until transformers itself is imported, so that `forge --help` starts without
torch.
"""

from agent_forge._transformers import register_with_transformers

__version__ = "0.1.0"

register_with_transformers()
