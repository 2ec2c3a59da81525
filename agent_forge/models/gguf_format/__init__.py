"""GGUF, both ways: which tensor, setting and token of a file is which of a transformers model.

families: names and orientation of tensors; settings: metadata and config.json; rope: rotary positions; pre_tokenizers and
vocabulary: tokenizers; reading: a file into a model. `agent_forge.export` writes with the same tables, so what one side
says the other understands. Names come from the gguf package's own constants and maps.
"""
