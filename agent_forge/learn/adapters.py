"""Low-rank adapters on all linear layers of a model while it is trained, merged into its weights
afterwards.

With few rows a whole model forgets what it could; adapters stay close to the model, and its weights
need neither gradient nor optimiser state. Source: LoRA, arXiv:2106.09685, by the package peft. The
model on disk is a plain one.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agent_forge.core.errors import ConfigError

NAME = "adapter"


class Adapters:
    """The adapters of a model in training. `write` stores them alone, as peft does."""

    def __init__(self, model: PreTrainedModel, rank: int, alpha: float) -> None:
        self.model, self.rank, self.alpha = model, rank, alpha
        self._products: dict[str, Tensor] = {}
        self._modules: list[str] = []

    def take(self) -> None:
        """Take the trained matrices out of the model, before they are merged."""
        for name, module in self.model.named_modules():
            for letter in ("lora_A", "lora_B"):
                if hasattr(module, letter):
                    weight = getattr(module, letter)[NAME].weight.detach().cpu().contiguous()
                    self._products[f"base_model.model.{name}.{letter}.weight"] = weight.clone()
            if hasattr(module, "lora_A"):
                self._modules.append(name.rpartition(".")[2])

    def write(self, directory: Path, base: str) -> None:
        """Write adapter_config.json and adapter_model.safetensors. base: the model's own name."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        save_file(self._products, directory / "adapter_model.safetensors", {"format": "pt"})
        config: dict[str, Any] = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
            "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": 0.0, "bias": "none",
            "fan_in_fan_out": False, "inference_mode": True,
            "target_modules": sorted(set(self._modules)),
        }  # fmt: skip
        text = json.dumps(config, indent=2, sort_keys=True)
        (directory / "adapter_config.json").write_text(f"{text}\n", encoding="utf-8")


@contextmanager
def adapters(
    model: PreTrainedModel, rank: int, alpha: float, seed: int, setting: str
) -> Iterator[Adapters | None]:
    """Train adapters of `rank` in place of the weights inside this context; rank 0 trains the
    weights themselves.

    On leaving, alpha / rank · B A is added to every adapted weight (ternary layers: to the latents,
    as in training), and the adapters are removed; what was yielded can still write them. `model`
    stays the same object of the same class throughout. setting: the rank's name, for the error.
    Raises ConfigError without peft.
    """
    if rank == 0:
        yield None
        return
    try:
        from peft import LoraConfig, LoraModel

        from agent_forge.learn.ternary_adapters import adapt_ternary
    except ImportError:
        raise ConfigError(
            f"{setting} needs the package peft; pip install 'agent-forge[lora]'"
        ) from None
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # any number does
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapt_ternary(settings)
    torch.manual_seed(seed)
    tuner = LoraModel(model, {NAME: settings}, NAME)
    product = Adapters(model, rank, alpha)
    yield product
    product.take()
    tuner.merge_and_unload(safe_merge=True)
    model.requires_grad_(True)
