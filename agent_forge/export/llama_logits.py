"""Print nothing, write logits: run token ids through a GGUF file with llama-cpp-python.

    python -I llama_logits.py MODEL.gguf REQUEST.json OUT.npz

A program of its own, run by any Python that has llama-cpp-python and numpy: it imports nothing of Agent Forge. REQUEST
holds {"ids": [[int]], "texts": [str]}; OUT gets logits_<i> (T, vocabulary) float32 and tokens_<i> int64.
"""

import json
import sys

import numpy as np
from llama_cpp import Llama


def main(model: str, request: str, out: str) -> None:
    """Answer one request."""
    with open(request, encoding="utf-8") as file:
        asked = json.load(file)
    longest = max(map(len, asked["ids"]))
    llm = Llama(model_path=model, n_ctx=longest + 8, n_batch=longest + 8, logits_all=True, verbose=False, n_threads=2)
    found = {}
    for number, ids in enumerate(asked["ids"]):
        llm.reset()
        llm.eval(ids)
        found[f"logits_{number}"] = np.array(llm.scores[: len(ids)], np.float32)
    for number, text in enumerate(asked["texts"]):
        tokens = llm.tokenize(text.encode(), add_bos=False, special=True)
        found[f"tokens_{number}"] = np.array(tokens, np.int64)
    np.savez(out, **found)  # type: ignore[arg-type]  # numpy's stub takes the names for its flag


if __name__ == "__main__":
    main(*sys.argv[1:])
