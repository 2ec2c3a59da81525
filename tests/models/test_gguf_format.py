"""GGUF both ways: families, rotary scalings, tokenizers; nothing in a file is ignored silently."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from agent_forge import models
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.export import check, gguf_file
from agent_forge.models.gguf_format import pre_tokenizers as rules
from agent_forge.models.gguf_format import rope
from agent_forge.models.gguf_format.metadata import Metadata
from agent_forge.models.importing import import_model
from tests import tiny_families

TEXTS = (
    "In 1790 there were 3,929,214 of us, isn't it?",
    "  two\n\n\tlines 48 12345",
    "Größe, 数字 123 🙂 a1b22c333",
)
HALF = 5e-3  # error of logits when weights are rounded to float16
CASES = {
    **{kind: (kind, settings) for kind, settings in tiny_families.FAMILIES.items()},
    **tiny_families.ROPES,
}


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return tiny_families.tokenizer()


@pytest.fixture(scope="module")
def tiny(words: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GGUF file of a tiny Llama."""
    place = tmp_path_factory.mktemp("tiny")
    tiny_families.save(place / "hf", tiny_families.build("llama"), words)
    return gguf_file.write(place / "hf", place / "m.gguf", "F16").path


def rewritten(
    source: Path, out: Path, *, put: dict[str, Any] | None = None, drop: tuple[str, ...] = (),
    tensors: dict[str, np.ndarray] | None = None, without: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """Copy a GGUF file with other metadata and tensors."""
    reader = gguf.GGUFReader(str(source))
    values = {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }
    values |= put or {}
    writer = gguf.GGUFWriter(str(out), values.pop("general.architecture"))
    for key, value in values.items():
        if key not in drop:
            gguf_file._add_entry(writer, key, value)
    originals = {t.name: np.array(t.data) for t in reader.tensors if t.name not in without}
    for name, data in {**originals, **(tensors or {})}.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("name", CASES)
def test_a_family_comes_back_from_gguf_with_its_logits(
    name: str, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    kind, settings = CASES[name]
    model = tiny_families.build(kind, **settings)
    gguf_file.write(tiny_families.save(tmp_path / "hf", model, words), tmp_path / "m.gguf", "F16")
    again = models.load(import_model(tmp_path / "m.gguf", tmp_path / "back"))
    assert tiny_families.relative_error(again, model) <= HALF
    assert again.config.model_type == ("llama" if kind == "mistral" else kind)


def read_rope(
    values: dict[str, Any], tensors: dict[str, np.ndarray] | None = None, size: int = 8
) -> dict[str, Any]:
    keys = {
        "general.architecture": "llama",
        **{f"llama.rope.{key}": value for key, value in values.items()},
    }
    return rope.read(Metadata(Path("m.gguf"), keys), tensors or {}, size, 512)


def test_rope_keys_mean_what_the_format_says() -> None:
    """The factor has an older name too.

    Yarn's attention is .1 ln(factor) + 1, times what the file says of it.
    """
    assert read_rope({}) == {"rope_type": "default", "rope_theta": 10000.0}
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    assert read_rope({"scale_linear": 4.0}) == linear
    assert read_rope({"scaling.factor": 4.0, "scaling.type": "linear"}) == linear
    yarn = {"scaling.type": "yarn", "scaling.factor": 4.0}
    usual = 0.1 * np.log(4) + 1
    for more, times in (
        ({}, 1),
        ({"scaling.attn_factor": 2.0}, 2),
        ({"scaling.yarn_attn_factor": 3.0}, 3),
    ):
        assert read_rope(yarn | more)["attention_factor"] == pytest.approx(usual * times)
    both = yarn | {"scaling.attn_factor": 2.0, "scaling.yarn_attn_factor": 3.0}
    assert read_rope(both)["attention_factor"] == pytest.approx(usual * 6)


def test_yarns_attention_is_written_as_a_multiple_of_the_usual_one() -> None:
    """Two scales of it, as DeepSeek names them, are one over the other: here they are unlike."""
    usual = 0.1 * np.log(4) + 1
    scales = {"mscale": 2.0, "mscale_all_dim": 0.5}
    ratio = (0.1 * 2.0 * np.log(4) + 1) / (0.1 * 0.5 * np.log(4) + 1)
    config = SimpleNamespace(max_position_embeddings=4096)
    for more, expected in (
        ({}, None),
        (scales, ratio / usual),
        ({"attention_factor": 3.0}, 3.0 / usual),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1 / usual),
    ):
        written: dict[str, Any] = {}
        parameters = {"factor": 4.0, "original_max_position_embeddings": 1024, **more}
        rope._write_yarn(written.__setitem__, parameters, config)
        factor = written.get("rope.scaling.attn_factor")
        assert factor == (None if expected is None else pytest.approx(expected))


def test_a_llama3_scaling_of_an_unusual_context_is_found_in_its_factors() -> None:
    scaling = {
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 40.0,
    }
    factors = rope.llama3_factors({**scaling, "original_max_position_embeddings": 5000}, 64)
    parameters = read_rope({}, {rope.FACTORS: factors}, size=64)
    assert parameters == {
        **scaling,
        "rope_type": "llama3",
        "original_max_position_embeddings": 5000,
    }


def test_rope_factors_are_used_and_not_only_read(
    words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    kind, settings = tiny_families.ROPES["llama3 as published"]
    model = tiny_families.build(kind, **settings)
    file = gguf_file.write(
        tiny_families.save(tmp_path / "hf", model, words), tmp_path / "m.gguf", "F16"
    ).path
    without = rewritten(file, tmp_path / "n.gguf", without=(rope.FACTORS,))
    plain = models.load(import_model(without, tmp_path / "plain"))
    assert tiny_families.relative_error(plain, model) > 3 * HALF
    back = models.load(import_model(file, tmp_path / "back")).config.rope_parameters
    assert {key: back[key] for key in settings["rope_parameters"]} == settings["rope_parameters"]


def test_factors_of_no_known_scaling_are_kept_as_they_are(tiny: Path, tmp_path: Path) -> None:
    factors = np.array([1.0, 1.7, 3.1, 2.2], np.float32)
    file = rewritten(tiny, tmp_path / "m.gguf", tensors={rope.FACTORS: factors})
    config = models.load(import_model(file, tmp_path / "back")).config
    assert config.rope_parameters["rope_type"] == "longrope"
    assert np.allclose(config.rope_parameters["long_factor"], factors)
    assert np.allclose(config.rope_parameters["short_factor"], factors)


@pytest.mark.parametrize(
    ("put", "named"),
    [
        ({"llama.attention.sinks": 3}, r"llama\.attention\.sinks=3"),
        ({"llama.logit_scale": 2.0}, r"llama\.logit_scale=2\.0"),
        ({"tokenizer.ggml.new_thing": "x"}, r"tokenizer\.ggml\.new_thing=x"),
        ({"general.new_thing": True}, r"general\.new_thing=True"),
        ({"elsewhere.entirely": [1, 2]}, r"elsewhere\.entirely"),
        ({"split.count": 2}, "one of 2 parts"),
        ({"general.type": "adapter"}, "merge an adapter"),
        ({"llama.attention.value_length": 16}, "value_length is 16"),
        ({"llama.rope.dimension_count": 4}, "turns whole heads"),
        ({"llama.rope.scaling.type": "spiral", "llama.rope.scaling.factor": 2.0}, "spiral"),
        ({"llama.expert_count": 4}, "expert_used_count"),
        ({"tokenizer.ggml.pre": "smolm"}, "did you mean 'smollm'"),
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv'"),
        ({"general.architecture": "falcon"}, "architecture 'falcon'"),
    ],
)
def test_a_key_that_is_not_understood_is_named(
    put: dict[str, Any], named: str, tiny: Path, tmp_path: Path
) -> None:
    file = rewritten(tiny, tmp_path / "m.gguf", put=put)
    with pytest.raises(CheckpointError, match=named):
        import_model(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_left_over_or_missing_is_named(tiny: Path, tmp_path: Path) -> None:
    more = rewritten(
        tiny, tmp_path / "m.gguf", tensors={"blk.0.attn_sinks.weight": np.ones(4, np.float32)}
    )
    with pytest.raises(CheckpointError, match=r"no place for \(blk\.0\.attn_sinks\.weight\)"):
        import_model(more, tmp_path / "out")
    fewer = rewritten(tiny, tmp_path / "n.gguf", without=("blk.1.ffn_up.weight",))
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight"):
        import_model(fewer, tmp_path / "out")


@pytest.mark.parametrize("parts", [0, 1])
def test_keys_that_say_nothing_of_the_model_are_ignored(
    parts: int, tiny: Path, tmp_path: Path
) -> None:
    put = {
        "general.author": "somebody", "general.base_model.0.name": "x", "general.tags": ["a"],
        "split.count": parts, "quantize.imatrix.entries_count": 3, "general.sampling.temp": 0.5,
        "tokenizer.ggml.fim_pre_token_id": 1,
    }  # fmt: skip
    import_model(rewritten(tiny, tmp_path / "m.gguf", put=put), tmp_path / "out")


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.names[0])
def test_every_way_to_cut_comes_back_and_keeps_its_name(
    rule: rules.Rule, tiny: Path, tmp_path: Path
) -> None:
    content = rules.as_json(rule)
    assert rules.name_of(content, ignore_merges=rule.ignore_merges) == rule.names[0]
    assert all(rules.rule_named(name) is rule for name in rule.names)
    put = {"tokenizer.ggml.pre": rule.names[-1], "tokenizer.ggml.add_bos_token": False}
    tokenizer = models.load_tokenizer(
        import_model(rewritten(tiny, tmp_path / "m.gguf", put=put), tmp_path / "back")
    )
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
)


@pytest.mark.parametrize(
    ("name", "pre"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
        ("smollm", DIGITS),
        ("smaug-bpe", pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(rules.LLAMA3), "isolated"),
             pre_tokenizers.ByteLevel(False, use_regex=False)]
        )),
        ("qwen2", pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(rules.QWEN2), "isolated"),
             pre_tokenizers.ByteLevel(False, use_regex=False)]
        )),
    ],
)  # fmt: skip
def test_a_tokenizer_comes_back_with_its_rule_for_digits(
    name: str, pre: Any, tmp_path: Path
) -> None:
    words = tiny_families.tokenizer(pre=pre)
    tiny_families.save(tmp_path / "hf", tiny_families.build("llama"), words)
    file = gguf_file.write(tmp_path / "hf", tmp_path / "m.gguf", "F16").path
    assert gguf.GGUFReader(str(file)).fields["tokenizer.ggml.pre"].contents() == name
    back = import_model(file, tmp_path / "back")
    tokenizer = models.load_tokenizer(back)
    for text in TEXTS:
        assert tokenizer.encode(text) == words.encode(text)
    again = gguf_file.write(back.path, tmp_path / "again.gguf", "F16").path
    assert gguf.GGUFReader(str(again)).fields["tokenizer.ggml.pre"].contents() == name


