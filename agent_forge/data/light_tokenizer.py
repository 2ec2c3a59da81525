"""A checkpoint's tokenizer without transformers, whose import takes longer than a first token.

Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja, and
offers what `data/chat.py` and the agent use of a PreTrainedTokenizerFast, with the same results.
Where a file holds something that is not understood here, `open_light` returns None, and
transformers reads the tokenizer. Chat templates run in jinja2's sandbox with the functions that
transformers documents for them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_forge.data.windows import stored_positions

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# The names of single special tokens in a tokenizer's config.
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Lists, or mappings by name, of further special tokens.
FURTHER = ("additional_special_tokens", "extra_special_tokens")


class LightTokenizer:
    """The Rust tokenizer of a checkpoint with its special tokens and its chat template.

    tokens: name ("eos_token") -> text of the single special tokens.
    """

    def __init__(
        self,
        backend: "Tokenizer",
        tokens: Mapping[str, str],
        further: Sequence[str],
        chat_template: str | None,
        longest: int,
    ) -> None:
        self.backend_tokenizer = backend
        self.chat_template = chat_template
        self.model_max_length = longest
        self._tokens, self._further = dict(tokens), list(further)
        self._renderers: dict[str, Callable[..., str]] = {}
        for name in SPECIAL:
            token = self._tokens.get(f"{name}_token")
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", None if token is None else backend.token_to_id(token))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the light tokenizer has no {name}; load the tokenizer with models.load_tokenizer"
        )

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @cached_property
    def added_tokens_decoder(self) -> "dict[int, AddedToken]":
        """Return the added tokens by id."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    @cached_property
    def all_special_ids(self) -> list[int]:
        """Return the ids of the special tokens that the config names."""
        texts = [*self._tokens.values(), *self._further]
        ids = map(self.backend_tokenizer.token_to_id, dict.fromkeys(texts))
        return [number for number in ids if number is not None]

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token, or of the unknown one."""
        number = self.backend_tokenizer.token_to_id(token)
        return self.unk_token_id if number is None else number  # type: ignore[no-any-return]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text."""
        ids: list[int] = self.backend_tokenizer.encode(
            text, add_special_tokens=add_special_tokens
        ).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids."""
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Any = None,
        chat_template: str | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        **names: Any,
    ) -> str:
        """Return messages as the template writes them. Raises ValueError without a template."""
        assert not tokenize, "the light tokenizer renders text only"
        source = chat_template or self.chat_template
        if source is None:
            raise ValueError("the tokenizer has no chat template")
        if source not in self._renderers:
            self._renderers[source] = _compiled(source)
        return self._renderers[source](
            messages=messages, tools=tools, documents=None,
            add_generation_prompt=add_generation_prompt, **(self._template_tokens() | names),
        )  # fmt: skip

    def _template_tokens(self) -> dict[str, Any]:
        """Return the special tokens as templates see them."""
        further = {"additional_special_tokens": self._further} if self._further else {}
        return {**self._tokens, **further}


def open_light(directory: Path) -> LightTokenizer | None:
    """Return the tokenizer of a model directory, or None where transformers has to read it."""
    config = _json(directory / "tokenizer_config.json")
    file = directory / "tokenizer.json"
    if not file.is_file() or config is None or _is_special_case(config):
        return None
    named = {**(_json(directory / "special_tokens_map.json") or {}), **config}
    tokens: dict[str, str] = {}
    for name in SPECIAL:
        value = named.get(f"{name}_token")
        if value is not None:
            tokens[f"{name}_token"] = value["content"] if isinstance(value, dict) else str(value)
    further = _further(named)
    template = _template(directory, config)
    if further is None or template is _UNKNOWN:
        return None
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(file))
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    if not special.issuperset([*tokens.values(), *further]):
        return None  # transformers would add these to the vocabulary, or mark them as special
    backend.no_truncation()
    backend.no_padding()
    limits = [config.get("model_max_length"), _longest(directory)]
    longest = min((int(limit) for limit in limits if limit), default=int(1e30))
    return LightTokenizer(backend, tokens, further, template, longest)  # type: ignore[arg-type]


_UNKNOWN = object()


def _is_special_case(config: Mapping[str, Any]) -> bool:
    """Return whether a config asks for something that only transformers does."""
    return bool(
        config.get("auto_map")
        or config.get("clean_up_tokenization_spaces")
        or config.get("split_special_tokens")
        or config.get("add_bos_token") is not None
        or config.get("add_eos_token") is not None
        or config.get("add_prefix_space") is not None
    )


def _further(named: Mapping[str, Any]) -> list[str] | None:
    """Return the further special tokens, or None where they have names of their own."""
    texts: list[str] = []
    for key in FURTHER:
        value = named.get(key) or []
        if not isinstance(value, list):
            return None
        texts += [item["content"] if isinstance(item, dict) else str(item) for item in value]
    return list(dict.fromkeys(texts))


def _template(directory: Path, config: Mapping[str, Any]) -> Any:
    """Return the chat template, None without one, or _UNKNOWN where there are several."""
    if (directory / "additional_chat_templates").exists():
        return _UNKNOWN
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    return template if template is None or isinstance(template, str) else _UNKNOWN


def _longest(directory: Path) -> int | None:
    return stored_positions(_json(directory / "config.json") or {})


def _json(file: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _compiled(source: str) -> Callable[..., str]:
    """Return the function that renders a chat template, in jinja2's sandbox."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model learns; here it only writes its content."""

        tags = {"generation"}  # noqa: RUF012 - as the base class has it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def write_json(value: Any, ensure_ascii: bool = False, **form: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    # jinja2's own tojson escapes for HTML.
    environment.filters["tojson"] = write_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source).render
