"""Corpora, tokenizers, packing and batches; generated tasks under `synthetic`.

Batches are pure functions of (seed, step): a resumed run needs no saved data position.
"""

from agent_forge.data.chat import IM_END, IM_START, encode_chat, encode_prompt, stop_ids, turn_end
from agent_forge.data.documents import documents, split_of
from agent_forge.data.sources import Mixture, RowSource, TextSource, source
from agent_forge.data.tokenizer import train_tokenizer
from agent_forge.data.windows import text_start, window_prefix

__all__ = [
    "IM_END",
    "IM_START",
    "Mixture",
    "RowSource",
    "TextSource",
    "documents",
    "encode_chat",
    "encode_prompt",
    "source",
    "split_of",
    "stop_ids",
    "text_start",
    "train_tokenizer",
    "turn_end",
    "window_prefix",
]
