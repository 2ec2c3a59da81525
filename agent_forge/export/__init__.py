"""Export a checkpoint: GGUF (llama.cpp, Ollama), a plain Hugging Face folder, a packed file, each with a model card.

`run.export(source, out, format, type)` is the door; `check.compare` loads a GGUF file in llama.cpp and compares logits.
Needs the extra `export` (gguf); the check also llama-cpp-python, here or in another Python.
"""

FORMATS = ("gguf", "hf", "ollama", "packed")
