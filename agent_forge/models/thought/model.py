"""A causal language model that can think before each token, around any Hugging Face causal LM.

`forward` is the base model without thinking, so later phases train and score it like any other.
`think` samples thoughts at many positions at once and returns the predictions with and without
them; `generate` thinks where the base is unsure. A thought is a trained start vector, L sampled
tokens and a trained end vector. The vectors are embeddings, so the vocabulary does not change and
the model cannot emit a meta token.

Source: Quiet-STaR, arXiv:2403.09629. Departures from its reference code: sampling follows the
temperature; a thought has the same length in training and in generation; the prefix is cached, not
encoded again for each token.

Shape letters: B rows, T prefix tokens, P positions, N thoughts, L thought tokens, A predicted
tokens, V vocabulary, H width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast

from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.models.plain import attends_causally, stack_of
from agent_forge.models.thought import layout
from agent_forge.models.thought.chains import Chains, croppable_length
from agent_forge.models.thought.mixing import MixingHead, entropy_nats, mix

ATTENTION = ("sdpa", "eager")
# Read from the base's config, because other code asks the outer config for them.
_OF_BASE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "max_position_embeddings", "tie_word_embeddings",
    "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


class ThoughtConfig(PretrainedConfig):
    """Settings of a thinking model.

    thought_length: sampled tokens per thought.
    thoughts: thoughts per generated token, averaged after mixing.
    temperature: the temperature of thought tokens; 0 is greedy.
    gate_entropy_nats: generate() thinks where the base's next-token entropy is at least this; None
    never thinks, 0 always does.
    thought_budget: most positions of a row at which one generate() thinks, the first that pass the
    gate; None has no limit.
    """

    model_type = "thought"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {  # type: ignore[misc]
        "base_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    base_config: dict[str, Any] | PretrainedConfig | None = None
    thought_length: int = 4
    thoughts: int = 1
    temperature: float = 1.0
    gate_entropy_nats: float | None = None
    thought_budget: int | None = None

    def __getattr__(self, name: str) -> Any:
        base = self.__dict__.get("base_config")
        if name in _OF_BASE and isinstance(base, PretrainedConfig):
            return getattr(base, name)
        raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")

    def get_text_config(
        self,
        decoder: bool | None = None,  # noqa: ARG002 - transformers' signature
        encoder: bool | None = None,  # noqa: ARG002
    ) -> PretrainedConfig:
        """Return the base's config, which sizes caches and generation."""
        assert isinstance(self.base_config, PretrainedConfig)
        return self.base_config


@dataclass(slots=True)
class Thoughts:
    """The result of thinking. Entry a of the A axis predicts the token at positions + 1 + a."""

    positions: Tensor  # (B, P) prefix columns
    tokens: Tensor  # (B, P, N, L) sampled thought tokens
    log_probs: Tensor  # (B, P, N, L) log p of `tokens` at the temperature, differentiable
    prefix_logits: Tensor  # (B, T, V) from the base without thinking
    base_logits: Tensor  # (B, P, A, V) from the base without thinking, at the thinking positions
    thought_logits: Tensor  # (B, P, N, A, V) after the thought
    weights: Tensor  # (B, P, N, A) in [0, 1]

    def mixed_logits(self) -> Tensor:
        """Return the mixture (B, P, N, A, V); weights 0 and 1 give one of both, bit for bit."""
        return mix(self.base_logits[:, :, None], self.thought_logits, self.weights)