def test_what_llama_cpp_cannot_say_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    model = tiny_families.build("llama")
    odd = tiny_families.tokenizer(pre=pre_tokenizers.ByteLevel(add_prefix_space=True))
    with pytest.raises(ConfigError, match="ByteLevel"):
        gguf_file.write(tiny_families.save(tmp_path / "a", model, odd), tmp_path / "m.gguf", "F16")
    low = tiny_families.tokenizer()
    low.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ConfigError, match="Lowercase"):
        gguf_file.write(tiny_families.save(tmp_path / "b", model, low), tmp_path / "m.gguf", "F16")


@pytest.mark.parametrize("bos", [True, False])
def test_a_first_token_is_said_and_comes_back(bos: bool, tmp_path: Path) -> None:
    words = tiny_families.tokenizer(bos_token="<|im_start|>")
    if bos:
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    tiny_families.save(tmp_path / "hf", tiny_families.build("llama"), words)
    file = gguf_file.write(tmp_path / "hf", tmp_path / "m.gguf", "F16").path
    assert gguf.GGUFReader(str(file)).fields["tokenizer.ggml.add_bos_token"].contents() is bos
    tokenizer = models.load_tokenizer(import_model(file, tmp_path / "back"))
    assert tokenizer.encode("Fellow 48") == words.encode("Fellow 48")
    assert (tokenizer.encode("Fellow 48")[0] == 1) is bos


