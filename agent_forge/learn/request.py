"""What a stage of training is asked to do: the one argument of `train` beside the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from agent_forge.checkpoint.workspace import Workspace
from agent_forge.config import OptimConfig, RuntimeConfig
from agent_forge.core.events import EventLog
from agent_forge.learn.optimisers import Parameters
from agent_forge.learn.records import Batches, LossFn, OnStep


@dataclass(slots=True, kw_only=True)
class TrainRequest:
    """One stage of training.

    parameters: parameters or groups {"params", "lr_scale"}; None trains all that require a
    gradient. on_step: called after each step with (record, model). May return controls for the
    steps that follow:
        "lr_scale" multiplies the schedule, "noise" is the standard deviation of Gaussian noise on
        each gradient tensor, relative to its RMS; "keep": True remembers weights and optimiser,
        "rollback": True goes back to them (the step count goes on). With `state_dict()` and
        `load_state_dict()` its own JSON state is saved too. It is called for a non-finite loss only
        while weights are remembered.
    dtype: of the forward pass (autocast); with runtime.dtype=auto it is measured instead.
    average_decay: above 0, the average over the last optim.average_share of the steps is
    exponential,
        not uniform.
    settings: further values that must not change on resume.
    optimiser_from: a finished stage, run with keep_optimiser=True, whose optimiser state this stage
        goes on from; "" starts afresh.
    keep_last: an averaged stage also leaves the weights of its last step, for `last_weights`.
    runtime: how the work is run; None takes the settings of the phase, which `out` carries.
    """

    batches: Batches
    loss_fn: LossFn
    stage: str
    steps: int
    optim: OptimConfig
    out: Workspace
    events: EventLog
    seed: int
    parameters: Parameters | None = None
    on_step: OnStep | None = None
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    average_decay: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimiser_from: str = ""
    keep_optimiser: bool = False
    keep_last: bool = False
    runtime: RuntimeConfig | None = None
