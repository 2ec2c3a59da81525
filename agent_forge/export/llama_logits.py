"""Write logits: run token ids through a GGUF file with llama.cpp.

    python -I llama_logits.py MODEL.gguf REQUEST.json OUT.npz

A program of its own, run by any Python that has numpy and llama-cpp-python or xllamacpp: it imports nothing of Agent Forge.
REQUEST holds {"ids": [[int]], "texts": [str]}; OUT gets positions_<i> (P,), logits_<i> (P, vocabulary) float32 of what
follows the tokens there, up to a constant for each row, and tokens_<i> int64, with the special tokens that the file adds.
"""

import importlib
import json
import os
import sys
import time
import urllib.request
from contextlib import suppress
from typing import Any

import numpy as np

MOST_ENTRIES = 1 << 21  # probabilities asked of a server
MOST_REQUESTS = 16  # of them, one for each position

ANSWER_SECONDS = 60  # that one request may take


def main(model: str, request: str, out: str) -> None:
    """Answer one request."""
    with open(request, encoding="utf-8") as file:
        asked = json.load(file)
    try:
        import llama_cpp  # noqa: F401 - which of the two is here
    except ImportError:
        answer = with_server(model, asked)
    else:
        answer = in_process(model, asked)
    np.savez(out, **answer)  # type: ignore[arg-type]  # numpy's stub takes the names for its flag


def in_process(model: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Answer with llama-cpp-python."""
    from llama_cpp import Llama

    longest = max(map(len, asked["ids"]))
    llm = Llama(model_path=model, n_ctx=longest + 8, n_batch=longest + 8, logits_all=True, verbose=False, n_threads=2)
    answer: dict[str, Any] = {}
    for number, ids in enumerate(asked["ids"]):
        llm.reset()
        llm.eval(ids)
        answer[f"logits_{number}"] = np.array(llm.scores[: len(ids)], np.float32)
        answer[f"positions_{number}"] = np.arange(len(ids))
    for number, text in enumerate(asked["texts"]):
        tokens = llm.tokenize(text.encode(), add_bos=True, special=True)
        answer[f"tokens_{number}"] = np.array(tokens, np.int64)
    return answer


def with_server(model: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Answer with xllamacpp: llama.cpp's server gives log-probabilities, which are logits less a constant."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # compiled: it says nothing of its types
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.warmup, params.ui = model, 0, False, False
    params.n_ctx, params.n_parallel = max(map(len, asked["ids"])) + 8, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)  # it serves while it is held
    address = server.listening_address

    def post(path: str, content: dict[str, Any]) -> Any:
        request = urllib.request.Request(address + path, json.dumps(content).encode())
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)

    _wait_for(address)

    vocabulary, tokens = int(asked["vocabulary"]), sum(map(len, asked["ids"]))
    stride = max(1, -(-tokens // min(MOST_REQUESTS, MOST_ENTRIES // vocabulary)))
    # Part of a character, or an end, would come without probabilities: a letter follows, which changes none of them.
    letter = post("/tokenize", {"content": "a"})["tokens"][-1]
    answer: dict[str, Any] = {}
    for number, ids in enumerate(asked["ids"]):
        places = np.arange(len(ids) - 1, -1, -stride)[::-1]
        rows = np.full((len(places), vocabulary), -np.inf, np.float32)
        for row, place in enumerate(places):
            settings = {"n_predict": 1, "n_probs": vocabulary, "cache_prompt": False, "logit_bias": [[letter, 1e4]]}
            told = post("/completion", {"prompt": ids[: place + 1], **settings})
            for entry in told["completion_probabilities"][0]["top_logprobs"]:
                rows[row, entry["id"]] = entry["logprob"]
        answer[f"logits_{number}"], answer[f"positions_{number}"] = rows, places
    for number, text in enumerate(asked["texts"]):
        told = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        answer[f"tokens_{number}"] = np.array(told["tokens"], np.int64)
    return answer


def _wait_for(address: str) -> None:
    """Wait until a server answers. Raises TimeoutError when it never does."""
    end = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"llama.cpp's server did not begin within {ANSWER_SECONDS} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # the server's threads would be waited for
