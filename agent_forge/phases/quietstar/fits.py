"""Check before work starts that thoughts can be laid out in a model's attention. Reads config.json
alone.
"""

from collections.abc import Mapping
from typing import Any

from agent_forge.core.errors import ConfigError
from agent_forge.phases.quietstar import Config


def check(config: Config, model_config: Mapping[str, Any]) -> list[str]:
    """Return an empty list: this phase has no warning to give.

    A thought sees the whole prefix through a mask of its own, which layers with a sliding window do
    not follow; rationales in words ask nothing of attention. Raises ConfigError for a model whose
    attention does not span its context.
    """
    if config.objective == "task_thoughts":
        return []
    kinds = sorted(
        {kind for kind in model_config.get("layer_types") or () if kind != "full_attention"}
    )
    if kinds:
        raise ConfigError(
            f"thoughts need full attention in every layer, and this {model_config.get('model_type')} model has "
            f"{', '.join(kinds)}; leave quietstar out for it"
        )
    window, longest = (
        model_config.get("sliding_window"),
        model_config.get("max_position_embeddings") or 0,
    )
    if (
        model_config.get("model_type") == "mistral"
        and window
        and window < min(longest, config.length_tokens)
    ):
        raise ConfigError(
            f"thoughts need full attention, and this model looks back over {window} tokens; set length_tokens={window} "
            "or less"
        )
    return []
