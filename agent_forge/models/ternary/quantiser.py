"""Make a model ternary (1.58 bit), and the quantiser with which transformers loads it again.

A `TernaryLinear` keeps a latent float `weight`. Its forward uses codes -1, 0, +1 times one scale
per group of 128 inputs, and int8 activations; gradients pass straight through to the latents.
`ternarise` puts such layers into any causal LM and notes them in config.json
(`quantization_config`), so that `AutoModelForCausalLM.from_pretrained` builds them again. Source:
BitNet b1.58, arXiv:2402.17764; gradual lambda: Hugging Face's 1.58-bit fine-tuning.

Departures: one scale per group instead of per tensor, so that outliers stay local; scales are
rounded to bfloat16 in the forward too, so that the packed file computes exactly what was trained.
SubLN is off by default, because the parent was trained without it.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from agent_forge.anatomy.swap import own_config
from agent_forge.config.ternary import CodeGrid, TernarySettings, no_codewords
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.models.ternary import checkpoint
from agent_forge.models.ternary.install import (
    input_width,
    install_embeddings,
    install_layers,
    is_skipped,
)
from agent_forge.models.ternary.layer import TernaryLinear

METHOD = "forge_ternary"
DEFAULTS: Mapping[str, Any] = {
    "group_size": 128, "activation_bits": 8, "packing": "five_trits", "skip": ["lm_head"]
}  # fmt: skip


def ternarise(model: PreTrainedModel, settings: TernarySettings) -> list[str]:
    """Replace the linears of a causal LM by ternary ones in place; return their names.

    The model's config notes the settings. The output embedding and everything tied to it stay
    float. Raises PhaseError when the model is ternary already or has nothing to replace.
    """
    already = sum(isinstance(module, TernaryLinear) for module in model.modules())
    if already:
        raise PhaseError(
            f"the model is ternary already ({already} layers); take a float model as the source"
        )
    head = model.get_output_embeddings()
    heads = [name for name, module in model.named_modules() if module is head and head is not None]
    settings = replace(
        settings,
        skip=[*settings.skip, *(name for name in heads if not is_skipped(name, settings.skip))],
    )
    names = install_layers(model, settings)
    if not names:
        sizes = sorted(
            {size for module in model.modules() if (size := input_width(module)) is not None}
        )
        raise PhaseError(
            f"{type(model).__name__} has nothing to make ternary: looked for linear "
            "layers with at least group_size="
            f"{settings.group_size} inputs outside skip={settings.skip}; its linear "
            f"layers have {sizes or 'no'} "
            "inputs. Lower the group size or shorten skip"
        )
    quantizer = TernaryHfQuantizer(TernaryConfig(**asdict(settings)))
    own_config(model).quantization_config = quantizer.quantization_config
    # from_pretrained sets these on a quantised model; save_pretrained and the Trainer read them.
    noted: Any = model
    noted.hf_quantizer, noted.is_quantized, noted.quantization_method = quantizer, True, METHOD
    return names


def round_embeddings(model: PreTrainedModel, grid: CodeGrid) -> None:
    """Round embedding and head of a ternary model in place, and note the grid in its config.

    Raises PhaseError when the model is not ternary.
    """
    config: Any = getattr(model.config, "quantization_config", None)
    if not isinstance(config, TernaryConfig):
        raise PhaseError(
            f"{type(model).__name__} is not ternary; make it so first, with `forge bitnet`"
        )
    settings = replace(config.settings(), embedding_bits=grid.bits, embedding_group=grid.columns)
    config.__dict__ |= asdict(settings)
    install_embeddings(model, settings)


class TernaryConfig(QuantizationConfigMixin):
    """`quantization_config` of a ternary model: its TernarySettings, as method `forge_ternary`.

    settings: the fields of TernarySettings; a config.json may omit those in DEFAULTS.
    packed: the file holds codes and scales instead of latents.
    """

    def __init__(self, packed: bool = False, **settings: Any) -> None:
        settings.pop("quant_method", None)
        self.quant_method = METHOD  # type: ignore[assignment]
        # This key belongs to a coding that is gone; older config.json files have it as 0.
        vector = settings.pop("embedding_vector", 0)
        if vector:
            raise no_codewords("config.json", vector)
        unknown = sorted(set(settings) - {one.name for one in fields(TernarySettings)})
        if unknown:
            raise ConfigError(
                f"quantization_config of a {METHOD} model has unknown keys {unknown}; remove them"
            )
        # The mixin writes the object's attributes, so every setting is one.
        self.__dict__ |= asdict(TernarySettings(**{**DEFAULTS, **settings}))
        self.packed = packed

    def settings(self) -> TernarySettings:
        """Return the checked settings."""
        return TernarySettings(
            **{one.name: getattr(self, one.name) for one in fields(TernarySettings)}
        )


class TernaryHfQuantizer(HfQuantizer):
    """Builds the ternary layers before transformers fills in the weights."""

    requires_calibration = False
    quantization_config: TernaryConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:  # noqa: ARG002
        if not install_layers(model, self.quantization_config.settings()):
            raise PhaseError(
                f"config.json says {METHOD}, but no layer of {type(model).__name__} fits "
                f"{self.quantization_config.to_dict()}; the config and the model do not "
                "belong together"
            )
        if self.quantization_config.packed:
            checkpoint.open_placeholders(model)

    def _process_model_after_weight_loading(
        self,
        model: PreTrainedModel,
        **kwargs: Any,  # noqa: ARG002 - transformers' signature
    ) -> PreTrainedModel:
        if self.quantization_config.packed:
            checkpoint.fill_placeholders(model)
            # From here on the model holds latents, and would be saved with them.
            self.quantization_config.packed = False
        return model

    def is_serializable(self) -> bool:
        """Return True: latents are plain float tensors, and save_pretrained writes them."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Return True: gradients reach the latents."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Return True: training goes through the rounding."""
        return True


def register() -> None:
    """Register the quantiser with transformers. Calling it again changes nothing."""
    registered: Mapping[str, Any] = AUTO_QUANTIZATION_CONFIG_MAPPING
    if METHOD not in registered:
        register_quantization_config(METHOD)(TernaryConfig)
        register_quantizer(METHOD)(TernaryHfQuantizer)
