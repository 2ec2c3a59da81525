"""Cognate: a looped transformer that decides per token how often to pass its stack, with a memory bank.

The stack of layers runs r = 1..R times. After each pass but the last a halting head gives the probability of stopping
there; at inference a token exits when the cumulated probability reaches `halting_threshold`, and its hidden state is
frozen: deeper passes see it through the keys and values of that state, so the cache never needs what was not computed
and every exit depends on earlier tokens only. Sources: PonderNet, arXiv:2107.05407; looped language models (Ouro),
arXiv:2510.25741. Memory: memory_bank.py. Training losses: cognate_loss.py.

Shapes: B rows, T time, d hidden, H heads, D head width, S slots, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from agent_forge.models import cognate_loss
from agent_forge.models.memory_bank import MemoryAttention, MemoryBank, MemoryState, Readable


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
    halting_threshold: float = 0.95  # a token exits when its cumulated halting probability reaches this
    memory_slots: int = 4096  # trainable slots
    memory_top_k: int = 4  # slots that a token reads in a layer
    written_slots: int = 64  # slots a sequence can write
    write_memory: bool = False  # write after every forward pass
    surprise_weight: float = 0.7  # share of surprise in the priority of a write ...
    novelty_weight: float = 0.3  # ... and of novelty
    halting_loss_weight: float = 0.1
    entropy_cost: float = 1.0  # inside the halting loss: keeps the exit distribution from collapsing
    ponder_cost: float = 0.0  # inside the halting loss: price of the passes beyond the first
    read_loss_weight: float = 0.05  # even use of the trainable slots
    write_loss_weight: float = 0.05  # sparse writes
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
        if self.hidden_size % self.num_attention_heads or self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"hidden_size must be an even multiple of num_attention_heads, got {self.hidden_size} "
                f"and {self.num_attention_heads}"
            )
        if self.max_loops < 1:
            raise ValueError(f"max_loops must be at least 1, got {self.max_loops}")


@dataclass
class CognateModelOutput(BaseModelOutputWithPast):
    """passes: (B, T) int64, the passes each token used. middle: (B, T, d), the stream half way up each token's last."""

    passes: Tensor | None = None
    middle: Tensor | None = None


@dataclass
class CognateOutput(CausalLMOutputWithPast):
    """memory: the state after this segment when it was written, else the state that was read.

    passes: (B, T) int64, the passes each token used.
    """

    memory: MemoryState | None = None
    passes: Tensor | None = None


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
        """Return keys and values (B, H, past + T, D), stored in the cache when there is one."""
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
        """Return attention over the past and this segment, (B, T, d); keys and values are of the context, else of x."""
        q_BHTD = rotate(self._heads(self.q_proj(x_BTd)), rotary)
        k_BHSD, v_BHSD = self.keys_values(x_BTd if context_BTd is None else context_BTd, rotary, cache, place)
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
    """Attention, a read of memory, SwiGLU; each with its pre-norm and residual."""

    def __init__(self, config: CognateConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = CognateAttention(config)
        self.memory_attn = MemoryAttention(config.hidden_size, config.memory_top_k, config.rms_norm_eps)
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
        """Return the stream after this layer, (B, T, d). context_BTd: what tokens show the others, else the stream."""
        shown = None if context_BTd is None else self.input_layernorm(context_BTd)
        x_BTd = x_BTd + self.self_attn(self.input_layernorm(x_BTd), rotary, mask, cache, place, shown)
        x_BTd = x_BTd + self.memory_attn(x_BTd, memory)
        return x_BTd + self.mlp(self.post_attention_layernorm(x_BTd))


class HaltingHead(nn.Module):
    """The logit of stopping after a pass, from a token's hidden state."""

    def __init__(self, config: CognateConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.halting_size)
        self.down = nn.Linear(config.halting_size, 1)

    def forward(self, x_BTd: Tensor) -> Tensor:
        """Return logits (B, T)."""
        return self.down(F.gelu(self.up(self.norm(x_BTd))))[..., 0]


class CognatePreTrainedModel(PreTrainedModel):
    """Initialisation and what transformers needs to know."""

    config: CognateConfig
    config_class = CognateConfig
    base_model_prefix = "model"
    _no_split_modules = ["CognateLayer"]  # noqa: RUF012 - lists are transformers' protocol
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, MemoryBank):
            init.normal_(module.slots, mean=0.0, std=std)
            self._start_as_identity(module.read_proj, module.write_proj)
        elif isinstance(module, MemoryAttention):
            init.constant_(module.gate, self.config.memory_gate_init)
            self._start_as_identity(module.q_proj, module.k_proj, module.v_proj, module.o_proj)

    @staticmethod
    def _start_as_identity(*layers: nn.Module) -> None:
        """Make linear layers the identity; a compressed layer has no weight before its codes are read."""
        for layer in layers:
            if isinstance(layer, nn.Linear):
                init.eye_(layer.weight)


