"""Train a byte-level BPE tokenizer with single digits, ChatML turns and tool-call tokens.

Digits are tokens of their own so that a small model can copy numbers into calls exactly.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent_forge.core.errors import ConfigError
from agent_forge.data.chat import CHAT_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SPECIAL = (END_OF_TEXT, "<|im_start|>", "<|im_end|>", "<|pad|>")
# Visible in decoded text, so added but not "special": the agent parses them.
TOOL_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, context_tokens: int = 2048
) -> "PreTrainedTokenizerFast":
    """Return a byte-level BPE tokenizer of exactly `vocab_size` tokens (or fewer when `texts` is
    too small).

    Raises ConfigError when vocab_size cannot hold the 256 bytes and the fixed tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fixed = len(SPECIAL) + len(TOOL_TOKENS)
    if vocab_size < 256 + fixed:
        raise ConfigError(
            f"model.vocab_size must be at least {256 + fixed} (bytes and fixed tokens), got "
            f"{vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TOOL_TOKENS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in TOOL_TOKENS]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
