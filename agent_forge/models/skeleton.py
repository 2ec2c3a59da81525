"""A model without weights, built from config.json on the meta device.

It has the modules and the shapes of the tensors. Reads a config as a dictionary; writes nothing and
takes no memory for weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.models import registration
from agent_forge.models.storage import quiet_transformers


def typed_config(content: Mapping[str, Any]) -> Any:
    """Return the config object of a config.json.

    Raises ConfigError when its model type is unknown.
    """
    registration.register()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = {**content}
    kind = str(settings.pop("model_type", ""))
    if kind not in CONFIG_MAPPING:
        hint = did_you_mean(kind, CONFIG_MAPPING)
        raise ConfigError(
            f"config.json says model_type '{kind}', which transformers does not know{hint}"
        )
    return AutoConfig.for_model(kind, **settings)


def skeleton(content: Mapping[str, Any]) -> PreTrainedModel:
    """Return the causal language model of a config.json on the meta device, without a quantiser.

    Raises ConfigError when the model type is unknown or not a causal language model.
    """
    config = typed_config(
        {key: value for key, value in content.items() if key != "quantization_config"}
    )
    try:
        with quiet_transformers(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"no causal language model fits config.json: {' '.join(str(error).split())[:300]}"
        ) from error
    return model.eval()