def test_rows_without_a_token_are_padding_in_the_file_and_no_tokens_afterwards(
    words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = len(words) + 5
    tiny_families.save(tmp_path / "hf", tiny_families.build("llama", vocab_size=rows), words)
    file = gguf_file.write(tmp_path / "hf", tmp_path / "m.gguf", "F16").path
    written = gguf.GGUFReader(str(file)).fields["tokenizer.ggml.tokens"].contents()
    assert written[len(words) :] == [f"[PAD{i}]" for i in range(len(words), rows)]
    tokenizer = models.load_tokenizer(import_model(file, tmp_path / "back"))
    assert len(tokenizer) == len(words)
    assert tokenizer.encode(TEXTS[0]) == words.encode(TEXTS[0])


def test_a_tokenizer_of_bytes_alone_comes_back(tmp_path: Path) -> None:
    words = tiny_families.tokenizer(size=259)
    model = tiny_families.build("qwen3", vocab_size=259, head_dim=16)
    tiny_families.save(tmp_path / "hf", model, words)
    file = gguf_file.write(tmp_path / "hf", tmp_path / "m.gguf", "F16").path
    tokenizer = models.load_tokenizer(import_model(file, tmp_path / "back"))
    for text in TEXTS:
        assert tokenizer.encode(text) == words.encode(text)


def test_tokens_that_end_a_turn_and_named_templates_come_back(
    words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_families.build("llama")
    model.generation_config.eos_token_id = [0, 2]
    words = tiny_families.tokenizer()
    words.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tiny_families.save(tmp_path / "hf", model, words)
    file = gguf_file.write(tmp_path / "hf", tmp_path / "m.gguf", "F16").path
    back = import_model(file, tmp_path / "back")
    assert models.load(back).generation_config.eos_token_id == [0, 2]
    assert models.load_tokenizer(back).chat_template == words.chat_template


def pieces(prefixed: bool) -> PreTrainedTokenizerFast:
    """Return a SentencePiece-like tokenizer, as Llama 2 and Gemma have: ▁ for spaces, bytes for the
    rest.
    """
    from tokenizers import Tokenizer, decoders
    from tokenizers import models as kinds

    from agent_forge.models.gguf_format.vocabulary import merges_of

    letters = sorted(set("▁abcdefgh48"))
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *letters,
        "▁a",
        "ab",
        "▁ab",
        "cd",
        "abcd",
        "48",
    ]
    ids = {token: i for i, token in enumerate(tokens)}
    scores = {token: -float(i) for i, token in enumerate(tokens) if not token.startswith("<")}
    whole = Tokenizer(
        kinds.BPE(ids, merges_of(scores, ids), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", "▁")
    whole.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefixed else replace
    )
    whole.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1 if prefixed else 0, 0),
        ]
    )
    whole.add_special_tokens(["<unk>", "<s>", "</s>"])
    whole.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("prefixed", [True, False])
