"""Export a checkpoint with a model card: GGUF, Ollama, a plain Hugging Face folder, a packed file,
or the LoRA adapter that it was trained with as a GGUF file of its own.

Call `run.export(source, out, format, type)`; `check.compare` loads a GGUF file in llama.cpp and
compares logits. GGUF needs the extra `export`; the check also needs llama-cpp-python or xllamacpp,
in this Python or in another.
"""

FORMATS = ("gguf", "hf", "lora", "ollama", "packed")
