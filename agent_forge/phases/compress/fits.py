"""Check before work starts how much of a model compress will reach, or why it cannot work on it.

Reads config.json alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.phases.compress import Config


def check(config: Config, model_config: Mapping[str, Any]) -> list[str]:
    """Return what share of the weights will be coded, and what the rest is.

    Raises ConfigError when the model has nothing to compress, and for settings that cannot work
    for it.
    """
    if (model_config.get("quantization_config") or {}).get("sub_norm"):
        raise ConfigError(
            "a compressed layer cannot normalise its input, and layers of the source do; make the model ternary with "
            "linear.sub_norm=[]"
        )
    from agent_forge.models import conv1d
    from agent_forge.models.skeleton import skeleton
    from agent_forge.phases.compress import offers

    model = skeleton(model_config)
    _check_lengths(config, model.config)
    conv1d.unfold(model)
    offers.check(config)
    try:
        tensors = offers.quantisable(model, config)
    except PhaseError as error:
        raise ConfigError(str(error)) from None
    _check_budget(config, model, tensors)
    return [reach_line(model, tensors)]


def reach_line(model: Any, names: Iterable[str]) -> str:
    """Return what share of a model's weights the named tensors hold, and what the rest is."""
    from agent_forge.anatomy.reach import counted

    parameters = dict(model.named_parameters(remove_duplicate=False))
    reached = [parameters.get(name, parameters.get(f"{name}.weight")) for name in names]
    return counted(model, [one for one in reached if one is not None]).line(
        f"{len(reached)} coded tensors reach"
    )


def _check_lengths(config: Config, model_config: Any) -> None:
    longest = getattr(model_config, "max_position_embeddings", None)
    lengths = {
        "calibration.length_tokens": config.calibration.length_tokens,
        "measure.length_tokens": config.measure.length_tokens,
        "recover.length_tokens": config.recover.length_tokens if config.recover.steps else 0,
    }
    for name, value in lengths.items():
        if longest and value > longest:
            raise ConfigError(
                f"{name}={value} is more than the {longest} positions of this model; set {name}={longest} or less"
            )


def _check_budget(config: Config, model: Any, tensors: Mapping[str, Any]) -> None:
    """Raise ConfigError when the uncoded tensors alone fill the budget."""
    if config.mode != "allocate" or config.budget.bytes_ratio <= 0:
        return
    total = 4 * sum(parameter.numel() for parameter in model.parameters())
    fixed = total - 4 * sum(tensor.numel() for tensor in tensors.values())
    if config.budget.bytes_ratio * total <= fixed:
        budget = int(config.budget.bytes_ratio * total)
        raise ConfigError(
            f"budget.bytes_ratio={config.budget.bytes_ratio} is {budget:,} bytes, and what is "
            f"not coded takes {fixed:,} already; set budget.bytes_ratio above {fixed / total:.3f}"
        )
