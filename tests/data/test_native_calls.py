"""A model whose chat template has a tools branch reads and writes calls as that template does.

The templates here are short ones of our own, of the shape of each family's.
"""

from typing import Any

import pytest

from agent_forge import data
from agent_forge.core.errors import ConfigError
from agent_forge.data.call_dialects import dialect
from agent_forge.data.calls import Call, write_call, write_response
from agent_forge.data.chat import call_dialect, chat_format, kept_reply, speak_dialect
from agent_forge.data.chat_template import CHAT_TEMPLATE
from tests.data.test_chat_formats import tokenizer

TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
END = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
LISTING = "{%- if tools %}{{ '<|im_start|>system\nTOOLS ' + (tools | tojson) + ' HOW<|im_end|>\n' }}{%- endif %}"
QWEN = (
    LISTING.replace("HOW", "in <tool_call></tool_call>")
    + "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- elif m.tool_calls %}{{ '<|im_start|>assistant\n' + m.content }}"
    '{%- for c in m.tool_calls %}{{ \'\n<tool_call>\n{"name": "\' + c.function.name + '
    "'\", \"arguments\": ' + (c.function.arguments | tojson) + '}\n</tool_call>' }}{%- endfor %}"
    "{{ '<|im_end|>\n' }}{%- else %}" + TURN + "{%- endif %}{%- endfor %}" + END
)
LLAMA = (
    LISTING.replace("HOW", "as JSON, or after <|python_tag|>")
    + "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{{ '<|im_start|>ipython\n' + (m.content | tojson) + '<|im_end|>\n' }}"
    "{%- elif m.tool_calls %}{%- if m.tool_calls | length != 1 %}"
    "{{ raise_exception('only one call at once') }}{%- endif %}"
    '{%- set c = m.tool_calls[0].function %}{{ \'<|im_start|>assistant\n{"name": "\' + c.name + '
    "'\", \"parameters\": ' + (c.arguments | tojson) + '}<|im_end|>\n' }}"
    "{%- else %}" + TURN + "{%- endif %}{%- endfor %}" + END
)
MISTRAL = (
    LISTING.replace("HOW", "")
    + "{%- for m in messages %}{%- if m.role == 'tool' %}{%- if m.tool_call_id | length != 9 %}"
    "{{ raise_exception('ids have nine letters') }}{%- endif %}"
    "{{ '[TOOL_RESULTS]' + ({'content': m.content} | tojson) + '[/TOOL_RESULTS]' }}"
    "{%- elif m.tool_calls %}{{ '<|im_start|>assistant\n[TOOL_CALLS] [' }}"
    "{%- for c in m.tool_calls %}{{ ', ' if not loop.first }}{{ {'name': c.function.name, "
    "'arguments': c.function.arguments, 'id': c.id} | tojson }}{%- endfor %}{{ ']<|im_end|>\n' }}"
    "{%- else %}" + TURN + "{%- endif %}{%- endfor %}" + END
)
CODER = (
    LISTING.replace("HOW", "<function=name>") + "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- elif m.tool_calls %}{{ '<|im_start|>assistant' }}{%- for c in m.tool_calls %}"
    "{{ '\n<tool_call>\n<function=' + c.function.name + '>\n' }}"
    "{%- for k, v in c.function.arguments | items %}"
    "{{ '<parameter=' + k + '>\n' + (v if v is string else v | tojson) + '\n</parameter>\n' }}"
    "{%- endfor %}{{ '</function>\n</tool_call>' }}{%- endfor %}{{ '<|im_end|>\n' }}"
    "{%- else %}" + TURN + "{%- endif %}{%- endfor %}" + END
)
GEMMA = (
    LISTING.replace("HOW", "<start_function_call>")
    + "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{{ '<start_function_response>response:' + m.name + '{value:<escape>' + m.content + "
    "'<escape>}<end_function_response>' }}{%- else %}" + TURN + "{%- endif %}{%- endfor %}" + END
)
TEMPLATES = {"hermes": QWEN, "llama": LLAMA, "mistral": MISTRAL, "qwen_coder": CODER,
             "functiongemma": GEMMA}  # fmt: skip
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}  # fmt: skip
ROME, OSLO = Call("weather", {"city": "Rome"}), Call("weather", {"city": 'Os"lo\n'})