class ThoughtForCausalLM(PreTrainedModel, GenerationMixin):
    """Any causal LM plus start vector, end vector and mixing head."""

    config_class = ThoughtConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: ThoughtConfig, base: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.base = (
            base if base is not None else AutoModelForCausalLM.from_config(config.base_config)
        )
        width = config.hidden_size
        self.start = nn.Parameter(torch.empty(width))
        self.end = nn.Parameter(torch.empty(width))
        self.mixing = MixingHead(width)
        self._thought_seed: int | None = None
        self._budget: int | None = None
        self._spent: Tensor | None = None  # (rows,): positions thought at, with a budget
        self._takes_masks = False
        self.keeps_thoughts = False  # whether `kept_thoughts` has something to return
        self._kept: list[Tensor] = []
        self.post_init()

    @property
    def thinks(self) -> bool:
        """Return whether the gate can open, so that generate() may think."""
        return self.config.gate_entropy_nats is not None

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MixingHead):
            for weight in (module.weight_1, module.weight_2):
                init.normal_(weight, mean=0.0, std=math.sqrt(2.0 / weight.shape[1]))
            for zero in (module.bias_1, module.bias_2, module.weight_3, module.bias_3):
                init.zeros_(zero)
        elif module is self:
            init.normal_(self.start, mean=0.0, std=0.02)
            init.normal_(self.end, mean=0.0, std=0.02)

    @classmethod
    def wrap(
        cls, base: PreTrainedModel, *, start_ids: list[int], end_ids: list[int], **settings: Any
    ) -> "ThoughtForCausalLM":
        """Return a thinking model around `base` (kept, not copied).

        start_ids, end_ids: the start and end vectors begin as the mean embedding of these tokens.
        settings: the fields of ThoughtConfig.
        """
        attention = base.config._attn_implementation
        config = ThoughtConfig(base_config=base.config, attn_implementation=attention, **settings)  # type: ignore[call-arg]
        config.dtype = base.dtype
        quantised = getattr(base.config, "quantization_config", None)
        if quantised is not None:
            config.quantization_config = quantised
            del base.config.quantization_config
        # post_init must not replace trained weights by new ones, nor advance the global random
        # state.
        with torch.random.fork_rng(devices=[]):
            for module in base.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
            model = cls(config, base)
        if quantised is not None:
            for name in ("hf_quantizer", "is_quantized", "quantization_method"):
                setattr(model, name, getattr(base, name))
        model.to(base.device, base.dtype)  # type: ignore[arg-type]
        embed = base.get_input_embeddings()
        with torch.no_grad():
            for vector, ids in ((model.start, start_ids), (model.end, end_ids)):
                vector.copy_(embed(torch.tensor(ids, device=base.device)).mean(0))
        if base.generation_config is not None:
            model.generation_config = base.generation_config
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the base's output; inside generate() a thought is mixed into the last logits."""
        thinking = self._thought_seed is not None and use_cache is not False
        if thinking:
            kwargs["output_hidden_states"] = True
        inputs = {
            "input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids,
            "labels": labels, "past_key_values": past_key_values, "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
        }  # fmt: skip
        outputs = self.base(
            **{name: value for name, value in inputs.items() if value is not None}, **kwargs
        )
        if not thinking:
            return outputs
        return self._think_at_end(
            outputs, attention_mask, {k: v for k, v in kwargs.items() if k == "memory"}
        )

    def training_loss(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the base's own training loss if it has one, else next-token cross-entropy."""
        if hasattr(self.base, "training_loss"):
            return self.base.training_loss(input_ids, labels)  # type: ignore[no-any-return, operator]
        # Without a mask, transformers checks whether positions jump, and the host would wait for
        # the accelerator.
        stack = stack_of(self.base) if input_ids.device.type != "cpu" else None
        with nullcontext() if stack is None else attends_causally(stack):
            return self.base(input_ids=input_ids, labels=labels, use_cache=False).loss, {}

    def think(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        thoughts: int | None = None,
        thought_length: int | None = None,
        lookahead: int = 1,
        temperature: float | None = None,
        seed: int = 0,
        tokens: Tensor | None = None,
    ) -> Thoughts:
        """Think at many positions in parallel; return both predictions, differentiable.

        input_ids: (B, T).
        positions: (B, P) columns to think at; None thinks at all of them.
        lookahead: predicted tokens per position. After the first, the true tokens are fed in;
        columns past T repeat the last one, and the loss has to mask them.
        tokens: (B, P, N, L) thoughts to use instead of sampled ones.

        Sampling runs without gradient on a cache; then one forward over prefix and thoughts gives
        everything else. Raises PhaseError when the base does not obey a four-dimensional mask.
        """
        self._require_masks()
        batch, width = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if positions is None:
            positions = torch.arange(width, device=input_ids.device).expand(batch, width)
        count = thoughts or self.config.thoughts
        length = self.config.thought_length if thought_length is None else thought_length
        heat = self.config.temperature if temperature is None else temperature
        if tokens is None:
            places = layout.Places(attention_mask, positions, count)
            tokens = self._sample_thoughts(input_ids, places, length, heat, seed)
        places = layout.Places(attention_mask, positions, tokens.shape[2])
        return self._forward_with_thoughts(input_ids, places, tokens, lookahead, heat)

    @torch.no_grad()
    def _sample_thoughts(
        self, input_ids: Tensor, places: layout.Places, length: int, heat: float, seed: int
    ) -> Tensor:
        """Return thought tokens (B, P, N, L), sampled step by step on the prefix's cache."""
        mask = places.mask
        embeds = self.base.get_input_embeddings()(input_ids)
        outputs = self.base(
            inputs_embeds=embeds,
            attention_mask=layout.additive(layout.prefix_mask(mask), embeds.dtype),
            position_ids=layout.token_positions(mask),
            use_cache=True,
        )
        chains = Chains(self.base, self.start, outputs.past_key_values, places)
        return chains.think(length, heat, seed)

    def _forward_with_thoughts(
        self,
        input_ids: Tensor,
        where: layout.Places,
        tokens: Tensor,
        lookahead: int,
        heat: float,
    ) -> Thoughts:
        """Run prefix and thoughts in one forward; layout.py explains the columns."""
        mask, positions = where.mask, where.positions
        _, places, count, length = tokens.shape
        width, steps = input_ids.shape[1], length + 1 + lookahead
        shift = torch.arange(lookahead, device=positions.device)
        # (B, A - 1, P)
        ahead = (positions[:, None, :] + shift[None, 1:, None]).clamp_max(width - 1)
        embeds = self._columns(input_ids, tokens, ahead)
        first = where.followed() + 1  # (B, M)
        later = (
            first[:, None, :] + torch.arange(steps, device=first.device)[None, :, None]
        ).flatten(1)
        sees = where.sees_prefix()
        outputs = self.base(
            inputs_embeds=embeds,
            attention_mask=layout.additive(layout.whole_mask(mask, sees, steps), embeds.dtype),
            position_ids=torch.cat([layout.token_positions(mask), later], dim=1),
            output_hidden_states=True,
            use_cache=False,
        )

        def split(values: Tensor) -> tuple[Tensor, Tensor]:
            return values[:, :width], values[:, width:].unflatten(1, (steps, places, count))

        base_logits, logits = split(outputs.logits)
        base_hidden, hidden = split(outputs.hidden_states[-1])
        at = (positions[:, :, None] + shift).clamp_max(width - 1).flatten(1)  # (B, P * A)

        def take(values: Tensor) -> Tensor:
            return values.gather(1, at[:, :, None].expand(-1, -1, values.shape[-1])).unflatten(
                1, (places, lookahead)
            )

        h_thought = hidden[:, length + 1 :].permute(0, 2, 3, 1, 4)  # (B, P, N, A, H)
        h_base = take(base_hidden)[:, :, None].expand_as(h_thought)
        # (B, P, N, L, V): column s predicts thought token s
        spoken = logits[:, :length].permute(0, 2, 3, 1, 4)
        log_probs = (
            torch.log_softmax(spoken / (heat or 1.0), dim=-1)
            .gather(-1, tokens[..., None])
            .squeeze(-1)
        )
        return Thoughts(
            positions=positions,
            tokens=tokens,
            log_probs=log_probs,
            prefix_logits=base_logits,
            base_logits=take(base_logits),
            thought_logits=logits[:, length + 1 :].permute(0, 2, 3, 1, 4),
            weights=self.mixing(h_base, h_thought),
        )

    def _columns(self, input_ids: Tensor, tokens: Tensor, ahead: Tensor) -> Tensor:
        """Return the embeddings (B, T + S M, H) of the prefix and of the steps of all M chains.

        The S steps of a chain are the start, its thought, the end, and the true tokens after its
        position. ahead: (B, A - 1, P), the columns that hold these.
        """
        batch, places, count, length = tokens.shape
        chains = places * count
        embed = self.base.get_input_embeddings()
        flat = tokens.reshape(batch, chains, length).transpose(1, 2)  # (B, L, M), step after step
        true = (
            input_ids.gather(1, ahead.flatten(1))
            .reshape(ahead.shape)
            .repeat_interleave(count, dim=2)
        )
        meta = (batch, 1, chains, self.start.shape[0])
        columns = [self.start.expand(meta), embed(flat), self.end.expand(meta), embed(true)]
        return torch.cat([embed(input_ids), torch.cat(columns, dim=1).flatten(1, 2)], dim=1)

    def generate(
        self, *args: Any, thought_seed: int = 0, thought_budget: int | None = None, **kwargs: Any
    ) -> Any:
        """Generate as any model does, thinking before each token whose entropy passes the gate.

        thought_seed: seed of the sampled thoughts. thought_budget: as in ThoughtConfig, whose value
        holds where it is None. A row costs one forward pass per token, and thought_length + 1 more
        per position that it thinks at: the thought's last token and its end share one.
        Raises ConfigError for assisted decoding, which checks several tokens in one forward, while
        a thought follows a single one.
        """
        if kwargs.get("assistant_model") is not None or kwargs.get("prompt_lookup_num_tokens"):
            raise ConfigError(
                "a thinking model cannot be assisted; drop assistant_model and "
                "prompt_lookup_num_tokens"
            )
        if self.config.gate_entropy_nats is None or kwargs.get("use_cache") is False:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        with self.thinking(thought_seed, thought_budget):
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def thinking(self, seed: int = 0, budget: int | None = None) -> Iterator[None]:
        """Let forward passes on a cache think, as they do within `generate`.

        seed: of the sampled thoughts. budget: most positions per row; None: the config's. Raises
        PhaseError when the base cannot think. A shut gate lets nothing think.
        """
        if self.config.gate_entropy_nats is None:
            yield
            return
        self._require_masks()
        before = (self._thought_seed, self._budget, self._spent)
        self._thought_seed, self._spent = seed, None
        self._budget = self.config.thought_budget if budget is None else budget
        try:
            yield
        finally:
            self._thought_seed, self._budget, self._spent = before

    def kept_thoughts(self) -> list[list[int]]:
        """Return the thoughts of the first row since the last call, where keeps_thoughts is set."""
        thoughts, self._kept = self._kept, []
        return [thought for tokens in thoughts for thought in tokens.tolist()]

    @torch.no_grad()
    def _think_at_end(
        self,
        outputs: CausalLMOutputWithPast,
        attention_mask: Tensor | None,
        context: dict[str, Any],
    ) -> CausalLMOutputWithPast:
        """Mix a thought into the last logits of rows whose entropy passes the gate.

        The cache is cropped to its old length afterwards.

        context: other inputs of the base that a thought must see too (Cognate's written memory).
        """
        assert outputs.logits is not None
        assert outputs.hidden_states is not None
        assert self._thought_seed is not None
        logits = outputs.logits[:, -1]
        opened = self._within_budget(entropy_nats(logits) >= self.config.gate_entropy_nats)
        if not opened.any():
            return outputs
        cache: Any = outputs.past_key_values
        held = croppable_length(cache)
        if attention_mask is None:
            attention_mask = torch.ones(
                logits.shape[0], held, dtype=torch.long, device=logits.device
            )
        positions = torch.full((logits.shape[0], 1), held - 1, device=logits.device)
        chains = Chains(
            self.base,
            self.start,
            cache,
            layout.Places(attention_mask[:, :held], positions, self.config.thoughts),
            context,
        )
        tokens = chains.think(
            self.config.thought_length, self.config.temperature, self._thought_seed
        )
        if self.keeps_thoughts and bool(opened[0]):
            self._kept.append(tokens[0, 0])  # (N, L)
        last = self.base.get_input_embeddings()(tokens[..., -1].flatten(1))
        after = chains.feed(last, self.end.expand(*chains.shape, -1), hidden=True)
        assert after.logits is not None
        assert after.hidden_states is not None
        cache.crop(held - cache.get_seq_length())
        ends = slice(chains.shape[1], None)  # the columns after the thought's last tokens
        h_thought = after.hidden_states[-1][:, ends]
        h_base = outputs.hidden_states[-1][:, -1:].expand_as(h_thought)
        mixed = mix(logits[:, None], after.logits[:, ends], self.mixing(h_base, h_thought))
        mean = (
            mixed[:, 0] if self.config.thoughts == 1 else logits + (mixed - logits[:, None]).mean(1)
        )
        chosen = torch.where(opened[:, None], mean, logits)
        outputs.logits = torch.cat([outputs.logits[:, :-1], chosen[:, None]], dim=1)
        return outputs

    def _within_budget(self, opened: Tensor) -> Tensor:
        """Return which of the rows whose gate is open may still think, (rows,); count them."""
        if self._budget is None:
            return opened
        if self._spent is None or len(self._spent) != len(opened):
            self._spent = torch.zeros_like(opened, dtype=torch.long)
        opened = opened & (self._spent < self._budget)
        self._spent = self._spent + opened
        return opened

    @torch.no_grad()
    def _require_masks(self) -> None:
        """Check once that the base obeys a mask: a hidden token must not change a prediction.

        Raises PhaseError otherwise.
        """
        if self._takes_masks:
            return
        name = type(self.base).__name__
        attention = self.base.config._attn_implementation
        if attention not in (*ATTENTION, None):
            raise PhaseError(
                f"thinking needs attention sdpa or eager, {name} runs {attention}; "
                "load it with attn_implementation='sdpa'"
            )
        kinds = {
            kind
            for kind in getattr(self.base.config, "layer_types", None) or ()
            if kind != "full_attention"
        }
        if kinds:
            raise PhaseError(
                f"{name} cannot think: thoughts need full attention in every layer, it "
                f"has {', '.join(sorted(kinds))}"
            )
        ids = torch.arange(3, device=self.base.device) % self.config.vocab_size
        embeds = self.base.get_input_embeddings()(ids).expand(2, 3, -1).clone()
        embeds[1, 0] = 1.0 - embeds[1, 0]
        sees = torch.tensor(
            [[[1, 0, 0], [0, 1, 0], [0, 1, 1]]], dtype=torch.bool, device=ids.device
        ).expand(2, 3, 3)
        places = torch.arange(3, device=ids.device).expand(2, 3)
        mask = layout.additive(sees, embeds.dtype)
        what = "a four-dimensional attention mask; use a model with plain attention"
        try:
            out = self.base(
                inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False
            )
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise PhaseError(f"{name} cannot think: it does not accept {what} ({error})") from error
        last = out.logits[:, 2]
        if not torch.allclose(last[0], last[1], rtol=1e-3, atol=1e-3 * float(last.abs().max())):
            raise PhaseError(f"{name} cannot think: it ignores {what}")
        self._takes_masks = True

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the base's own inputs for one step."""
        return self.base.prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[no-any-return, operator]

    def _supports_logits_to_keep(self) -> bool:
        return bool(self.base._supports_logits_to_keep())  # type: ignore[operator]

    def get_input_embeddings(self) -> nn.Module:
        """Return the base's token embedding."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the base's token embedding."""
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the base's output head."""
        return self.base.get_output_embeddings()  # type: ignore[no-any-return]

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the base's output head."""
        self.base.set_output_embeddings(value)


def register() -> None:
    """Register the model type "thought" with transformers."""
    AutoConfig.register(ThoughtConfig.model_type, ThoughtConfig, exist_ok=True)
    AutoModelForCausalLM.register(ThoughtConfig, ThoughtForCausalLM, exist_ok=True)
