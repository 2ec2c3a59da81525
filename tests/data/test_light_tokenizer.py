"""The light tokenizer writes, reads and renders as transformers does, or leaves it to that."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from agent_forge import data, models
from agent_forge.checkpoint import Checkpoint
from agent_forge.core.errors import DataError
from agent_forge.data.chat import chat_format
from agent_forge.data.chat_template import CHAT_TEMPLATE
from agent_forge.data.light_tokenizer import open_light
from tests.data.test_chat_formats import GEMMA, LLAMA2, LONG, QWEN3, TURNS

TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "é <b>", "parameters": {"type": "object"}},
}
CONTROLS = "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
LISTED = [{"role": "system", "content": "Be brief.", "tools": [TOOL]}, *TURNS]


def written(tokenizer: PreTrainedTokenizerFast, folder: Path, template: str | None) -> Path:
    """Write a model directory with this tokenizer and chat template."""
    folder.mkdir(exist_ok=True)
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    return folder


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GEMMA, LLAMA2, QWEN3, None])
def test_conversations_are_the_same_tokens(
    template: str | None, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = written(tiny_tokenizer, tmp_path, template)
    light, whole = open_light(folder), models.load_tokenizer(folder)
    assert light is not None
    ours, theirs = chat_format(light), chat_format(whole)  # type: ignore[arg-type]
    assert (ours.prefix, ours.end, ours.note) == (theirs.prefix, theirs.end, theirs.note)
    assert ours.control.pattern == theirs.control.pattern
    assert data.stop_ids(light) == data.stop_ids(whole)  # type: ignore[arg-type]
    for messages in (TURNS[:1], TURNS, LONG, LISTED):
        assert data.encode_prompt(light, messages) == data.encode_prompt(whole, messages)  # type: ignore[arg-type]
    assert light.model_max_length == whole.model_max_length == 512
    assert len(light) == len(whole)
    for text in ("<|im_end|>", "no such token"):
        assert light.convert_tokens_to_ids(text) == whole.convert_tokens_to_ids(text)


def test_special_tokens_and_texts_are_the_same(tiny_checkpoint: Checkpoint) -> None:
    light, whole = open_light(tiny_checkpoint.path), models.load_tokenizer(tiny_checkpoint.path)
    assert light is not None
    assert sorted(light.all_special_ids) == sorted(whole.all_special_ids)
    for name in ("bos", "eos", "pad", "unk"):
        assert getattr(light, f"{name}_token_id") == getattr(whole, f"{name}_token_id")
    text = "Grüße 👩‍👩‍👧 <|im_start|> <tool_call> "
    for special in (True, False):
        ids = light.encode(text, add_special_tokens=special)
        assert ids == whole.encode(text, add_special_tokens=special)
        for skip in (True, False):
            assert light.decode(ids, skip_special_tokens=skip) == whole.decode(
                ids, skip_special_tokens=skip
            )


@pytest.mark.parametrize(
    "template",
    [
        CONTROLS,
        "{{ tools | tojson }}{{ messages | tojson(indent=2) }}{{ bos_token }}",
        "{% generation %}{{ messages[0].content }}\n{% endgeneration %}\n x",
        "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ date_string }} {{ strftime_now('%Y')|length }}  {% if true %}\n  a\n  {% endif %}",
    ],
)
def test_templates_render_the_same_text(
    template: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    light = open_light(written(tiny_tokenizer, tmp_path, template))
    assert light is not None
    names: dict[str, Any] = {"tools": [TOOL], "tokenize": False, "date_string": "today"}
    assert light.apply_chat_template(LONG, **names) == tiny_tokenizer.apply_chat_template(
        LONG, chat_template=template, **names
    )


def test_a_template_that_refuses_is_a_refusal_and_code_in_it_is_not_run(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    light = open_light(written(tiny_tokenizer, tmp_path, None))
    assert light is not None
    with pytest.raises(ValueError, match="no chat template"):
        light.apply_chat_template(TURNS)
    for template in (
        "{{ raise_exception('not so') }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
    ):
        light.chat_template = template
        with pytest.raises(DataError, match="template"):
            data.encode_prompt(light, TURNS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"clean_up_tokenization_spaces": True},
        {"add_bos_token": True},
        {"chat_template": [{"name": "default", "template": "x"}]},
        {"extra_special_tokens": {"image_token": "<|im_end|>"}},
        {"eos_token": "<a token that the vocabulary lacks>"},
        {"auto_map": {"AutoTokenizer": "x.y"}},
    ],
)
def test_what_is_not_understood_is_left_to_transformers(
    change: dict[str, Any], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = written(tiny_tokenizer, tmp_path, None)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert open_light(folder) is None


def test_a_directory_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert open_light(tmp_path) is None


def test_what_it_does_not_offer_is_named(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(AttributeError, match="has no batch_decode; load the tokenizer with"):
        open_light(tiny_checkpoint.path).batch_decode  # type: ignore[union-attr]  # noqa: B018