class CognateModel(CognatePreTrainedModel):
    """Embedding, looped stack, halting head and memory bank."""

    def __init__(self, config: CognateConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(CognateLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.halting = HaltingHead(config)
        self.memory = MemoryBank(config.memory_slots, config.hidden_size, config.written_slots, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        memory: MemoryState | None = None,
        **_: Any,
    ) -> CognateModelOutput:
        """Return the last hidden state (B, T, d), each token's at its own exit.

        hidden_states, when asked for: the embedding, then each layer's output in the last pass that ran (the last one
        normed), as transformers' models give them.
        """
        x_BTd, rotary, mask, cache, readables = self.prepare(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, memory
        )
        layers, loops = len(self.layers), self.config.max_loops
        halted = x_BTd.new_zeros(x_BTd.shape[:2])
        passes = torch.ones_like(halted, dtype=torch.long)
        alive: Tensor | None = None
        embedded, hidden, middle = x_BTd, [x_BTd], x_BTd
        for loop in range(loops):
            if alive is not None and not alive.any():
                if cache is not None:
                    self._fill_cache(x_BTd, rotary, cache, loop * layers)
                continue
            hidden = [embedded]
            for index, (layer, readable) in enumerate(zip(self.layers, readables, strict=True)):
                y_BTd = layer(x_BTd, rotary, mask, readable, cache, loop * layers + index)
                x_BTd = y_BTd if alive is None else torch.where(alive[..., None], y_BTd, x_BTd)
                hidden.append(x_BTd)
            # A token that has left keeps the stream of its last pass.
            half = hidden[self.middle]
            middle = half if alive is None else torch.where(alive[..., None], half, middle)
            if loop + 1 < loops:
                halted = halted + (1 - halted) * torch.sigmoid(self.halting(x_BTd))
                alive = halted < self.config.halting_threshold
                passes = passes + alive
        last = self.norm(x_BTd)
        return CognateModelOutput(
            last_hidden_state=last,
            past_key_values=cache,
            hidden_states=(*hidden[:-1], last) if output_hidden_states else None,  # type: ignore[arg-type]
            passes=passes,
            middle=middle,
        )

    @property
    def middle(self) -> int:
        """Return after how many layers the stream is what memory writes."""
        return (len(self.layers) + 1) // 2

    def each_layer(self) -> list[CognateLayer]:
        """Return the layers, typed."""
        return list(self.layers)  # type: ignore[arg-type]

    def prepare(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        memory: MemoryState | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None, Cache | None, list[Readable]]:
        """Return what every pass needs: embeddings, rotary factors, mask, cache, and each layer's view of memory."""
        x_BTd = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if isinstance(past_key_values, DynamicCache):
            # transformers sizes a cache by num_hidden_layers; every pass needs its own.
            missing = len(self.layers) * self.config.max_loops - len(past_key_values.layers)
            past_key_values.layers.extend(DynamicLayer() for _ in range(missing))
        mask: Any = None
        if attention_mask is not None or position_ids is not None or (past and x_BTd.shape[1] > 1):
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=x_BTd,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        if position_ids is None:
            position_ids = torch.arange(past, past + x_BTd.shape[1], device=x_BTd.device)[None]
        rotary = self._rotary(position_ids, x_BTd.dtype)
        return x_BTd, rotary, mask, past_key_values, self._readables(memory, past_key_values)

    def _readables(self, memory: MemoryState | None, cache: Cache | None) -> list[Readable]:
        """Return each layer's keys and values of memory; those of the bank are kept with the cache while generating."""
        attentions: list[MemoryAttention] = [layer.memory_attn for layer in self.each_layer()]
        kept: list[Readable] | None = getattr(cache, "cognate_bank", None)
        if kept is None or torch.is_grad_enabled():
            bank = self.memory.read(self.memory.slots, self.memory.slots)
            kept = [attention.readable(bank) for attention in attentions]
            if cache is not None and not torch.is_grad_enabled():
                cache.cognate_bank = kept  # type: ignore[attr-defined]
        if memory is None:
            return kept
        written = self.memory.read(memory.keys, memory.values)
        return [
            attention.with_written(bank, written, memory.log_gate)
            for bank, attention in zip(kept, attentions, strict=True)
        ]

    def _fill_cache(self, x_BTd: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache, place: int) -> None:
        """Store the keys and values of a pass in which no token takes part."""
        for index, layer in enumerate(self.each_layer()):
            layer.self_attn.keys_values(layer.input_layernorm(x_BTd), rotary, cache, place + index)

    def _rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, each (B or 1, 1, T, D), in `dtype`."""
        width = self.config.hidden_size // self.config.num_attention_heads
        steps = torch.arange(0, width, 2, device=position_ids.device, dtype=torch.float32)
        angles = position_ids[..., None].float() * self.config.rope_theta ** (-steps / width)
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


class CognateForCausalLM(CognatePreTrainedModel, GenerationMixin):
    """Cognate with its vocabulary head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - transformers' protocol

    def __init__(self, config: CognateConfig) -> None:
        super().__init__(config)
        self.model = CognateModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        memory: MemoryState | None = None,
        write_memory: bool | None = None,
        **kwargs: Any,
    ) -> CognateOutput:
        """Return logits (B, T, V) of each token at its exit; the loss over them when `labels` are given.

        memory: what earlier segments wrote. write_memory (default: the config's) also returns the state after this one.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            memory=memory,
            **kwargs,
        )
        hidden = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        if (self.config.write_memory if write_memory is None else write_memory) and input_ids is not None:
            memory, _ = self.write(hidden, output.middle, input_ids, attention_mask, memory)
        return CognateOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            memory=memory,
            passes=output.passes,
        )

    def write(
        self,
        hidden: Tensor,
        middle: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        memory: MemoryState | None,
    ) -> tuple[MemoryState, Tensor]:
        """Return memory after a segment, and the mean gate of what was written.

        hidden: final states (B, T, d), which say what was surprising; middle: the streams half way up, which are kept.
        """
        bank, rows = self.model.memory, input_ids.shape[0]
        with torch.no_grad():
            losses = cognate_loss.token_losses(hidden[:, :-1].flatten(0, 1), self.lm_head, input_ids[:, 1:].flatten())
            surprise = F.pad(losses.view(rows, -1) / math.log(self.config.vocab_size), (1, 0))
        valid = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None and attention_mask.dim() == 2:
            valid = attention_mask[:, -input_ids.shape[1] :].bool()
        return bank.write(
            bank.empty(rows) if memory is None else memory,
            middle,
            surprise,
            valid,
            self.config.surprise_weight,
            self.config.novelty_weight,
        )

    def training_loss(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the expected loss over exits, and metrics; labels as in Hugging Face (-100 is ignored)."""
        loss, metrics, _ = cognate_loss.expected_loss(self, input_ids, labels)
        return loss, metrics


def rotate(x_BHTD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Return queries or keys turned by their positions."""
    cosine, sine = rotary
    left, right = x_BHTD.chunk(2, -1)
    return x_BHTD * cosine + torch.cat([-right, left], -1) * sine


def register() -> None:
    """Make AutoConfig, AutoModel and AutoModelForCausalLM know Cognate."""
    AutoConfig.register("cognate", CognateConfig, exist_ok=True)
    AutoModel.register(CognateConfig, CognateModel, exist_ok=True)
    AutoModelForCausalLM.register(CognateConfig, CognateForCausalLM, exist_ok=True)


# Whoever imports this module before transformers makes the registration of the package skip it: it is not whole then.
register()
