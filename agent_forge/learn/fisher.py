"""Measure how much each weight matters: the diagonal of the empirical Fisher information on some
text.

It is the mean over sequences of the squared gradient of the log-likelihood. Source: Matena and
Raffel 2022, arXiv:2111.09832.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agent_forge.learn.losses import lm_loss


def fisher_diagonal(model: PreTrainedModel, rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the mean squared gradient of each parameter, float32, over sequences of token ids
    (time,) int64.

    The gradient is taken of the summed log-likelihood of a sequence. A tied tensor counts once,
    under its first name.
    """
    model.eval()
    fisher = {
        name: torch.zeros_like(parameter, dtype=torch.float32)
        for name, parameter in model.named_parameters()
    }
    for ids in rows:
        model.zero_grad(set_to_none=True)
        loss, _ = lm_loss(model, {"input_ids": ids[None], "labels": ids[None]}, 0)
        (loss * (len(ids) - 1)).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                fisher[name] += parameter.grad.float().square() / len(rows)
    model.zero_grad(set_to_none=True)
    return fisher
