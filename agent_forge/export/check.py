"""Load a GGUF file in llama.cpp and compare its tokens and logits with the checkpoint.

There are two comparisons. The *file's own weights*, read back and run by transformers, must give
llama.cpp's logits: this proves that the file is right. The difference from the checkpoint's logits
is what the quantisation cost.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agent_forge import models
from agent_forge.anatomy.watch import Before, watching
from agent_forge.core.errors import ConfigError, GateError
from agent_forge.export import source as sources
from agent_forge.models.gguf_format import families, reading

Array = NDArray[Any]
READER = Path(__file__).with_name("llama_logits.py")
LLAMA_PACKAGES = ("llama_cpp", "xllamacpp")
SECONDS = 600
TEXTS = (
    "Fellow citizens of the Senate and of the House of Representatives: in 1790 there "
    "were 3,929,214 of us.",
    "def add(a, b):\n    return a + b  # they're 2 lines, isn't it?\n\n\n\tprint(add(37, 58))",
    "<|im_start|>user\nWhat is 48 plus 77?<|im_end|>\n<|im_start|>assistant\n",
    "Größe, naïve café, 数字 123, emoji 🙂 and   spaces   ",
)
# llama.cpp rounds activations to 8 bits before it multiplies quantised weights. These are the
# columns per block.
ROUNDED_BLOCKS = {"Q8_0": 32, "Q4_0": 32, "Q5_0": 32, "Q4_K": 256, "TQ1_0": 256, "TQ2_0": 256}
MOST_ERROR = {"F16": 0.01}
MOST_ERROR_QUANTISED = 0.06


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far llama.cpp is from the file's own weights, and from the checkpoint.

    errors: |difference| / |reference| of logits over all tokens.
    top1: the share of tokens after which both have the same likeliest token.
    """

    tokens: int
    same_tokens: bool  # llama.cpp cuts the texts as the tokenizer does
    file_error: float  # llama.cpp against transformers on the file's weights
    file_top1: float
    # transformers on the file's weights: with llama.cpp's rounding of activations against without
    rounding_error: float
    checkpoint_error: float  # llama.cpp against the checkpoint
    checkpoint_top1: float
    checkpoint_kl_nats: float  # mean KL(checkpoint || llama.cpp)
    limit: float  # the largest file_error that passes
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def compare(source: Path, gguf: Path, *, python: str = "") -> Comparison:
    """Compare a GGUF file with the checkpoint that it was written from.

    python: a Python that has llama-cpp-python or xllamacpp; by default the one that runs this.
    Raises ConfigError when it has neither, GateError when llama.cpp cannot load the file.
    """
    (model, _), tokenizer = sources.load(source, can_think=False), models.load_tokenizer(source)
    ids = [tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
    answer = llama_answer(gguf, ids, TEXTS, int(model.config.vocab_size), python or sys.executable)
    theirs = [answer[f"logits_{i}"] for i in range(len(ids))]
    places = [answer[f"positions_{i}"] for i in range(len(ids))]
    same = all(answer[f"tokens_{i}"].tolist() == tokens for i, tokens in enumerate(ids))
    ours = _at(logits_of(model, ids), places)
    del model
    stored, kind = from_file(gguf)
    reference = _at(logits_of(stored, ids), places)
    error, top1 = _difference(theirs, reference)
    with activations_rounded(stored):
        rounding_error, _ = _difference(_at(logits_of(stored, ids), places), reference)
    loss, same_top1 = _difference(theirs, ours)
    limit = MOST_ERROR.get(kind, MOST_ERROR_QUANTISED)
    return Comparison(
        tokens=sum(map(len, places)),
        same_tokens=same,
        file_error=error,
        file_top1=top1,
        rounding_error=rounding_error,
        checkpoint_error=loss,
        checkpoint_top1=same_top1,
        checkpoint_kl_nats=_kl(ours, theirs),
        limit=limit,
        passed=same and error <= limit,
    )


def llama_answer(
    gguf: Path,
    ids: list[list[int]],
    texts: tuple[str, ...],
    vocabulary: int,
    python: str,
    adapter: Path | None = None,
) -> dict[str, Array]:
    """Return llama.cpp's logits and tokens. adapter: a GGUF file that is added to the model."""
    if not has_llama(python):
        raise ConfigError(
            f"--check needs llama.cpp, and {python} does not have it; pip install "
            "xllamacpp (built already) or "
            "llama-cpp-python (it compiles llama.cpp), or name a Python that has one "
            "with --llama-python"
        )
    with tempfile.TemporaryDirectory() as folder:
        request, out = Path(folder) / "request.json", Path(folder) / "out.npz"
        request.write_text(
            json.dumps(
                {
                    "ids": ids,
                    "texts": list(texts),
                    "vocabulary": vocabulary,
                    "adapter": str(adapter.resolve()) if adapter else "",
                }
            ),
            encoding="utf-8",
        )
        command = [python, "-I", str(READER), str(gguf.resolve()), str(request), str(out)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                encoding="utf-8",
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            raise GateError(f"llama.cpp did not answer for {gguf} within {SECONDS} s") from None
        if done.returncode or not out.is_file():
            raise GateError(
                f"llama.cpp cannot run {gguf}: {_reason(done.stderr)}; export again, or report this"
            )
        with np.load(out) as arrays:
            return dict(arrays)


def _reason(errors: str) -> str:
    """Return the line that says why: llama.cpp's first error, or Python's last."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["it said nothing"]
    first = next((line for line in lines if "error loading model" in line), "")
    return first or next((line for line in reversed(lines) if "Error" in line), lines[-1])


def usable_python() -> str:
    """Return the Python that has llama.cpp: FORGE_LLAMA_PYTHON, or this one; "" for neither."""
    python = os.environ.get("FORGE_LLAMA_PYTHON") or sys.executable
    return python if has_llama(python) else ""


def has_llama(python: str) -> bool:
    """Return whether a Python has one of the packages with llama.cpp that the reader knows."""
    known = " or ".join(f"importlib.util.find_spec({name!r})" for name in LLAMA_PACKAGES)
    command = [python, "-I", "-c", f"import importlib.util, sys; sys.exit(not ({known}))"]
    try:
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except OSError:
        return False


@torch.no_grad()
def logits_of(model: Any, ids: list[list[int]]) -> list[Array]:
    """Return logits (T, vocabulary) of each row of ids."""
    return [
        model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float().numpy()
        for row in ids
    ]


def from_file(gguf: Path) -> tuple[Any, str]:
    """Return the model built from the file alone, and the type of the matrices in its blocks.

    Each linear layer notes the type that it is stored as (`stored_as`).
    """
    from gguf import GGUFReader

    model, _ = reading.read(gguf)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(str(gguf)).tensors}
    family = families.BY_TYPE[model.config.model_type]
    for name, place in families.places(model, family).items():
        owner = model.get_submodule(place.parameter.rpartition(".")[0])
        if isinstance(owner, torch.nn.Linear) and place.parameter.endswith(".weight"):
            owner.stored_as = kinds[name]  # type: ignore[assignment]
    head: Any = model.get_output_embeddings()
    if "output.weight" not in kinds and head is not None:
        head.stored_as = kinds["token_embd.weight"]
    return model.eval(), next(
        kind for name, kind in kinds.items() if ".ffn_down" in name and kind != "F32"
    )


@contextmanager
def activations_rounded(model: Any) -> Iterator[None]:
    """Round the inputs of a model's linear layers as llama.cpp does for their stored types."""
    blocks = [
        (module, ROUNDED_BLOCKS.get(getattr(module, "stored_as", ""), 0))
        for module in model.modules()
    ]
    with watching(before=[(module, _rounding(block)) for module, block in blocks if block]):
        yield


def _rounding(block: int) -> Before:
    """Return a hook that rounds the first argument in blocks of `block` columns."""
    return lambda _, args, kwargs: ((rounded(args[0], block), *args[1:]), kwargs)


def rounded(x: torch.Tensor, block: int) -> torch.Tensor:
    """Return x (..., columns) at 8 bits per value, with one scale per block of columns.

    This is ggml's Q8_0 for blocks of 32 and Q8_K for blocks of 256.
    """
    blocks = x.unflatten(-1, (-1, block))
    step = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return ((blocks / step).round() * step).flatten(-2)


def _at(logits: list[Array], places: list[Array]) -> list[Array]:
    return [rows[where] for rows, where in zip(logits, places, strict=True)]


def _difference(logits: list[Array], reference: list[Array]) -> tuple[float, float]:
    """Return the relative difference of logits and the share of rows with the same top token.

    The mean of each row is taken away first, because probabilities do not depend on it.
    """
    a, b = np.concatenate(logits).astype(np.float64), np.concatenate(reference).astype(np.float64)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b)), float(
        (a.argmax(1) == b.argmax(1)).mean()
    )


def _kl(reference: list[Array], logits: list[Array]) -> float:
    p = torch.from_numpy(np.concatenate(reference)).double().log_softmax(-1)
    q = torch.from_numpy(np.concatenate(logits)).double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
