"""Cognate: a looped transformer with a memory bank that chooses the number of passes per token.

The stack of layers runs r = 1..R times. After each pass but the last a halting head gives the
probability of stopping there. At inference a token exits when the cumulated probability reaches
`halting_threshold`, and its hidden state is frozen: deeper passes see it through the keys and
values of that state. So the cache only holds states that were computed, and every exit depends
only on earlier tokens. Sources: PonderNet, arXiv:2107.05407; looped language models (Ouro),
arXiv:2510.25741. Layers: layers.py. Memory: memory.py. Training losses: loss.py.

Shapes: B rows, T time, d hidden, H heads, D head width, S slots, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from agent_forge.anatomy.cross_entropy import token_losses
from agent_forge.models.cognate.layers import CognateConfig, CognateLayer, HaltingHead
from agent_forge.models.cognate.loss import expected_loss
from agent_forge.models.cognate.memory import MemoryAttention, MemoryBank, MemoryState, Readable


@dataclass
class CognateModelOutput(BaseModelOutputWithPast):
    """The output of the stack.

    passes: (B, T) int64, the passes that each token used.
    middle: (B, T, d), the stream half way up in each token's last pass.
    """

    passes: Tensor | None = None
    middle: Tensor | None = None


@dataclass
class CognateOutput(CausalLMOutputWithPast):
    """The output with logits.

    memory: the state after this segment when it was written, else the state that was read.
    passes: (B, T) int64, the passes that each token used.
    """

    memory: MemoryState | None = None
    passes: Tensor | None = None


class CognatePreTrainedModel(PreTrainedModel):
    """Initialisation, and the attributes that transformers reads."""

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
        """Make linear layers the identity, except compressed ones, which have no weight yet."""
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
        self.memory = MemoryBank(
            config.memory_slots, config.hidden_size, config.written_slots, config.rms_norm_eps
        )
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
        """Return the last hidden state (B, T, d) of each token, at its own exit.

        output_hidden_states: also return the embedding and each layer's output in the last pass
        that ran (the last one normed), as transformers' models do.
        """
        x_BTd, rotary, mask, cache, readables = self.prepare(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            memory,
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
        states = (*hidden[:-1], last) if output_hidden_states else None
        return CognateModelOutput(
            last_hidden_state=last,
            past_key_values=cache,
            hidden_states=states,  # type: ignore[arg-type]
            passes=passes,
            middle=middle,
        )

    def all_passes(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        memory: MemoryState | None,
        loops: int,
        *,
        leaving: bool = False,
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the normed hidden states after each pass, halting logits, and the middle stream.

        There are `loops` hidden states (B, T, d), loops - 1 logits (B, T), and the last pass's
        middle stream (B, T, d), which memory writes (`middle`).

        leaving: tokens see each other's expected states over exits (loss.py), not the states of
        tokens that stay to the end.
        """
        if attention_mask is not None and attention_mask.device.type != "cpu":
            attention_mask = written_mask(attention_mask)
        x_BTd, rotary, mask, _, readables = self.prepare(input_ids, attention_mask, memory=memory)
        hidden, halts, middle = [], [], x_BTd
        left_BTd, stay_BT1 = torch.zeros_like(x_BTd), torch.ones_like(x_BTd[..., :1])
        for loop in range(loops):
            for index, (layer, readable) in enumerate(
                zip(self.layers, readables, strict=True), start=1
            ):
                context = left_BTd + stay_BT1 * x_BTd if leaving and loop else None
                x_BTd = layer(x_BTd, rotary, mask, readable, None, 0, context)
                middle = x_BTd if index == self.middle else middle
            hidden.append(self.norm(x_BTd))
            if loop + 1 < loops:
                halts.append(self.halting(x_BTd))
                halt_BT1 = torch.sigmoid(halts[-1])[..., None]
                left_BTd, stay_BT1 = (
                    left_BTd + stay_BT1 * halt_BT1 * x_BTd,
                    stay_BT1 * (1 - halt_BT1),
                )
        return hidden, halts, middle

    @property
    def middle(self) -> int:
        """Return after how many layers memory takes the stream."""
        return (len(self.layers) + 1) // 2

    def each_layer(self) -> list[CognateLayer]:
        """Return the layers with their type."""
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
        """Return embeddings, rotary factors, mask, cache and each layer's view of memory."""
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
        """Return each layer's keys and values of memory.

        The cache holds the bank's in generation.
        """
        attentions: list[MemoryAttention] = [layer.memory_attn for layer in self.each_layer()]
        readables: list[Readable] | None = getattr(cache, "cognate_bank", None)
        if readables is None or torch.is_grad_enabled():
            bank = self.memory.read(self.memory.slots, self.memory.slots)
            readables = [attention.readable(bank) for attention in attentions]
            if cache is not None and not torch.is_grad_enabled():
                cache.cognate_bank = readables  # type: ignore[attr-defined]
        if memory is None:
            return readables
        written = self.memory.read(memory.keys, memory.values)
        return [
            attention.with_written(bank, written, memory.log_gate)
            for bank, attention in zip(readables, attentions, strict=True)
        ]

    def _fill_cache(
        self, x_BTd: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache, place: int
    ) -> None:
        """Store the keys and values of a pass after all tokens have left."""
        for index, layer in enumerate(self.each_layer()):
            layer.self_attn.keys_values(layer.input_layernorm(x_BTd), rotary, cache, place + index)

    def _rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, each (B or 1, 1, T, D), in `dtype`."""
        width = self.config.hidden_size // self.config.num_attention_heads
        steps = torch.arange(0, width, 2, device=position_ids.device, dtype=torch.float32)
        angles = position_ids[..., None].float() * self.config.rope_theta ** (-steps / width)
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


def written_mask(attention_mask: Tensor) -> Tensor:
    """Return the real tokens up to itself that each token of (B, T) sees, (B, 1, T, T) bool.

    Given a mask (B, T), transformers checks whether it hides anything, and the host would wait for
    the accelerator.
    """
    width = attention_mask.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=attention_mask.device).tril()
    return (causal & attention_mask.bool()[:, None, :])[:, None]


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
        """Return logits (B, T, V) of each token at its exit, and their loss when `labels` are
        given.

        memory: what earlier segments wrote.
        write_memory: also return the state after this segment; None goes by the config.
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
        positions = (
            slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        )
        logits = self.lm_head(hidden[:, positions])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
            )
        if (
            self.config.write_memory if write_memory is None else write_memory
        ) and input_ids is not None:
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
        """Return memory after a segment, and the mean gate of the written slots.

        hidden: final states (B, T, d), from which surprise is computed.
        middle: the streams half way up the stack, which are written.
        """
        bank, rows = self.model.memory, input_ids.shape[0]
        with torch.no_grad():
            losses = token_losses(
                hidden[:, :-1].flatten(0, 1), self.lm_head, input_ids[:, 1:].flatten()
            )
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

    def training_loss(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the expected loss over exits, and metrics; labels of -100 are ignored."""
        loss, metrics, _ = expected_loss(self, input_ids, labels)
        return loss, metrics


def register() -> None:
    """Register Cognate with AutoConfig, AutoModel and AutoModelForCausalLM."""
    AutoConfig.register("cognate", CognateConfig, exist_ok=True)
    AutoModel.register(CognateConfig, CognateModel, exist_ok=True)
    AutoModelForCausalLM.register(CognateConfig, CognateForCausalLM, exist_ok=True)


# Where this module is imported before transformers, the package's registration skips it, because
# it is still being imported then.
register()
