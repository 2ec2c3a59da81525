"""Load a GGUF file in llama.cpp and compare with the checkpoint: same tokens for the same text, same logits.

Two comparisons. The *file's own weights*, read back and run by transformers, must give llama.cpp's logits: that is the
proof that the file is right. The checkpoint's logits say what the quantisation cost.
"""

import json
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
from agent_forge.core.errors import ConfigError, GateError
from agent_forge.export import gguf_file
from agent_forge.export import source as sources
from agent_forge.runtime.shape import shape_of

Array = NDArray[Any]
READER = Path(__file__).with_name("llama_logits.py")
SECONDS = 600
TEXTS = (
    "Fellow citizens of the Senate and of the House of Representatives: in 1790 there were 3,929,214 of us.",
    "def add(a, b):\n    return a + b  # they're 2 lines, isn't it?\n\n\n\tprint(add(37, 58))",
    "<|im_start|>user\nWhat is 48 plus 77?<|im_end|>\n<|im_start|>assistant\n",
    "Größe, naïve café, 数字 123, emoji 🙂 and   spaces   ",
)
# llama.cpp rounds activations to 8 bits before it multiplies quantised weights, in blocks of as many columns.
ROUNDED_BLOCKS = {"Q8_0": 32, "Q4_0": 32, "Q5_0": 32, "Q4_K": 256, "TQ1_0": 256, "TQ2_0": 256}
MOST_ERROR = {"F16": 0.01}
MOST_ERROR_QUANTISED = 0.06


@dataclass(frozen=True, slots=True)
class Comparison:
    """errors: |difference| / |reference| of logits over all tokens. top1: share of tokens with the same likeliest next."""

    tokens: int
    same_tokens: bool  # llama.cpp cuts the texts as the tokenizer does
    file_error: float  # llama.cpp against transformers on the file's weights
    file_top1: float
    rounding_error: (
        float  # the file's weights in transformers, with llama.cpp's rounding of activations against without
    )
    checkpoint_error: float  # llama.cpp against the checkpoint
    checkpoint_top1: float
    checkpoint_kl_nats: float  # mean KL(checkpoint || llama.cpp)
    limit: float  # that file_error may reach
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def compare(source: Path, gguf: Path, *, python: str = "") -> Comparison:
    """Compare a GGUF file with the checkpoint that it was written from.

    python: one that has llama-cpp-python; this one by default. Raises ConfigError when it has none, GateError when
    llama.cpp cannot load the file.
    """
    (model, _), tokenizer = sources.load(source, can_think=False), models.load_tokenizer(source)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    answer = llama_answer(gguf, ids, TEXTS, python or sys.executable)
    theirs = [answer[f"logits_{i}"] for i in range(len(ids))]
    same = all(answer[f"tokens_{i}"].tolist() == tokens for i, tokens in enumerate(ids))
    ours = logits_of(model, ids)
    kind = fill_with_file(model, gguf)
    from_file = logits_of(model, ids)
    error, top1 = _difference(theirs, from_file)
    with activations_rounded(model):
        moved, _ = _difference(logits_of(model, ids), from_file)
    lost, kept = _difference(theirs, ours)
    limit = MOST_ERROR.get(kind, MOST_ERROR_QUANTISED)
    return Comparison(
        tokens=sum(map(len, ids)),
        same_tokens=same,
        file_error=error,
        file_top1=top1,
        rounding_error=moved,
        checkpoint_error=lost,
        checkpoint_top1=kept,
        checkpoint_kl_nats=_kl(ours, theirs),
        limit=limit,
        passed=same and error <= limit,
    )


