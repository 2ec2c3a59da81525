"""A packed model in a conversation: its stream is its generation, and torch is never imported."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import models
from agent_forge.checkpoint import Checkpoint
from agent_forge.core.errors import ConfigError
from agent_forge.kernels import build
from agent_forge.models.sampling import Decoding, choose
from agent_forge.runtime.causal import open_model
from agent_forge.runtime.talker import PackedTalker, open_talker, stream

torch.set_num_threads(1)
IDS = np.random.default_rng(0).integers(0, 96, 60).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=40, intermediate_size=72, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("talker")
    models.save(LlamaForCausalLM(config).eval(), None, path)
    return path


def talker(folder: Path) -> PackedTalker:
    opened = open_talker(folder, engine="packed")
    assert isinstance(opened, PackedTalker)
    return opened


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}])
def test_a_packed_stream_is_the_generation_of_its_batches(
    folder: Path, sampling: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 20, "stop_ids": [3, 17], **sampling}
    batched = open_model(folder, engine="packed")
    for prompt in (IDS[:1], IDS[:9], IDS[:45]):
        (expected,) = models.generate(batched, [prompt], models.Decoding(**settings))  # type: ignore[arg-type]
        assert list(stream(talker(folder), prompt, Decoding(**settings))) == expected


def test_a_packed_stream_runs_no_step_that_nobody_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, steps = talker(folder), []
    logits = type(one.packed).logits
    monkeypatch.setattr(
        type(one.packed), "logits", lambda *a, **k: steps.append(1) or logits(*a, **k)
    )
    tokens = stream(one, IDS[:5], Decoding(max_new_tokens=30))
    for number in range(1, 4):
        next(tokens)
        assert len(steps) == number
    tokens.close()  # type: ignore[attr-defined]
    assert len(steps) == 3


def test_the_next_turn_reads_only_what_is_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, lengths = talker(folder), []
    logits = type(one.packed).logits

    def measured(self: Any, ids: list[int], *rest: Any, **names: Any) -> Any:
        lengths.append(len(ids))
        return logits(self, ids, *rest, **names)

    monkeypatch.setattr(type(one.packed), "logits", measured)
    first = list(stream(one, IDS[:20], Decoding(max_new_tokens=4)))
    turn = [*IDS[:20], *first, *IDS[20:30]]
    second = list(stream(one, turn, Decoding(max_new_tokens=4)))
    assert lengths == [20, 1, 1, 1, 11, 1, 1, 1]  # the last token of a turn was never read
    other = [*IDS[:10], *IDS[40:50]]
    third = list(stream(one, other, Decoding(max_new_tokens=4)))
    assert lengths[8] == 10
    assert second == list(stream(talker(folder), turn, Decoding(max_new_tokens=4)))
    assert third == list(stream(talker(folder), other, Decoding(max_new_tokens=4)))
    lengths.clear()
    assert list(stream(one, other, Decoding(max_new_tokens=4))) == third
    assert lengths[0] == 1


def test_a_step_that_is_broken_off_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, whole = talker(folder), type(talker(folder).packed).logits

    def broken(self: Any, ids: list[int], cache: Any, **names: Any) -> Any:
        whole(self, ids, cache, **names)
        raise KeyboardInterrupt

    tokens = stream(one, IDS[:9], Decoding(max_new_tokens=9))
    next(tokens)
    with monkeypatch.context() as patch:
        patch.setattr(type(one.packed), "logits", broken)
        with pytest.raises(KeyboardInterrupt):
            next(tokens)
    fresh = list(stream(talker(folder), IDS[:9], Decoding(max_new_tokens=9)))
    assert list(stream(one, IDS[:9], Decoding(max_new_tokens=9))) == fresh


def test_what_generate_refuses_a_packed_stream_refuses(folder: Path) -> None:
    one = talker(folder)
    for prompt, wrong in (([], {}), ([1], {"temperature": -1.0}), ([1], {"top_p": 0.0})):
        with pytest.raises(ConfigError):
            next(stream(one, prompt, Decoding(max_new_tokens=3, **wrong)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no room for a prompt"):
        next(stream(one, [1], Decoding(max_new_tokens=256)))
    assert list(stream(one, [1], Decoding(max_new_tokens=0))) == []


def test_numpy_chooses_the_tokens_that_torch_does() -> None:
    from agent_forge.models.generation import _Chooser

    rng = np.random.default_rng(1)
    logits = rng.normal(size=(200, 50)).astype(np.float32) * 3
    for temperature, top_p in ((0.0, 1.0), (0.7, 0.9), (1.5, 1.0), (1.0, 1e-9)):
        chooser = _Chooser(
            Decoding(max_new_tokens=200, temperature=temperature, top_p=top_p, seed=5), [0]
        )
        draws = getattr(chooser, "draws", torch.zeros(1, 200))[0]
        expected = chooser(
            torch.from_numpy(logits), torch.zeros(200, dtype=torch.long), torch.arange(200)
        )
        ours = [
            choose(row, temperature, top_p, float(draw))
            for row, draw in zip(logits, draws, strict=True)
        ]
        assert ours == expected.tolist()


def test_engines_are_chosen_by_name_and_a_model_that_is_not_packed_runs_in_torch(
    folder: Path, tmp_path: Path
) -> None:
    assert isinstance(open_talker(folder, engine="torch"), LlamaForCausalLM)
    assert isinstance(open_talker(folder), PackedTalker) == (build.library() is not None)
    with pytest.raises(ConfigError, match="did you mean 'packed'"):
        open_talker(folder, engine="paked")
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2))
    models.save(other, None, tmp_path)
    opened = open_talker(tmp_path)
    settings: dict[str, Any] = {"max_new_tokens": 3, "stop_ids": []}
    decoding = Decoding(**settings)  # type: ignore[arg-type]
    (expected,) = models.generate(opened, [IDS[:4]], decoding)
    assert list(stream(opened, IDS[:4], decoding)) == expected


def test_chat_with_a_packed_model_imports_neither_torch_nor_transformers(
    tiny_checkpoint: Checkpoint,
) -> None:
    if build.library() is None:
        pytest.skip("no compiler here, so the packed engine is not chosen")
    script = (
        "import sys\n"
        "from agent_forge.cli.app import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    arguments = ["chat", str(tiny_checkpoint.path), "hi", "--max-new-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
