"""Build a data set of five domains: `forge data build broad`.

Reads packaged texts and, where `own.parent` names one, a checkpoint that writes; writes a directory
named by its content (`data.sets`). Killed at any instant, the same command goes on and ends in the
same bytes: what the model wrote is saved batch by batch.
"""

from agent_forge.pipeline.data_set.build import build, compose_recipe

__all__ = ["build", "compose_recipe"]
