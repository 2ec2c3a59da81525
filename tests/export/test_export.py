"""Exports: blocks against gguf's own reader, files against llama.cpp, refusals by name."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from agent_forge import codecs, models, runtime
from agent_forge.agent import Toolbox
from agent_forge.checkpoint import Checkpoint
from agent_forge.cli.app import app
from agent_forge.core.errors import (
    CheckpointError,
    ConfigError,
    GateError,
    StorageError,
)
from agent_forge.data.chat_template import CHAT_TEMPLATE
from agent_forge.export import FORMATS, check, gguf_file, quantise
from agent_forge.export.run import export
from agent_forge.models import compressed
from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
from agent_forge.models.gguf_format import families
from agent_forge.models.storage import quiet_transformers
from agent_forge.models.ternary import (
    TernarySettings,
    ternarise,
)
from agent_forge.models.thought import ThoughtForCausalLM

gguf = pytest.importorskip("gguf", reason="the extra 'export' is not installed")
torch.set_num_threads(1)
LLAMA_PYTHON = check.usable_python()
HAS_LLAMA = bool(LLAMA_PYTHON)
needs_llama = pytest.mark.skipif(
    not HAS_LLAMA,
    reason="needs xllamacpp or llama-cpp-python; FORGE_LLAMA_PYTHON names a Python that has one",
)


def read_back(stored: quantise.QuantisedTensor) -> Any:
    kind = gguf.GGMLQuantizationType[stored.kind]
    return gguf.quants.dequantize(stored.data, kind).reshape(stored.values.shape)


@pytest.mark.parametrize("kind", quantise.TYPES)
def test_stored_values_and_error_are_those_that_gguf_reads_back(kind: str) -> None:
    weight = np.random.default_rng(0).normal(size=(7, 512)).astype(np.float32)
    stored = quantise.store(weight, kind)
    again = read_back(stored)
    assert np.array_equal(again.astype(np.float32), stored.values)
    assert stored.relative_error == pytest.approx(
        float(((weight - again) ** 2).sum() / (weight**2).sum()), rel=1e-4
    )


def test_q4_k_is_finer_than_q4_0_and_holds_the_edges() -> None:
    weight = np.random.default_rng(1).normal(size=(16, 1024)).astype(np.float32) + 0.3
    assert (
        quantise.store(weight, "Q4_K").relative_error
        < 0.8 * quantise.store(weight, "Q4_0").relative_error
    )
    for edge in (
        np.zeros((1, 256)),
        np.full((1, 256), 2.0),
        np.full((1, 256), -3.0),
        np.eye(1, 256) * 1e4,
    ):
        stored = quantise.store(edge.astype(np.float32), "Q4_K")
        assert np.allclose(stored.values, edge, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "TQ1_0", "TQ2_0"])
def test_ternary_blocks_are_exact_where_a_block_has_one_scale(kind: str) -> None:
    rng = np.random.default_rng(2)
    scale = rng.uniform(0.01, 2, (8, 4)).astype(np.float16).astype(np.float32)
    codes = rng.integers(-1, 2, (8, 4, 256)).astype(np.float32)
    exact = quantise.store((codes * scale[..., None]).reshape(8, -1), kind)
    assert exact.relative_error == 0
    assert np.array_equal(read_back(exact), exact.values)
    halves = np.repeat(scale, 2, 1) * np.tile([1, 1.5], 4)  # two groups of 128 in each block of 256
    mixed = quantise.store(
        (codes.reshape(8, 8, 128) * halves.astype(np.float16)[..., None])
        .reshape(8, -1)
        .astype(np.float32),
        kind,
    )
    assert (mixed.relative_error == 0) == (kind in ("Q4_0", "Q8_0"))


def test_columns_that_blocks_do_not_divide_get_the_type_llama_cpp_would_take() -> None:
    assert quantise.fitting("Q4_K", 576) == "Q5_0"
    assert quantise.fitting("TQ1_0", 576) == "Q4_0"
    assert quantise.fitting("TQ2_0", 40) == "F16"
    assert quantise.fitting("Q4_K", 1536) == "Q4_K"
    with pytest.raises(ConfigError, match="did you mean 'Q4_K'"):
        quantise.checked_type("Q4K")


def test_reordered_rows_come_back_and_turn_as_llama_cpp_turns_them() -> None:
    rows = np.random.default_rng(3).normal(size=(24, 5)).astype(np.float32)
    assert np.array_equal(families.halves(families.paired(rows, 3), 3), rows)
    # (heads, half, pair, columns): Hugging Face pairs i with i + size/2
    half_turned = rows.reshape(3, 2, 4, 5)
    neighbours = families.paired(rows, 3).reshape(3, 4, 2, 5)  # llama.cpp pairs 2i with 2i + 1
    assert np.array_equal(neighbours, half_turned.swapaxes(1, 2))


def test_the_file_holds_shape_tokenizer_and_weights_of_the_checkpoint(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    written = gguf_file.write(tiny_checkpoint.path, tmp_path / "m.gguf", "F16")
    reader = gguf.GGUFReader(str(written.path))
    config = json.loads((tiny_checkpoint.path / "config.json").read_text())
    fields = {name: reader.fields[name].contents() for name in reader.fields if "." in name}
    assert fields["llama.block_count"] == config["num_hidden_layers"]
    assert fields["llama.attention.head_count_kv"] == config["num_key_value_heads"]
    assert len(fields["tokenizer.ggml.tokens"]) == config["vocab_size"]
    assert fields["tokenizer.ggml.pre"] == "smollm"
    model = models.load(tiny_checkpoint)
    expected = check.logits_of(model, [[5, 6, 7, 8]])[0]
    stored, kind = check.from_file(written.path)
    assert kind == "F16"
    logits = check.logits_of(stored, [[5, 6, 7, 8]])[0]
    assert 0 < np.abs(logits - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.fixture(scope="module")
def wide(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a compressed ternary Llama whose widths hold blocks of 256, untied, with grouped
    queries.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.2, bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ternarise(model, TernarySettings(group_size=256, activation_bits=8, packing="two_bit", skip=[]))
    coded = {}
    for name, weight in compressed.coded_tensors(model).items():
        ternary = name.startswith("model.layers")
        coded[name] = codecs.encode(
            "ternary" if ternary else "intk", weight, {"group": 256} if ternary else {"bits": 8}
        )
    path = tmp_path_factory.mktemp("wide") / "model"
    models.save(compressed.compress(model, coded), tiny_tokenizer, path)
    return path


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "Q4_0", "Q8_0"])
def test_ternary_groups_of_256_are_exact_in_every_type_that_can_hold_them(
    kind: str, wide: Path, tmp_path: Path
) -> None:
    written = gguf_file.write(wide, tmp_path / "m.gguf", kind)
    blocks = {
        name: entry
        for name, entry in written.tensors.items()
        if ".ffn_" in name and "norm" not in name
    }
    assert set(blocks.values()) == {(kind, 0.0)}
    assert any("of them exact" in line for line in written.lines)


def test_a_type_that_does_not_fit_is_said_with_its_loss(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    written = gguf_file.write(tiny_checkpoint.path, tmp_path / "m.gguf", "Q4_K")
    assert {
        kind
        for name, (kind, _) in written.tensors.items()
        if name.startswith("blk.") and "norm" not in name
    } == {"Q5_0"}
    assert any("are not Q4_K: its blocks of 256 do not divide" in line for line in written.lines)


@needs_llama
@pytest.mark.parametrize("kind", quantise.TYPES)
def test_llama_cpp_gives_the_logits_of_the_file(kind: str, wide: Path, tmp_path: Path) -> None:
    gguf_file.write(wide, tmp_path / "m.gguf", kind)
    comparison = check.compare(wide, tmp_path / "m.gguf", python=LLAMA_PYTHON)
    assert comparison.same_tokens
    assert comparison.passed, comparison


@needs_llama
def test_the_check_notices_rows_in_the_wrong_order(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(families, "paired", lambda rows, _: rows)
        gguf_file.write(wide, tmp_path / "m.gguf", "F16")
        # The reader of the check must undo what the writer should have done, not what it did.
        patch.setattr(families, "halves", lambda rows, _: rows)
        comparison = check.compare(wide, tmp_path / "m.gguf", python=LLAMA_PYTHON)
    assert not comparison.passed, comparison


def test_activations_are_rounded_in_blocks_with_a_scale_each() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    x[:, 40] = 1000.0
    values = check.rounded(x, 32)
    assert (
        float((values[:, :32] - x[:, :32]).abs().max())
        <= float(x[:, :32].abs().max()) / 254 * 1.001
    )
    assert not values[:, 32:40].any()
    assert torch.equal(check.rounded(torch.zeros(1, 32), 32), torch.zeros(1, 32))


@needs_llama
def test_weights_that_a_type_cannot_hold_are_told_from_a_wrong_file(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = check.compare
    for moved, named in ((0.5, "too unstable to compare"), (0.01, "does not give the logits")):

        def worse(*given: Any, moved: float = moved, **options: Any) -> check.Comparison:
            measured = compare(*given, **options)
            return replace(measured, passed=False, file_error=0.7, rounding_error=moved)

        monkeypatch.setattr(check, "compare", worse)
        with pytest.raises(GateError, match=named):
            export(wide, tmp_path / "m.gguf", "gguf", "Q8_0", check=True, llama_python=LLAMA_PYTHON)


def test_the_file_that_was_written_is_checked_whatever_its_name(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []

    def stop(source: Path, file: Path, **_: Any) -> None:
        del source
        checked.append(file)
        raise GateError("seen")

    monkeypatch.setattr(check, "compare", stop)
    for out, format_name, file in (("m", "gguf", "m"), ("folder", "ollama", "folder/model.gguf")):
        with pytest.raises(GateError, match="seen"):
            export(wide, tmp_path / out, format_name, "Q8_0", check=True)
        assert checked.pop() == tmp_path / file
        assert (tmp_path / file).is_file()


@pytest.mark.skipif(check.has_llama(sys.executable), reason="this Python has llama.cpp")
def test_the_check_without_llama_cpp_says_what_to_install(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="pip install xllamacpp"):
        export(tiny_checkpoint.path, tmp_path / "m.gguf", "gguf", "F16", check=True)
    with pytest.raises(ConfigError, match="/no/such/python does not have"):
        check.llama_answer(tmp_path / "m.gguf", [[1]], ("a",), 400, "/no/such/python")


def test_ollama_gets_a_modelfile_in_chatml(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = export(tiny_checkpoint.path, tmp_path / "agent", "ollama", "Q8_0")
    text = (tmp_path / "agent" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    # What Ollama looks for where it asks whether a model takes tools, and how it writes calls.
    template = text.split('"""')[1]
    assert "{{- if .Tools }}" in template
    assert re.search(r"range \$i, \$_ := \.ToolCalls[^<]*<tool_call>", template)
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER num_ctx 512" in text
    assert {Path(file).name for file in done.files} == {"model.gguf", "Modelfile", "README.md"}


