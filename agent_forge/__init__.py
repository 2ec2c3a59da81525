"""Agent Forge: turn a base language model into a small, compressed, tool-using agent in eight
phases.

Importing this package lets `transformers` open every checkpoint that a phase writes. The
registration waits until transformers itself is imported, so that `forge --help` starts without
torch.

Threads of a parallel product wait for each other. By default libgomp, which torch uses on Linux,
lets them spin for milliseconds; where another process wants the cores too, a step then takes
several times as long as it must (docs/log.md). Spinning for a thirtieth of that costs nothing on a
quiet machine, so it is set here, before torch is loaded, unless the user has chosen.
"""

import os

from agent_forge._transformers import register_with_transformers

__version__ = "0.1.0"
# How often a waiting thread looks before it sleeps; libgomp's default is 300,000.
SPINS = "10000"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
register_with_transformers()
