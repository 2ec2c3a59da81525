"""Gradients are limited, and noise is added, exactly as asked for."""

import pytest
import torch
from torch import Tensor, nn

from agent_forge.learn import gradients
from agent_forge.learn.distribution import World


def parameters_with(*gradient: list[float] | None) -> list[nn.Parameter]:
    parameters = []
    for values in gradient:
        parameter = nn.Parameter(torch.zeros(len(values or [0.0])))
        parameter.grad = None if values is None else torch.tensor(values)
        parameters.append(parameter)
    return parameters


@pytest.mark.parametrize(
    ("most", "factor"),
    [(0.0, 1.0), (13.5, 1.0), (6.5, 0.5), (1.3, 0.1)],  # 0 sets none
)
def test_the_norm_of_all_gradients_together_is_limited_and_returned(
    most: float, factor: float
) -> None:
    parameters = parameters_with([3.0, 0.0], None, [4.0, -12.0])  # 3² + 4² + 12² = 13²
    norm = gradients.clip(parameters, most)
    assert norm is not None
    assert float(norm) == 13.0
    first, none, last = (parameter.grad for parameter in parameters)
    assert none is None
    torch.testing.assert_close(first, factor * torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(last, factor * torch.tensor([4.0, -12.0]))


def test_gradients_within_the_limit_stay_the_same_bits() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    (parameter,) = parameters_with(values.tolist())
    gradients.clip([parameter], float(values.norm()) + 1e-3)
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, values)


def test_parameters_without_any_gradient_have_no_norm() -> None:
    assert gradients.clip(parameters_with(None, None), 1.0) is None


def test_noise_is_relative_to_each_tensors_own_gradient() -> None:
    torch.manual_seed(0)
    sizes = (100.0, 0.01)
    parameters = parameters_with(*([size] * 20_000 for size in sizes), None)
    gradients.add_noise(parameters, 0.3)
    for size, parameter in zip(sizes, parameters, strict=False):
        assert parameter.grad is not None
        noise = parameter.grad / size - 1
        assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
        assert float(noise.std()) == pytest.approx(0.3, rel=0.03)


def test_one_process_exchanges_no_metrics_and_leaves_them_where_they_are() -> None:
    """Reading a metric would make the host wait for an accelerator in every step."""

    class Alone(World):
        exchanges = 0

        def sums(self, values: list[float]) -> list[float]:
            self.exchanges += 1
            return super().sums(values)

    class Mean(nn.Linear):
        def forward(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
            del step
            loss = super().forward(batch["x"]).square().mean()
            return loss, {"twice": 2 * loss.detach()}

    world, model = Alone(torch.device("cpu")), Mean(2, 1)
    run = gradients.Gradients(model, world, 2, torch.device("cpu"), torch.float32)
    batch = {"x": torch.randn(4, 2), "labels": torch.ones(4, 3, dtype=torch.long)}
    loss, metrics = run.backward(batch, 0)
    assert world.exchanges == 1  # The number of trained tokens
    assert isinstance(metrics["twice"], Tensor)
    truth = model(batch, 0)[0].detach()
    torch.testing.assert_close(loss.float(), truth)
    torch.testing.assert_close(metrics["twice"].float(), 2 * truth)