def test_sentence_pieces_come_back_from_their_scores(prefixed: bool, tmp_path: Path) -> None:
    words = pieces(prefixed)
    tiny_families.save(tmp_path / "hf", tiny_families.build("llama"), words)
    file = gguf_file.write(tmp_path / "hf", tmp_path / "m.gguf", "F16").path
    assert gguf.GGUFReader(str(file)).fields["tokenizer.ggml.model"].contents() == "llama"
    tokenizer = models.load_tokenizer(import_model(file, tmp_path / "back"))
    for text in ("abcd ab 48 hgfe", "a  b", "Größe 🙂", "ab</s>cd"):
        assert tokenizer.encode(text) == words.encode(text)
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == words.decode(
            words.encode(text, add_special_tokens=False)
        )


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        ("qwen3_moe", {"norm_topk_prob": False, "head_dim": 16}, "norm_topk_prob=False"),
        ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 1]}, "no_rope_layers"),
        ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 64}, "query_pre_attn_scalar=64"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "'dynamic'",
        ),
    ],
)
def test_a_setting_that_llama_cpp_does_not_compute_is_refused_by_name(
    kind: str, settings: dict[str, Any], named: str, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = {**tiny_families.FAMILIES[kind], **settings}
    tiny_families.save(tmp_path / "hf", tiny_families.build(kind, **config), words)
    with pytest.raises(ConfigError, match=named):
        gguf_file.write(tmp_path / "hf", tmp_path / "m.gguf", "F16")


def test_a_window_that_llama_cpp_lacks_shortens_the_context(
    words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_families.build("mistral", sliding_window=100)
    tiny_families.save(tmp_path / "hf", model, words)
    written = gguf_file.write(tmp_path / "hf", tmp_path / "m.gguf", "F16")
    assert "the context length is written as 100 of 256" in written.lines[0]
    again = models.load(import_model(written.path, tmp_path / "back"))
    assert again.config.max_position_embeddings == 100
    assert tiny_families.relative_error(again, model) <= HALF


LLAMA_PYTHON = check.usable_python()


@pytest.mark.skipif(
    not LLAMA_PYTHON,
    reason="needs xllamacpp or llama-cpp-python; FORGE_LLAMA_PYTHON may name a Python",
)
@pytest.mark.parametrize("name", ["gemma3_text", "mixtral", "yarn, own attention"])
def test_llama_cpp_computes_a_family_as_the_file_means_it(
    name: str, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    kind, settings = CASES[name]
    tiny_families.save(tmp_path / "hf", tiny_families.build(kind, **settings), words)
    file = gguf_file.write(tmp_path / "hf", tmp_path / "m.gguf", "F16").path
    comparison = check.compare(tmp_path / "hf", file, python=LLAMA_PYTHON)
    assert comparison.same_tokens
    assert comparison.passed, comparison