GO = shutil.which("go")
CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 4+5?"}],
    [
        {"role": "user", "content": "What is 4+5?"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "calculator", "arguments": {"expression": "4+5"}}},
            {"function": {"name": "calculator", "arguments": {"expression": "5+4"}}},
        ]},
        {"role": "tool", "content": "9"},
        {"role": "assistant", "content": "It is 9."},
        {"role": "user", "content": "And again?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [
            {"function": {"name": "calculator", "arguments": {"expression": "9"}}},
        ]},
        {"role": "tool", "content": "9"},
    ],
]  # fmt: skip


@pytest.fixture(scope="module")
def go_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("go")
    assert GO is not None
    subprocess.run(
        [GO, "build", "-o", folder / "render", Path(__file__).with_name("ollama_template.go")],
        check=True, env={**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off"},
    )  # fmt: skip
    return folder / "render"


@pytest.mark.skipif(
    GO is None, reason="needs Go, whose text/template is Ollama's template language"
)
@pytest.mark.parametrize("with_tools", [False, True])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_ollamas_prompt_is_the_one_that_the_model_was_trained_on(
    tiny_checkpoint: Checkpoint, tmp_path: Path, go_template: Path, messages: list, with_tools: bool
) -> None:
    export(tiny_checkpoint.path, tmp_path / "agent", "ollama", "Q8_0")
    template = (tmp_path / "agent" / "Modelfile").read_text().split('"""')[1]
    tools = Toolbox(["calculator", "search"]).schemas() if with_tools else []
    content = json.dumps({"template": template, "messages": messages, "tools": tools})
    shown = subprocess.run(
        [go_template], input=content, capture_output=True, text=True, check=True
    ).stdout
    tokenizer = models.load_tokenizer(tiny_checkpoint)
    expected = tokenizer.apply_chat_template(
        messages, tools=tools or None, tokenize=False, add_generation_prompt=True,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    # Go writes JSON without spaces, and < as an escape: the same values.
    assert _values(shown) == _values(str(expected))


@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp, which has a server"
)
def test_llama_cpp_writes_the_prompt_with_tools_that_the_model_was_trained_on(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    export(tiny_checkpoint.path, tmp_path / "m.gguf", "gguf", "Q8_0")
    tools = Toolbox(["calculator", "search"]).schemas()
    requests = [
        {"messages": _as_openai(messages), **({"tools": tools} if with_tools else {})}
        for messages in CONVERSATIONS
        for with_tools in (False, True)
    ]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("llama_prompt.py"), tmp_path / "m.gguf"],
        input=json.dumps(requests), capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    tokenizer = models.load_tokenizer(tiny_checkpoint)
    assert json.loads(done.stdout.splitlines()[-1]) == [
        tokenizer.apply_chat_template(
            request["messages"], tools=request.get("tools"), tokenize=False,
            add_generation_prompt=True,
        )
        for request in requests
    ]  # fmt: skip


def _as_openai(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose calls have ids, and arguments as text."""
    written = []
    for message in messages:
        calls = [
            {"id": f"call{place}", "type": "function", "function": {
                **call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for place, call in enumerate(message.get("tool_calls", []))
        ]  # fmt: skip
        written.append({**message, "tool_calls": calls} if calls else dict(message))
        if message["role"] == "tool":
            written[-1]["tool_call_id"] = "call0"
    return written


def _values(prompt: str) -> list[Any]:
    """Return a prompt as its text and the values of the JSON in it."""
    parts = re.split(r"(?<=<tools>)(.*)(?=</tools>)|(?<=<tool_call>)(.*?)(?=</tool_call>)", prompt)
    return [json.loads(part) if part and part[0] in "[{" else part for part in parts]


def test_ollama_gets_no_chatml_for_a_model_that_speaks_otherwise(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    words = models.load_tokenizer(tiny_checkpoint)
    words.chat_template = "{% for m in messages %}<start_of_turn>{{ m.content }}{% endfor %}"
    models.save(models.load(tiny_checkpoint), words, tmp_path / "other")
    done = export(tmp_path / "other", tmp_path / "agent", "ollama", "F16")
    assert "TEMPLATE" not in (tmp_path / "agent" / "Modelfile").read_text()
    assert any("not ChatML" in line for line in done.lines)
    assert "the model's own chat template" in (tmp_path / "agent" / "README.md").read_text()


def test_the_hugging_face_folder_opens_without_our_quantiser_and_gives_the_same_logits(
    wide: Path, tmp_path: Path
) -> None:
    done = export(wide, tmp_path / "plain", "hf", "F32")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    with quiet_transformers():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    model = models.load(wide)
    for module in compressed.coded_modules(model).values():
        module.activation_bits = 0  # type: ignore[assignment]
    ids = [[1, 5, 9, 30]]
    logits, expected = check.logits_of(plain, ids)[0], check.logits_of(model, ids)[0]
    assert np.linalg.norm(logits - expected) <= 1e-3 * np.linalg.norm(expected)
    assert any("no longer rounded to 8 bits" in line for line in done.lines)
    assert "# model" in (tmp_path / "plain" / "README.md").read_text()


def test_a_cognate_is_refused_as_gguf_and_written_as_a_folder(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = CognateConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, memory_slots=16, written_slots=4, halting_size=8,
    )  # fmt: skip
    model = CognateForCausalLM(config).eval()
    models.save(model, tiny_tokenizer, tmp_path / "cognate")
    with pytest.raises(ConfigError, match="no architecture for model type 'cognate'"):
        export(tmp_path / "cognate", tmp_path / "m.gguf", "gguf")
    done = export(tmp_path / "cognate", tmp_path / "plain", "hf", "F32")
    assert any("opens where agent-forge is installed" in line for line in done.lines)
    ids = [[1, 2, 3]]
    assert np.allclose(
        check.logits_of(models.load(tmp_path / "plain"), ids)[0],
        check.logits_of(model, ids)[0],
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def thinking(
    tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return checkpoints of a thought model around the tiny Llama: its gate shut, and open from 2
    nats on.
    """
    folder, checkpoints = tmp_path_factory.mktemp("thinking"), {}
    for name, gate in (("shut", None), ("open", 2.0)):
        base = models.load(tiny_checkpoint)
        model = ThoughtForCausalLM.wrap(base, start_ids=[5], end_ids=[6], gate_entropy_nats=gate)
        coded = {
            n: codecs.encode("intk", w, {"bits": 8})
            for n, w in compressed.coded_tensors(base).items()
        }
        compressed.compress(model, {f"base.{n}": payload for n, payload in coded.items()})
        models.save(model, models.load_tokenizer(tiny_checkpoint.path), folder / name)
        checkpoints[name] = folder / name
    return checkpoints


def test_a_thought_model_is_exported_as_its_base_and_what_stays_behind_is_said(
    thinking: dict[str, Path], tmp_path: Path
) -> None:
    ids = [[5, 6, 7, 8]]
    expected = check.logits_of(models.load(thinking["shut"]), ids)[0]
    shut = export(thinking["shut"], tmp_path / "shut", "hf", "F32")
    assert json.loads((tmp_path / "shut" / "config.json").read_text())["model_type"] == "llama"
    assert "answers the same" in shut.lines[0]
    assert np.allclose(check.logits_of(models.load(tmp_path / "shut"), ids)[0], expected, atol=1e-4)
    export(thinking["open"], tmp_path / "open", "hf", "F32")
    assert json.loads((tmp_path / "open" / "config.json").read_text())["model_type"] == "thought"
    done = export(thinking["open"], tmp_path / "ollama", "ollama", "F16")
    assert "which begin at 2.0 nats of entropy, stay behind" in done.lines[0]
    assert "PARAMETER num_ctx 512" in (tmp_path / "ollama" / "Modelfile").read_text()
    base, kind = check.from_file(tmp_path / "ollama" / "model.gguf")
    assert kind == "F16"
    assert np.allclose(check.logits_of(base, ids)[0], expected, atol=2e-3 * np.abs(expected).max())


@needs_llama
def test_llama_cpp_gives_the_logits_of_a_thought_models_base(
    thinking: dict[str, Path], tmp_path: Path
) -> None:
    done = export(
        thinking["shut"], tmp_path / "m.gguf", "gguf", "F16", check=True, llama_python=LLAMA_PYTHON
    )
    assert done.check is not None
    assert done.check["checkpoint_error"] <= 0.01


def test_the_packed_engine_runs_a_thought_model_whose_gate_is_shut_and_refuses_one_that_thinks(
    thinking: dict[str, Path], tmp_path: Path
) -> None:
    ids = [3, 4, 5]
    expected = check.logits_of(models.load(thinking["shut"]), [ids])[0]
    export(thinking["shut"], tmp_path / "m.forge", "packed")
    logits = runtime.load(tmp_path / "m.forge").logits(ids)
    assert np.linalg.norm(logits - expected) <= 1e-3 * np.linalg.norm(expected)
    with pytest.raises(ConfigError, match=r"thinks from 2\.0 nats on; use --format hf"):
        export(thinking["open"], tmp_path / "n.forge", "packed")


def test_an_export_replaces_an_export_and_nothing_else(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = tiny_checkpoint.path
    before = sorted(path.name for path in source.iterdir())
    for out, kind in (
        (source, "hf"),
        (source / "plain", "hf"),
        (source / "m.gguf", "gguf"),
        (source, "gguf"),
    ):
        with pytest.raises(ConfigError, match="is in the checkpoint itself"):
            export(source, out, kind)
    assert sorted(path.name for path in source.iterdir()) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    for kind in ("hf", "ollama"):
        with pytest.raises(ConfigError, match="files that no export wrote"):
            export(source, tmp_path / "mine", kind)
        with pytest.raises(ConfigError, match="is a file"):
            export(source, tmp_path / "mine" / "thesis.txt", kind)
    with pytest.raises(ConfigError, match="is a folder"):
        export(source, tmp_path / "mine", "gguf")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "irreplaceable"
    for _ in range(2):
        export(source, tmp_path / "plain", "hf")


def test_a_gguf_export_that_fails_leaves_the_old_file_and_no_other(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.gguf"
    export(tiny_checkpoint.path, out, "gguf", "F16")
    before = out.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_file, "_add_tensor", full)
    with pytest.raises(StorageError, match=r"m\.gguf"):
        export(tiny_checkpoint.path, out, "gguf", "Q8_0")
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "m.gguf.md"}


def test_a_packed_export_runs(wide: Path, tmp_path: Path) -> None:
    done = export(wide, tmp_path / "m.forge", "packed")
    ids = [3, 4, 5]
    assert np.array_equal(
        runtime.load(tmp_path / "m.forge").logits(ids), runtime.load(wide).logits(ids)
    )
    assert (
        done.size_bytes < 1.2 * sum(p.stat().st_size for p in wide.glob("*.safetensors")) * 2 / 1.6
    )


def ternary(folder: Path, tokenizer: Any, **settings: Any) -> Path:
    """Write a tiny ternary model and return the folder."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2,
        )
    )  # fmt: skip
    plain = {"group_size": 16, "activation_bits": 8, "packing": "five_trits", "skip": []}
    ternarise(model, TernarySettings(**plain, **settings))
    models.save(model, tokenizer, folder)
    return folder


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("thinks", [False, True])
def test_no_format_is_advised_for_layers_that_none_holds(
    format_name: str, thinks: bool, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    source = ternary(tmp_path / "m", tiny_tokenizer, sub_norm=["o_proj"])
    if thinks:
        content = json.loads((source / "config.json").read_text())
        wrapped = {"model_type": "thought", "base_config": content}
        (source / "config.json").write_text(json.dumps(wrapped))
    with pytest.raises(ConfigError, match=r"no format .* linear\.sub_norm=") as refusal:
        export(source, tmp_path / "out", format_name)
    assert "--format" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_damaged_config_is_named(format_name: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON .* from a copy"):
        export(tmp_path / "m", tmp_path / "out", format_name)


def test_the_command_writes_the_file_its_card_and_json(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    result = CliRunner().invoke(
        app, ["export", str(tiny_checkpoint.path), "--out", str(out), "--type", "Q8_0", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["size_bytes"] == out.stat().st_size
    card = (tmp_path / "m.gguf.md").read_text()
    assert f"id {tiny_checkpoint.id}" in card
    assert report["lines"][0] in card


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--format", "ggfu"], "did you mean 'gguf'"),
        (["--type", "Q9"], "no GGUF type 'Q9'"),
        (["--format", "hf", "--type", "Q8_0"], "no type 'Q8_0' for hf"),
        (["--format", "hf", "--check"], "writes none"),
    ],
)
def test_wrong_arguments_leave_with_2_and_name_themselves(
    arguments: list[str], named: str, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        app, ["export", str(tiny_checkpoint.path), "--out", str(tmp_path / "x"), *arguments]
    )
    assert result.exit_code == 2
    assert named in result.stderr
