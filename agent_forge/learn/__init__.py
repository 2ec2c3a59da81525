"""One training loop for every phase, with its losses, optimisers, schedule, averaging and resumable
state.
"""

from agent_forge.learn.feed import on_host, trained_tokens
from agent_forge.learn.loop import last_weights, train
from agent_forge.learn.losses import chunked_cross_entropy, distill_loss, lm_loss, next_token_loss
from agent_forge.learn.optimisers import Optimisers, wsd
from agent_forge.learn.records import Batches, LossFn, OnStep, StepRecord
from agent_forge.learn.request import TrainRequest

__all__ = [
    "Batches",
    "LossFn",
    "OnStep",
    "Optimisers",
    "StepRecord",
    "TrainRequest",
    "chunked_cross_entropy",
    "distill_loss",
    "last_weights",
    "lm_loss",
    "next_token_loss",
    "on_host",
    "train",
    "trained_tokens",
    "wsd",
]