def llama_answer(gguf: Path, ids: list[list[int]], texts: tuple[str, ...], python: str) -> dict[str, Array]:
    """Return llama.cpp's logits and tokens."""
    if not _has_llama(python):
        raise ConfigError(
            f"--check needs llama-cpp-python, which {python} does not have; pip install llama-cpp-python (it compiles "
            "llama.cpp), or name a Python that has it with --llama-python"
        )
    with tempfile.TemporaryDirectory() as folder:
        request, out = Path(folder) / "request.json", Path(folder) / "out.npz"
        request.write_text(json.dumps({"ids": ids, "texts": list(texts)}), encoding="utf-8")
        command = [python, "-I", str(READER), str(gguf.resolve()), str(request), str(out)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, encoding="utf-8", errors="replace"
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise GateError(
                f"llama.cpp cannot run {gguf}: {lines[-1]}; export again, or report this with the file's size"
            )
        with np.load(out) as found:
            return dict(found)


def _has_llama(python: str) -> bool:
    """Say whether this is a Python that has llama-cpp-python."""
    try:
        return not subprocess.run([python, "-I", "-c", "import llama_cpp"], capture_output=True, check=False).returncode
    except OSError:
        return False


@torch.no_grad()
def logits_of(model: Any, ids: list[list[int]]) -> list[Array]:
    """Return logits (T, vocabulary) of each row of ids."""
    return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float().numpy() for row in ids]


@torch.no_grad()
def fill_with_file(model: Any, gguf: Path) -> str:
    """Put the file's weights into the model, as plain floats; return the type of its block matrices."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(str(gguf))
    stored = {tensor.name: tensor for tensor in reader.tensors}
    shape, architecture = shape_of(model.config.to_dict()), str(reader.fields["general.architecture"].contents())
    modules = {"token_embd": "model.embed_tokens"} | ({"output": "lm_head"} if "output.weight" in stored else {})
    modules |= {
        f"blk.{i}.{name}": f"model.layers.{i}.{module}"
        for i in range(shape.layers)
        for name, module in gguf_file.MODULES.items()
    }
    for name, module in modules.items():
        tensor = stored[f"{name}.weight"]
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        heads = gguf_file.heads_to_reorder(name.rpartition(".")[2], shape, architecture)
        weight = torch.from_numpy(gguf_file.halves_again(values, heads))
        _replace_by_floats(model, module, weight, tensor.tensor_type.name)
    if "output.weight" not in stored:
        kind = stored["token_embd.weight"].tensor_type.name
        _replace_by_floats(model, "lm_head", model.get_submodule("model.embed_tokens").weight.detach(), kind)
    return str(stored["blk.0.ffn_down.weight"].tensor_type.name)


def _replace_by_floats(model: Any, module: str, weight: torch.Tensor, kind: str) -> None:
    """Put a plain float layer in the place of one that is coded or ternary, and note the type it is stored as."""
    old = model.get_submodule(module)
    new: torch.nn.Module
    if module.endswith("embed_tokens"):
        new = torch.nn.Embedding.from_pretrained(weight)
    else:
        new = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=old.bias is not None, device="meta")
        new.weight = torch.nn.Parameter(weight, requires_grad=False)
        if old.bias is not None:
            new.bias = old.bias
        new.stored_as = kind  # type: ignore[assignment]
    parent, _, child = module.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


@contextmanager
def activations_rounded(model: Any) -> Iterator[None]:
    """Round the inputs of a filled model's linears as llama.cpp does for the types that they are stored as."""
    handles = []
    for module in model.modules():
        block = ROUNDED_BLOCKS.get(getattr(module, "stored_as", ""), 0)
        if block:
            handles.append(module.register_forward_pre_hook(lambda _, given, b=block: (rounded(given[0], b),)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rounded(x: torch.Tensor, block: int) -> torch.Tensor:
    """Return x (..., columns) in 8 bits a value, with a scale a block of columns: ggml's Q8_0 (32) and Q8_K (256)."""
    blocks = x.unflatten(-1, (-1, block))
    step = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return ((blocks / step).round() * step).flatten(-2)


def _difference(found: list[Array], reference: list[Array]) -> tuple[float, float]:
    a, b = np.concatenate(found).astype(np.float64), np.concatenate(reference).astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b)), float((a.argmax(1) == b.argmax(1)).mean())


def _kl(reference: list[Array], found: list[Array]) -> float:
    p = torch.from_numpy(np.concatenate(reference)).double().log_softmax(-1)
    q = torch.from_numpy(np.concatenate(found)).double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
