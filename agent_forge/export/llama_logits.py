"""Run token ids through a GGUF file with llama.cpp and write the logits.

    python -I llama_logits.py MODEL.gguf REQUEST.json OUT.npz

A separate program, run by any Python that has numpy and llama-cpp-python or xllamacpp: it imports
nothing from Agent Forge. REQUEST holds {"ids": [[int]], "texts": [str], "vocabulary": int} and
may name the GGUF file of a LoRA "adapter". OUT gets, for each row of
ids, positions_<i> (P,) and logits_<i> (P, vocabulary) float32 of the token after each position, up
to one constant per row; and for each text tokens_<i> int64, with the special tokens that the file
adds.
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

MOST_ENTRIES = 1 << 21  # probabilities that a server is asked for in all
MOST_REQUESTS = 16  # requests for probabilities, each for one position
ANSWER_SECONDS = 60  # the longest that one request may take


def main(model: str, request: str, out: str) -> None:
    """Answer one request."""
    with open(request, encoding="utf-8") as file:
        content = json.load(file)
    try:
        import llama_cpp  # noqa: F401 - only its presence counts
    except ImportError:
        answer = with_server(model, content)
    else:
        answer = in_process(model, content)
    np.savez(out, **answer)  # type: ignore[arg-type]  # numpy's stub takes the names for its flag


def in_process(model: str, request: dict[str, Any]) -> dict[str, Any]:
    """Answer with llama-cpp-python."""
    from llama_cpp import Llama

    longest = max(map(len, request["ids"]))
    llm = Llama(
        model_path=model,
        n_ctx=longest + 8,
        n_batch=longest + 8,
        logits_all=True,
        verbose=False,
        n_threads=2,
        lora_path=request.get("adapter") or None,
    )
    answer: dict[str, Any] = {}
    for number, ids in enumerate(request["ids"]):
        llm.reset()
        llm.eval(ids)
        answer[f"logits_{number}"] = np.array(llm.scores[: len(ids)], np.float32)
        answer[f"positions_{number}"] = np.arange(len(ids))
    for number, text in enumerate(request["texts"]):
        tokens = llm.tokenize(text.encode(), add_bos=True, special=True)
        answer[f"tokens_{number}"] = np.array(tokens, np.int64)
    return answer


def with_server(model: str, request: dict[str, Any]) -> dict[str, Any]:
    """Answer with xllamacpp, whose server gives log-probabilities: logits less a constant."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # compiled, without types
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.warmup, params.ui = model, 0, False, False
    if request.get("adapter"):
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(request["adapter"], 1.0)]
    params.n_ctx, params.n_parallel = max(map(len, request["ids"])) + 8, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)  # serves as long as this object lives
    address = server.listening_address

    def post(path: str, content: dict[str, Any]) -> Any:
        request = urllib.request.Request(address + path, json.dumps(content).encode())
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)

    _wait_for(address)

    vocabulary, tokens = int(request["vocabulary"]), sum(map(len, request["ids"]))
    stride = max(1, -(-tokens // min(MOST_REQUESTS, MOST_ENTRIES // vocabulary)))
    # The server gives no probabilities for a token that is part of a character, or an end. The bias
    # makes it answer with a letter, and does not change the probabilities.
    letter = post("/tokenize", {"content": "a"})["tokens"][-1]
    answer: dict[str, Any] = {}
    for number, ids in enumerate(request["ids"]):
        places = np.arange(len(ids) - 1, -1, -stride)[::-1]
        rows = np.full((len(places), vocabulary), -np.inf, np.float32)
        for row, place in enumerate(places):
            settings = {
                "n_predict": 1,
                "n_probs": vocabulary,
                "cache_prompt": False,
                "logit_bias": [[letter, 1e4]],
            }
            reply = post("/completion", {"prompt": ids[: place + 1], **settings})
            for entry in reply["completion_probabilities"][0]["top_logprobs"]:
                rows[row, entry["id"]] = entry["logprob"]
        answer[f"logits_{number}"], answer[f"positions_{number}"] = rows, places
    for number, text in enumerate(request["texts"]):
        reply = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        answer[f"tokens_{number}"] = np.array(reply["tokens"], np.int64)
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
    os._exit(0)  # an ordinary exit would wait for the server's threads
