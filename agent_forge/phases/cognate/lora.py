"""Low-rank adapters on all linear layers of a model while it is specialised, merged into its
weights afterwards.

With few rows a whole model forgets what it could; adapters keep a specialisation close to its trunk
and train a small share of the memory. Source: LoRA, arXiv:2106.09685, by the package peft. The
specialist on disk is a plain model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from agent_forge.core.errors import ConfigError

NAME = "specialist"


@contextmanager
def adapters(model: PreTrainedModel, rank: int, alpha: float, seed: int) -> Iterator[None]:
    """Train adapters of `rank` in place of the weights inside this context; rank 0 trains the
    weights themselves.

    On leaving, alpha / rank · B A is added to every adapted weight, and the adapters are removed.
    `model` stays the same object of the same class throughout. Raises ConfigError without peft.
    """
    if rank == 0:
        yield
        return
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise ConfigError(
            "branch.lora_rank needs the package peft; pip install 'agent-forge[lora]'"
        ) from None
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # any number does
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    tuner = LoraModel(model, {NAME: settings}, NAME)
    yield
    tuner.merge_and_unload(safe_merge=True)
    model.requires_grad_(True)
