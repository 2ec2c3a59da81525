"""GGUF, both ways: which tensor, setting and token of a file is which of a transformers model.

    families.py        names and orientation of tensors
    settings.py        metadata and config.json
    rope.py            rotary positions
    vocabulary.py      tokenizers
    pre_tokenizers.py  how tokenizers cut text
    metadata.py        the keys of a file, all read or refused
    reading.py         a file into a model

`agent_forge.export` writes with the same tables, so that an import understands every export. Names
come from the gguf package's own constants and maps.
"""
