"""Check before work starts how much of a model bitnet will reach, or why it cannot work on it.

Reads config.json alone.
"""

from collections.abc import Mapping
from typing import Any

from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.phases.bitnet import Config

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def check(config: Config, model_config: Mapping[str, Any]) -> list[str]:
    """Return what share of the weights becomes ternary or is rounded, and what the rest is.

    Raises ConfigError when the model is quantised already, when no part of it can become ternary,
    and for settings that cannot work for it.
    """
    method = (model_config.get("quantization_config") or {}).get("quant_method")
    if method:
        raise ConfigError(
            f"the source is quantised already ({method}); give bitnet the checkpoint before that"
        )
    from agent_forge.models.skeleton import skeleton
    from agent_forge.models.ternary import ternarise

    model = skeleton(model_config)
    _check_length(config, model.config)
    _check_relations(config, model)
    try:
        ternarise(model, config.linear)
    except PhaseError as error:
        raise ConfigError(str(error)) from None
    return [reach_line(model)]


def reach_line(model: Any) -> str:
    """Return what share of a ternary model's weights its layers hold, and what the rest is."""
    from agent_forge.anatomy.reach import counted
    from agent_forge.models.ternary import rounded_embeddings, ternary_layers

    layers, embeddings = ternary_layers(model), rounded_embeddings(model)
    reached = [module.weight for module in (*layers.values(), *embeddings.values())]
    beside = f" and {len(embeddings)} rounded embedding(s)" if embeddings else ""
    return counted(model, reached).line(f"{len(layers)} ternary layers{beside} reach")


def _check_length(config: Config, model_config: Any) -> None:
    longest = getattr(model_config, "max_position_embeddings", None)
    if longest and config.train.length_tokens > longest:
        raise ConfigError(
            f"train.length_tokens={config.train.length_tokens} is more than the {longest} positions of this model; set "
            f"train.length_tokens={longest} or less"
        )


def _check_relations(config: Config, model: Any) -> None:
    if config.distill.relation_weight <= 0 or not config.train.steps:
        return
    owners: dict[str, dict[str, int]] = {}
    for name, module in model.named_modules():
        owner, _, kind = name.rpartition(".")
        if kind in PROJECTIONS:
            owners.setdefault(owner, {})[kind] = module.weight.shape[0]
    whole = [widths for widths in owners.values() if len(widths) == len(PROJECTIONS)]
    if not whole:
        raise ConfigError(
            f"distill.relation_weight is above 0, but no attention of {type(model).__name__} has "
            f"{', '.join(PROJECTIONS)}; set distill.relation_weight=0"
        )
    heads = config.distill.relation_heads
    width = next((w for w in whole[-1].values() if w % heads), None)
    if width is not None:
        raise ConfigError(
            f"distill.relation_heads={heads} does not divide the projections' width {width}; try distill.relation_heads=1"
        )
