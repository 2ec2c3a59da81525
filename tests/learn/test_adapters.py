"""Adapters of ternary layers: the merged model is the trained one, and gradients are as derived."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from agent_forge.learn.adapters import adapters
from agent_forge.models.ternary import TernaryLinear, TernarySettings, ternarise, ternary_layers

pytest.importorskip("peft", reason="the extra 'lora' is not installed")
IDS = torch.arange(20)[None] % 64


def llama() -> PreTrainedModel:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
        )
    ).eval()  # fmt: skip


def gpt2() -> PreTrainedModel:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=64, n_embd=24, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2
    )
    return GPT2LMHeadModel(config).eval()


def made_ternary(model: PreTrainedModel, **changes: object) -> PreTrainedModel:
    plain = {
        "group_size": 8, "activation_bits": 8, "packing": "five_trits", "skip": ["lm_head"],
    }  # fmt: skip
    ternarise(model, TernarySettings(**{**plain, **changes}))  # type: ignore[arg-type]
    return model


@torch.no_grad()
def write_products(model: nn.Module, std: float) -> None:
    """Give every B other values, as a step of training does."""
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.normal_(std=std)


def logits(model: nn.Module) -> Tensor:
    return model(IDS, use_cache=False).logits


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"group_size": -1}, {"sub_norm": ["o_proj", "c_proj"]}, {"activation_bits": 0},
        {"skip": ["lm_head", "q_proj", "c_attn"]},
    ],
)  # fmt: skip
def test_a_ternary_model_merged_is_the_one_that_was_trained(
    make: Callable[[], PreTrainedModel], changes: dict[str, object]
) -> None:
    """With and without gradients, after each of two steps; layers left float are close too."""
    model = made_ternary(make(), **changes)
    with torch.no_grad():
        parent = logits(model)
    with adapters(model, 2, 4.0, 0, "rank"):
        for std in (0.3, 0.05):
            write_products(model, std)
            trained = logits(model).detach()
            with torch.no_grad():
                generating = logits(model)
            assert torch.allclose(trained, generating, atol=1e-5)
    with torch.no_grad():
        merged = logits(model)
    assert torch.allclose(trained, merged, atol=2e-5)
    assert float((trained - parent).norm() / parent.norm()) > 0.05
    assert all(type(layer) is TernaryLinear for layer in ternary_layers(model).values())


def test_gradients_of_the_matrices_are_those_of_the_latents_times_the_other_one() -> None:
    """dL/dB = alpha / rank * G A^T and dL/dA = alpha / rank * B^T G, with G = dL/dlatents."""
    model = made_ternary(llama())
    whole = copy.deepcopy(model)
    name = "model.layers.1.mlp.down_proj"
    with adapters(model, 2, 6.0, 0, "rank"):
        write_products(model, 0.1)
        pairs = {
            letter: getattr(model.get_submodule(name), f"lora_{letter}")["adapter"].weight
            for letter in "AB"
        }
        a, b = (pairs[letter].detach().clone() for letter in "AB")
        logits(model).square().mean().backward()
        of_a, of_b = (pairs[letter].grad.clone() for letter in "AB")
        assert all(
            value.grad is None for key, value in model.named_parameters() if "lora_" not in key
        )
    whole.load_state_dict(model.state_dict())
    logits(whole).square().mean().backward()
    gradient = whole.get_submodule(name).weight.grad
    assert torch.allclose(of_b, 3 * gradient @ a.T, rtol=1e-4, atol=1e-7)
    assert torch.allclose(of_a, 3 * b.T @ gradient, rtol=1e-4, atol=1e-7)


def test_bfloat16_autocast_trains_the_merged_model_too() -> None:
    model = made_ternary(llama())
    with adapters(model, 2, 4.0, 0, "rank"):
        write_products(model, 0.1)
        with torch.autocast("cpu", torch.bfloat16):
            trained = logits(model).detach()
    with torch.autocast("cpu", torch.bfloat16):
        merged = logits(model).detach()
    assert torch.equal(trained, merged)