def speaker(name: str) -> Any:
    return tokenizer(TEMPLATES[name], ("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")


def conversation(*calls: Call) -> list[dict[str, Any]]:
    written = "\n".join(write_call(call.name, call.arguments) for call in calls)
    return [
        {"role": "system", "content": "", "tools": [WEATHER]},
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": f"I look.\n{written}"},
        *({"role": "tool", "content": write_response(f"result {i}")} for i in range(len(calls))),
        {"role": "assistant", "content": "Dry."},
    ]


def text_of(name: str, *calls: Call) -> str:
    words = speaker(name)
    ids, _ = data.encode_chat(words, conversation(*calls))
    return str(words.decode(ids))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_dialect_of_a_template_is_seen(name: str) -> None:
    assert call_dialect(speaker(name)) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hermes", 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n'
         "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nresult 0\n</tool_response>"),
        ("llama", 'I look.\n{"name": "weather", "parameters": {"city": "Rome"}}<|im_end|>\n'
         '<|im_start|>ipython\n"result 0"<|im_end|>'),
        ("mistral", 'I look.\n[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}, '
         '"id": "call00000"}]<|im_end|>\n[TOOL_RESULTS]{"content": "result 0"}[/TOOL_RESULTS]'),
        ("qwen_coder", "I look.\n<tool_call>\n<function=weather>\n<parameter=city>\nRome\n"
         "</parameter>\n</function>\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n"
         "result 0\n</tool_response>"),
        ("functiongemma", "I look.\n<start_function_call>call:weather{city:<escape>Rome<escape>}"
         "<end_function_call><|im_end|>\n<start_function_response>response:weather{value:<escape>"
         "result 0<escape>}<end_function_response>"),
    ],
)  # fmt: skip
def test_calls_and_results_are_written_as_the_template_does(name: str, expected: str) -> None:
    text = text_of(name, ROME)
    assert expected in text
    assert text.count("result 0") == 1
    assert f"TOOLS {data_as_json()}" in text


def data_as_json() -> str:
    import json

    return json.dumps([WEATHER])


def test_what_a_template_refuses_is_written_by_the_dialects_own_file() -> None:
    assert dialect("llama").write([ROME, OSLO]) in text_of("llama", ROME, OSLO)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_models_message_is_kept_as_hermes_and_said_again_in_its_own_way(name: str) -> None:
    words = speaker(name)
    said = f"I look.\n{dialect(name).write([ROME, OSLO])}"
    stored = kept_reply(words, said)
    assert dialect("hermes").scan(stored).calls == [ROME, OSLO]
    assert dialect("hermes").scan(stored).words == "I look."
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": stored}]
    again = str(words.decode(data.encode_chat(words, turns)[0]))
    assert dialect(name).scan(again).calls == [ROME, OSLO]


def test_learned_turns_are_marked_in_the_models_own_words() -> None:
    words = speaker("llama")
    ids, mask = data.encode_chat(words, conversation(ROME))
    learned = str(words.decode([i for i, is_learned in zip(ids, mask, strict=True) if is_learned]))
    assert learned == (
        'I look.\n{"name": "weather", "parameters": {"city": "Rome"}}<|im_end|>Dry.<|im_end|>'
    )


def test_a_template_without_tools_gets_hermes_and_a_dialect_can_be_set() -> None:
    plain = tokenizer(
        "{%- for m in messages %}" + TURN.replace("im_start", "turn") + "{%- endfor %}" + END,
        ("<|im_end|>", "<|turn|>"), eos_token="<|im_end|>",
    )  # fmt: skip
    assert call_dialect(plain) == "hermes"
    speak_dialect(plain, "auto")
    assert call_dialect(plain) == "hermes"
    speak_dialect(plain, "llama")
    assert kept_reply(plain, "[weather(city='Rome')]") == write_call("weather", {"city": "Rome"})
    assert chat_format(plain).template is not None
    with pytest.raises(ConfigError, match="did you mean 'llama'"):
        speak_dialect(plain, "lama")
    ours = tokenizer(CHAT_TEMPLATE, ("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")
    speak_dialect(ours, "hermes")
    with pytest.raises(ConfigError, match="ChatML"):
        speak_dialect(ours, "mistral")
