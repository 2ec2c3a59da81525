"""Direct preference optimisation: make the better of two answers likelier, without a reward model.

    loss = -log sigmoid(beta * ((log p(w) - log q(w)) - (log p(l) - log q(l))))

p is the model, q the reference it started from, w the chosen and l the rejected answer to one
prompt; log-probabilities are sums over the tokens of an answer. Its slope in log p(w) is
-beta * sigmoid(-margin), and the opposite in log p(l). Source: Rafailov et al. 2023,
arXiv:2305.18290, equations 7 and 8.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from agent_forge.anatomy.cross_entropy import IGNORE


def answer_log_probs(model: Any, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Return the summed log-probability (nats) of each row's labels: (B,) float32.

    input_ids, labels: (B, T) int64; labels are not shifted, and -100 where nothing is counted.
    Padding stands on the right, where no earlier token sees it.
    """
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:]
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return -losses.view(targets.shape).sum(-1)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Return the mean loss (nats) over pairs and the margins (n,): how much further than the
    reference the model is on the side of the chosen answer, times beta.

    chosen, rejected: (n,) log-probabilities of the model. reference_...: of the reference.
    """
    margins = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -functional.logsigmoid(margins).mean(), margins


@torch.no_grad()
def reference_log_probs(
    model: Any, input_ids: Tensor, labels: Tensor, batch_rows: int = 8
) -> Tensor:
    """Return `answer_log_probs` of many rows, a few at a time: (B,) float32 on the CPU."""
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, len(input_ids), batch_rows):
        rows = slice(start, start + batch_rows)
        length = int((labels[rows] != IGNORE).any(0).nonzero().max()) + 1
        ids, targets = (part[rows, :length].to(model.device) for part in (input_ids, labels))
        parts.append(answer_log_probs(model, ids, targets).cpu())
    model.train(was_training)
    return torch.cat(parts)
