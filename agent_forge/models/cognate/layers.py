"""The parts of Cognate: config, attention with rotary positions, SwiGLU, a layer, the halting head.

Shapes: B rows, T time, d hidden, H heads, D head width.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from agent_forge.models.cognate.memory import MemoryAttention, Readable


@strict
class CognateConfig(PreTrainedConfig):
    """Shape and settings of a Cognate. The defaults are the 25,083,528-parameter model."""

    model_type = "cognate"
    keys_to_ignore_at_inference = ("past_key_values", "memory")

    vocab_size: int = 32000
    hidden_size: int = 216
    intermediate_size: int = 864
    num_hidden_layers: int = 11
    num_attention_heads: int = 3
    max_loops: int = 2  # passes of the stack
    halting_size: int = 42  # width of the halting head's hidden layer
    # A token exits when its cumulated halting probability reaches this.
    halting_threshold: float = 0.95
    memory_slots: int = 4096  # trainable slots
    memory_top_k: int = 4  # slots that a token reads per layer
    written_slots: int = 64  # slots that a sequence can write
    write_memory: bool = False  # write after every forward pass
    surprise_weight: float = 0.7  # weight of surprise in the priority of a write
    novelty_weight: float = 0.3  # weight of novelty in the priority of a write
    halting_loss_weight: float = 0.1
    # Part of the halting loss: keeps the exit distribution from collapsing.
    entropy_cost: float = 1.0
    ponder_cost: float = 0.0  # part of the halting loss: price of each pass after the first
    read_loss_weight: float = 0.05  # weight of the loss for even use of the trainable slots
    write_loss_weight: float = 0.05  # weight of the loss for sparse writes
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    memory_gate_init: float = 0.1
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def validate_architecture(self) -> None:
        """Refuse shapes that cannot be built."""
        if (
            self.hidden_size % self.num_attention_heads
            or self.hidden_size // self.num_attention_heads % 2
        ):
            raise ValueError(
                "hidden_size must be an even multiple of num_attention_heads, got "
                f"{self.hidden_size} "
                f"and {self.num_attention_heads}"
            )
        if self.max_loops < 1:
            raise ValueError(f"max_loops must be at least 1, got {self.max_loops}")


class CognateAttention(nn.Module):
    """Causal self-attention with rotary positions; every pass has its own place in the cache."""

    def __init__(self, config: CognateConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.head_dim = d // config.num_attention_heads
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, d, bias=False)
        self.v_proj = nn.Linear(d, d, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def keys_values(
        self, x_BTd: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache | None, place: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, past + T, D); the cache, if any, takes them in."""
        k_BHTD = rotate(self._heads(self.k_proj(x_BTd)), rotary)
        v_BHTD = self._heads(self.v_proj(x_BTd))
        return (k_BHTD, v_BHTD) if cache is None else cache.update(k_BHTD, v_BHTD, place)

    def forward(
        self,
        x_BTd: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
        place: int,
        context_BTd: Tensor | None = None,
    ) -> Tensor:
        """Return attention over the past and this segment, (B, T, d).

        context_BTd: keys and values come from here; None takes x.
        """
        q_BHTD = rotate(self._heads(self.q_proj(x_BTd)), rotary)
        k_BHSD, v_BHSD = self.keys_values(
            x_BTd if context_BTd is None else context_BTd, rotary, cache, place
        )
        mixed = F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, attn_mask=mask, is_causal=mask is None and q_BHTD.shape[2] > 1
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(x_BTd.shape))

    def _heads(self, x_BTd: Tensor) -> Tensor:
        return x_BTd.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class CognateMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: CognateConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTd: Tensor) -> Tensor:
        """Return the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x_BTd)) * self.up_proj(x_BTd))


class CognateLayer(nn.Module):
    """Attention, a read of memory and SwiGLU, each with a pre-norm and a residual."""

    def __init__(self, config: CognateConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = CognateAttention(config)
        self.memory_attn = MemoryAttention(
            config.hidden_size, config.memory_top_k, config.rms_norm_eps
        )
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = CognateMLP(config)

    def forward(
        self,
        x_BTd: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        memory: Readable,
        cache: Cache | None,
        place: int,
        context_BTd: Tensor | None = None,
    ) -> Tensor:
        """Return the stream after this layer, (B, T, d).

        context_BTd: the states that other tokens attend to; None takes the stream.
        """
        shown = None if context_BTd is None else self.input_layernorm(context_BTd)
        x_BTd = x_BTd + self.self_attn(
            self.input_layernorm(x_BTd), rotary, mask, cache, place, shown
        )
        x_BTd = x_BTd + self.memory_attn(x_BTd, memory)
        return x_BTd + self.mlp(self.post_attention_layernorm(x_BTd))


class HaltingHead(nn.Module):
    """Computes the logit of stopping after a pass from a token's hidden state."""

    def __init__(self, config: CognateConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.halting_size)
        self.down = nn.Linear(config.halting_size, 1)

    def forward(self, x_BTd: Tensor) -> Tensor:
        """Return logits (B, T)."""
        return self.down(F.gelu(self.up(self.norm(x_BTd))))[..., 0]


def rotate(x_BHTD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Return queries or keys rotated by their positions."""
    cosine, sine = rotary
    left, right = x_BHTD.chunk(2, -1)
    return x_BHTD * cosine + torch.cat([-right, left], -1) * sine
