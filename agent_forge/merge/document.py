"""Read the YAML of a recipe: text stays as typed, and numbers are numbers however they are written.

YAML 1.1 reads `1e-3` as text and a model called `2024_01` as a whole number. So every scalar is
read as text first; the key under which it stands then decides what it becomes. A key that stands
twice is refused, because one of the two would be dropped.
"""

from typing import Any

import yaml

from agent_forge.core.errors import ConfigError

# Places that hold text; all others hold numbers, flags, lists or entries.
TEXT_KEYS = (
    "merge_method", "base_model", "model", "dtype", "out_dtype", "tokenizer_source", "source",
    "chat_template", "filter", "kind", "token",
)  # fmt: skip
NULL, TEXT, MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _Loader(yaml.SafeLoader):
    """A loader whose plain scalars are text, except null."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the entries. Raises ConfigError for a key that stands twice."""
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag != MERGE and isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise ConfigError(
                        f"'{key.value}' stands twice, in line {seen[key.value]} and line {line}; "
                        "keep one of them"
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (NULL, MERGE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_document(content: bytes | str) -> Any:
    """Return a recipe's document, with text and numbers where they belong.

    Raises ConfigError when it is not valid YAML, or a key stands twice.
    """
    try:
        return typed(yaml.load(content, _Loader))  # noqa: S506 - the loader is a safe one
    except RecursionError:  # an alias inside of what it names
        raise ConfigError("not valid YAML: it holds itself, or is too deep") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from None


def text_of(content: bytes) -> str:
    """Return the text of a YAML file: UTF-16 where it begins as that does, else UTF-8."""
    is_wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    return content.decode("utf-16" if is_wide else "utf-8-sig")


def typed(value: Any, text: bool = False) -> Any:
    """Return a document in which text that reads as a number or flag is one, where text is not
    meant.
    """
    if isinstance(value, dict):
        return {key: typed(entry, str(key) in TEXT_KEYS) for key, entry in value.items()}
    if isinstance(value, list):
        return [typed(entry, text) for entry in value]
    return value if text or not isinstance(value, str) else _number_or_flag(value)


def _number_or_flag(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    special = text.lower().replace(".inf", "inf").replace(".nan", "nan")
    return float(special) if special.lstrip("+-") in ("inf", "nan") else text
