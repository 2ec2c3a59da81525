"""The bench of held-out schemas: one training serves both models only where they train alike."""

import pytest
import torch

from agent_forge import models
from agent_forge.checkpoint import Checkpoint
from scripts.bench import held_out_schemas

PLAIN = (*held_out_schemas.PLAIN, "training.optim.lr=0.0002")


@pytest.mark.parametrize(
    ("settings", "alike"),
    [
        ((), True),
        (("training.steps=7",), True),
        (("training.neutral_rows=1",), False),
        (("voice.prompts=8",), False),
        (("training.optim.lr=0.001",), False),
        (("retain.tasks.prose=0.5",), True),
    ],
)
def test_a_bake_is_plain_training_drawn_back_where_nothing_else_differs(
    settings: tuple[str, ...], alike: bool
) -> None:
    assert held_out_schemas._trains_alike(settings, PLAIN) is alike


def test_the_weights_before_they_were_drawn_back_are_found_again(
    tiny_checkpoint: Checkpoint,
) -> None:
    parent, trained, drawn = (models.load(tiny_checkpoint) for _ in range(3))
    torch.manual_seed(0)
    with torch.no_grad():
        for old, new, weight in zip(
            parent.parameters(), trained.parameters(), drawn.parameters(), strict=True
        ):
            new.add_(0.1 * torch.randn_like(new))
            weight.copy_(torch.lerp(old, new, 0.35))
    held_out_schemas._undo_drawing_back(drawn, tiny_checkpoint.path, 0.35)
    for weight, new in zip(drawn.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(weight, new, rtol=0, atol=1e-6)
