"""Talk with a packed model without torch: which checkpoints it takes, and tokens one by one.

`PackedTalker` is what a conversation asks of any model: its positions, the ids that end its texts,
and a stream of tokens. It holds on to the keys and values of the last conversation, so that the
next turn reads only what is new. numpy chooses the tokens, from the random numbers of
`models.generate`. Reads a checkpoint directory or a packed file.
"""

import json
import logging
import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.device import omp_threads
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.core.seeds import numpy_generator
from agent_forge.data.windows import begin_ids, fitting_prompt
from agent_forge.kernels import build
from agent_forge.models.sampling import Decoding, TokenMask, choose
from agent_forge.runtime.loading import load
from agent_forge.runtime.model import Cache, PackedModel
from agent_forge.runtime.shape import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENGINES = ("auto", "packed", "torch")
QUANTISED = ("forge_compressed", "forge_ternary")
_log = logging.getLogger("agent_forge")


class PackedTalker:
    """A packed model with what a conversation needs of a model."""

    thinks = False

    def __init__(
        self,
        packed: PackedModel,
        eos_token_id: int | list[int] | None = None,
        bos_token_id: int | None = None,
    ) -> None:
        self.packed = packed
        shape = packed.shape
        self.config = SimpleNamespace(
            max_position_embeddings=shape.longest,
            vocab_size=shape.vocabulary,
            bos_token_id=bos_token_id,
        )
        # data.stop_ids looks here
        self.generation_config = SimpleNamespace(eos_token_id=eos_token_id)
        self._read: list[int] = []  # the tokens whose keys and values the cache below holds
        self._cache: Cache | None = None

    def stream(
        self,
        prompt: Sequence[int],
        decoding: Decoding,
        mask: TokenMask | None = None,
    ) -> Generator[int]:
        """Yield new tokens as `models.stream` does; one stream of a model runs at a time.

        Raises ConfigError for an empty prompt, and where max_new_tokens leaves no room for one.
        """
        max_new_tokens = decoding.max_new_tokens
        if not prompt:
            raise ConfigError("the prompt is empty; a model needs at least one token to go on from")
        if max_new_tokens <= 0:
            return
        longest = self.packed.shape.longest
        ids = fitting_prompt(prompt, max_new_tokens, longest, begin_ids(self.config))
        draws = numpy_generator(decoding.seed, "generate", 0).random(max_new_tokens)
        fed = ids[self._keep_common(ids) :]
        for step, draw in enumerate(draws):
            logits = self._logits(fed)
            if step == 0 and decoding.gate is not None:
                logits = decoding.gate.shut(logits)
            if mask is not None:
                logits = np.where(mask.allowed(len(logits)), logits, -np.inf)
            token = choose(logits, decoding.temperature, decoding.top_p, float(draw), decoding.cuts)
            if mask is not None:
                mask.take(token)
            if token in decoding.stop_ids:
                return
            yield token
            fed = [token]

    def _keep_common(self, ids: Sequence[int]) -> int:
        """Crop the cache to what it shares with `ids`, their last one left out; return how many."""
        if self._cache is None:
            self._cache = self.packed.new_cache()
        pairs = zip(self._read, ids[:-1], strict=False)
        common = next((i for i, (old, new) in enumerate(pairs) if old != new), None)
        if common is None:
            common = min(len(self._read), len(ids) - 1)
        self._cache.crop(common)
        del self._read[common:]
        return common

    def _logits(self, fed: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits (vocabulary,) after more tokens, which the cache takes in.

        A step that is interrupted leaves the cache as it was.
        """
        assert self._cache is not None
        before = len(self._read)
        self._cache.crop(before)
        logits = self.packed.logits(fed, self._cache, last_only=True)[0]
        self._read += fed
        return logits  # type: ignore[no-any-return]


def open_packed(
    path: Path, *, on_cpu: bool, engine: str, threads: int = 0, floats: bool = False
) -> PackedModel | None:
    """Return a checkpoint's packed model, or None where torch is to run it.

    engine: auto takes the packed engine for a compressed or ternary checkpoint on the CPU (with
    `floats`, for any checkpoint), when there is compiled code for it and it computes the model;
    packed always takes it, torch never.
    threads: 0 takes every core of the process.
    Raises ConfigError for another engine, and when `packed` cannot run the model.
    """
    if engine not in ENGINES:
        raise ConfigError(
            f"no engine '{engine}'{did_you_mean(engine, ENGINES)}; known: {', '.join(ENGINES)}"
        )
    if engine == "packed" and not on_cpu:
        raise ConfigError(
            "the packed engine runs on the CPU, not on an accelerator; use device=cpu or "
            "engine=torch"
        )
    suits = on_cpu and (floats or _is_quantised(path)) and build.library() is not None
    if engine == "torch" or not (engine == "packed" or suits):
        return None
    try:
        packed = load(path, threads=threads)
    except UnsupportedModelError as error:
        if engine == "packed":
            raise
        _log.info("%s: %s", path, error)
        return None
    for note in packed.notes:
        _log.info("%s: %s", path, note)
    return packed


def open_talker(
    path: Path | str, *, device: str = "cpu", engine: str = "auto"
) -> "PackedTalker | PreTrainedModel":
    """Return a checkpoint's model for a conversation: packed wherever that computes it, else torch.

    device: as in `runtime.device`. On the CPU a model of float weights is packed too, because its
    file is then used in place and neither torch nor transformers is imported.
    """
    path = Path(path)
    on_cpu = _is_cpu(device)
    packed = open_packed(path, on_cpu=on_cpu, engine=engine, threads=omp_threads(), floats=True)
    if packed is not None:
        return PackedTalker(packed, stored_ends(path), stored_begin(path))
    from agent_forge import models
    from agent_forge.core.device import pick_device

    return models.load(path, device="cpu" if on_cpu else pick_device(device))


def stream(
    model: Any, prompt: list[int], decoding: Decoding, mask: TokenMask | None = None
) -> Generator[int]:
    """Yield the tokens of one answer as they are chosen, whatever engine runs the model.

    Closing the generator stops the work: a token is computed only when it is asked for.
    """
    if isinstance(model, PackedTalker):
        return model.stream(prompt, decoding, mask)
    from agent_forge import models

    return models.stream(model, prompt, decoding, mask)


def stored_ends(path: Path) -> int | list[int] | None:
    """Return the ids that end a text, from generation_config.json or else config.json."""
    return _stored(path, "eos_token_id")  # type: ignore[no-any-return]


def stored_begin(path: Path) -> int | None:
    """Return the id that begins a text, from the same files."""
    return _stored(path, "bos_token_id")  # type: ignore[no-any-return]


def _stored(path: Path, key: str) -> Any:
    """Return what generation_config.json or else config.json says under `key`, or None."""
    for name in ("generation_config.json", "config.json"):
        file = path / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if content.get(key) is not None:
            return content[key]
    return None


def _is_cpu(device: str) -> bool:
    """Return whether a device is the CPU, without importing torch where that is certain."""
    if device == "cpu":
        return True
    # Without one of these no accelerator of torch's exists on Linux, and torch need not be asked.
    nodes = ("/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/dev/dri", "/dev/accel")
    is_unknown = (
        "torch" in sys.modules or sys.platform != "linux" or any(map(os.path.exists, nodes))
    )
    if device == "auto" and not is_unknown:
        return True
    from agent_forge.core.device import pick_device

    return pick_device(device).type == "cpu"


def _is_quantised(path: Path) -> bool:
    if path.is_file():
        return True
    config: dict[str, Any] = (
        json.loads((path / "config.json").read_text(encoding="utf-8"))
        if (path / "config.json").is_file()
        else {}
    )
    return (config.get("quantization_config") or {}).get("quant_method") in QUANTISED
