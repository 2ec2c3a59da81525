"""Quantise a GGUF with llama.cpp and score it on given tokens. Run by the bench `compress` in an
interpreter of its own.

    python scripts/llama_reference.py SOURCE.gguf TYPE[:EMBEDDING_TYPE] WORK_DIR

TYPE is one of llama.cpp's mixtures (Q4_K_M, IQ2_S, F16, ...); EMBEDDING_TYPE (Q4_K, Q3_K, ...)
replaces the type that the mixture gives to the token embedding, which in a small model is a large
part of the file. Needs llama-cpp-python and numpy alone. Reads WORK_DIR/tokens.json (windows of
token ids) and, when it is there, WORK_DIR/importance.npz (tensor name -> mean square of each input
column). Prints one line of JSON: the file, its bytes, and for each window the loss in nats of every
next token and the likeliest token.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray


def quantised(
    source: Path, kind: str, importance: dict[str, NDArray[np.float32]], target: Path
) -> None:
    """Write `source` as `kind` (see above) to `target`."""
    mixture, _, embedding = kind.partition(":")
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = int(os.environ.get("OMP_NUM_THREADS", "1"))
    params.ftype = constant(f"LLAMA_FTYPE_MOSTLY_{mixture}")
    if embedding:  # a tied embedding is looked up as the output
        params.token_embedding_type = params.output_tensor_type = constant(f"GGML_TYPE_{embedding}")
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if importance:
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    ):
        raise SystemExit(f"llama.cpp could not write {kind}")


def constant(name: str) -> int:
    """Return one of llama.cpp's constants. Exits naming it when this llama-cpp-python has none of
    that name.
    """
    if not hasattr(llama_cpp, name):
        raise SystemExit(
            f"this llama-cpp-python knows no {name}; take a type of its `llama_cpp.LLAMA_FTYPE_MOSTLY_*`"
        )
    return int(getattr(llama_cpp, name))


def scored(path: Path, windows: list[list[int]]) -> tuple[list[list[float]], list[list[int]]]:
    """Return for each window the loss of tokens 1.. in nats, and the likeliest token at positions 0
    .. n - 2.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    length = len(windows[0])
    model = llama_cpp.Llama(
        str(path), n_ctx=length, n_batch=length, n_ubatch=length, n_threads=threads, n_threads_batch=threads,
        logits_all=True, verbose=False,
    )  # fmt: skip
    losses, likeliest = [], []
    for window in windows:
        model.reset()
        model.eval(window)
        logits = np.asarray(model.scores[: length - 1], np.float32)
        top = logits.max(-1)
        norm = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        losses.append((norm - logits[np.arange(length - 1), window[1:]]).tolist())
        likeliest.append(logits.argmax(-1).tolist())
    return losses, likeliest


def main() -> None:
    """Quantise once, score, print."""
    source, kind, work = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    target = work / f"{source.stem}-{kind.replace(':', '-')}.gguf"
    if not target.exists():
        importance_file = work / "importance.npz"
        importance = dict(np.load(importance_file)) if importance_file.exists() else {}
        partial = target.with_suffix(".partial")
        quantised(
            source,
            kind,
            {name: np.ascontiguousarray(v, np.float32) for name, v in importance.items()},
            partial,
        )
        partial.rename(target)
    losses, likeliest = scored(target, json.loads((work / "tokens.json").read_text()))
    print(
        json.dumps(
            {"file": str(target), "bytes": target.stat().st_size, "nll": losses, "top1": likeliest}
        )
    )


if __name__ == "__main__":
    main()
