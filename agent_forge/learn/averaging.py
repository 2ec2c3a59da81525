"""The average of the weights over the last steps, uniform (SWA, arXiv:1803.05407) or
exponential.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from agent_forge.learn.distribution import laid_out_like, whole
from agent_forge.learn.state import copy_into

Named = Iterable[tuple[str, nn.Parameter]]


class TailAverage:
    """A float32 mean of each parameter over the steps that were added.

    A decay of 0 makes it uniform, a decay above 0 exponential.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors: dict[str, Tensor] = {}

    def add(self, named: Named) -> None:
        """Add the present weights to the mean."""
        self.steps += 1
        weight = 1.0 / self.steps
        if self.decay > 0:
            # The bias-corrected exponential mean, as a running update: (1 - b) / (1 - b^n).
            weight = (1 - self.decay) / (1 - self.decay**self.steps)
        for name, parameter in named:
            # In bfloat16 a step's share of the mean would often be less than the mean's last bit.
            if name not in self.tensors:
                self.tensors[name] = parameter.detach().float().clone()
            else:
                self.tensors[name].lerp_(parameter.detach().float(), weight)

    def put_into(self, named: Named) -> None:
        """Overwrite the weights with their mean, and drop the mean."""
        for name, parameter in named:
            if name in self.tensors:
                copy_into(parameter, whole(self.tensors[name]))
        self.tensors = {}

    def load(
        self, tensors: Mapping[str, Tensor], steps: int, parameters: Mapping[str, Tensor]
    ) -> None:
        """Restore a saved mean of `steps` steps, laid out as the parameters are."""
        self.steps = steps
        self.tensors = {
            name: laid_out_like(value.to(parameters[name].device), parameters[name])
            for name, value in tensors.items()
        }
