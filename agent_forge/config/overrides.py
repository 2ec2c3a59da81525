"""Write settings as overrides that Hydra reads back as they were typed.

Hydra's grammar guesses types from the text alone: `out=2024_01` would become the number 202401, and
`=`, `#` or `ü` in a value end in its lexer. Here the schema says the type first, so that text stays
text, and what Hydra reads is quoted.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

from agent_forge.core.errors import ConfigError

SWEEPS = re.compile(
    r"(choice|range|interval|glob|sort|shuffle|tag|int|float|str|bool|json_str)\((.*)\)", re.DOTALL
)
KEY = re.compile(r"(\+\+?|~)?[\w$./@:-]+", re.ASCII)
NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
INT = re.compile(r"[-+]?\d+(_\d+)*", re.ASCII)
FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\.?(inf|nan)",
    re.ASCII | re.IGNORECASE,
)
TRUTH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
# The most digits of a typed whole number; Python itself refuses more than a few thousand.
MOST_DIGITS = 100
ESCAPED = re.compile(r"\\([()\[\]{}:=,\s\\])")  # Hydra's escapes of unquoted text


def hint_of(schema: Any, key: str) -> Any:
    """Return the type of the setting `key`, a dotted name, in `schema`; Any where it has none."""
    hint: Any = schema
    for part in key.split("."):
        hint = bare(hint)
        if is_dataclass(hint) and isinstance(hint, type):
            hint = get_type_hints(hint, include_extras=True).get(part, Any)
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
        else:
            return Any
    return bare(hint)


def bare(hint: Any) -> Any:
    """Return a type without its annotations."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def field_hints(schema: type) -> dict[str, Any]:
    """Return the fields of a dataclass with their types, annotations included, in order."""
    hints = get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in fields(schema)}


def quote(text: str) -> str:
    """Return text in quotes so that Hydra reads it back unchanged.

    Only quotes, and backslashes before them, are escaped.
    """
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def unquote(text: str) -> str:
    """Return the content of a quoted value as Hydra reads it."""
    mark = text[0]

    def halved(match: re.Match[str]) -> str:
        return match[1][: len(match[1]) // 2] + mark

    inner = re.sub(r"(\\+)" + re.escape(mark), halved, text[1:-1])
    trailing = len(inner) - len(inner.rstrip("\\"))
    return inner[: len(inner) - trailing // 2] if trailing else inner


def typed_override(override: str, schema: Any, *, sweep: bool) -> str:
    """Return `KEY=VALUE` with its value written as the type of KEY in `schema` asks.

    sweep: commas between values, and Hydra's choice() and range(), stand for several jobs.
    Raises ConfigError that shows what to type where the value does not fit the type.
    """
    key, equals, text = override.partition("=")
    if not KEY.fullmatch(key):
        raise ConfigError(
            f"cannot read the key '{key}': keys are ASCII letters, digits, _ and dots, as in gate.items=64"
        )
    if not equals:
        return override
    name = key.lstrip("+~")
    return f"{key}={_Text(name, text, sweep).value(hint_of(schema, name))}"


def settings_in_braces(key: str, text: str) -> list[str]:
    """Return the entries of a mapping `{NAME: VALUE, ...}` given to `key` as single settings,
    KEY.NAME=VALUE.

    Raises ConfigError where the text is not a whole mapping.
    """
    return _Text(key, text, sweep=False).single_settings()


class _Text:
    """A value as typed on the command line, read from left to right."""

    def __init__(self, key: str, text: str, sweep: bool) -> None:
        self.key, self.text, self.sweep, self.at = key, text, sweep, 0

    def value(self, hint: Any) -> str:
        """Return the whole text as one value of type `hint`, or as several of a sweep."""
        if self.sweep:
            function = SWEEPS.fullmatch(self.text)
            if function and function[1] == "choice":
                return f"choice({_Text(self.key, function[2], True).value(hint)})"
            if function:
                return self.text
            parts = list(_split(self.text))
            if len(parts) > 1:
                return ",".join(_Text(self.key, part, False).value(hint) for part in parts)
        if hint is str or (hint is Any and not self.text.lstrip().startswith(("[", "{"))):
            return self._leaf(_whole(self.text), hint)
        written = self._element(hint, "")
        if self.text[self.at :].strip():
            self._fail(hint)
        return written

    def single_settings(self) -> list[str]:
        """Return the entries of a mapping, each as a setting of its own, with its value as
        typed.
        """
        self._skip_spaces()
        entries = list(self._items("}", self._single_setting))
        if self.text[self.at :].strip():
            raise ConfigError(f"{self.key}: cannot read '{self.text}'")
        return entries

    def _single_setting(self) -> str:
        name = checked_name(self.key, self._name())
        start, depth = self.at, 0
        while self.at < len(self.text):
            self.at = _scan(self.text, self.at, ",[{]}")
            character = self.text[self.at : self.at + 1]
            if depth == 0 and character in (",", "}"):
                break
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(character, 0)
            self.at += 1
        return f"{self.key}.{name}={self.text[start : self.at].strip()}"

    def _element(self, hint: Any, ends: str) -> str:
        hint = bare(hint)
        self._skip_spaces()
        first = self.text[self.at : self.at + 1]
        if first == "[" and (get_origin(hint) is list or hint is Any):
            inner = get_args(hint)[0] if get_args(hint) else Any
            return "[" + ",".join(self._items("]", lambda: self._element(inner, ",]"))) + "]"
        if first == "{" and (get_origin(hint) is dict or hint is Any or is_dataclass(hint)):
            return self._mapping(hint)
        if ends and first in ("[", "{"):
            raise ConfigError(
                f"{self.key} holds no lists or mappings; quote '{first}' where it is text: ['{first}...']"
            )
        raw = self._raw(ends)
        if (get_origin(hint) in (list, dict) or is_dataclass(hint)) and not raw.startswith("${"):
            if ends:
                form = "[A, B]" if get_origin(hint) is list else "{NAME: VALUE}"
                raise ConfigError(f"{self.key}: an entry of it is {form}, got '{raw}'")
            self._fail(hint)
        return self._leaf(raw, hint)

    def _mapping(self, hint: Any) -> str:
        """Return a mapping. Raises ConfigError for one that sets an entry twice, or none: Hydra
        would pass over both.
        """
        entries = list(self._items("}", lambda: self._pair(hint)))
        names = [entry.partition(":")[0] for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{self.key}: '{name}' is set more than once; keep one of them")
        if not names and hint is not Any:
            raise ConfigError(no_entries(self.key))
        return "{" + ",".join(entries) + "}"

    def _items(self, end: str, read: Callable[[], str]) -> Iterator[str]:
        self.at += 1
        self._skip_spaces()
        while self.text[self.at : self.at + 1] != end:
            yield read()
            self._skip_spaces()
            if self.text[self.at : self.at + 1] == ",":
                self.at += 1
                self._skip_spaces()
            elif self.text[self.at : self.at + 1] != end:
                raise self._unclosed(end)
        self.at += 1

    def _unclosed(self, end: str) -> ConfigError:
        """Return the error of a list or mapping that does not end."""
        return ConfigError(
            f"{self.key}: '{self.text}' ends without its '{end}' or lacks a comma; quote the whole "
            f"setting for the shell: '{self.key}={self.text.rstrip()}{end}'"
        )

    def _pair(self, hint: Any) -> str:
        key = self._name()
        inner = hint_of(hint, checked_name(self.key, key)) if hint is not Any else Any
        if not self.text[self.at :].strip():
            raise self._unclosed("}")
        return f"{key}:{self._element(inner, ',}')}"

    def _name(self) -> str:
        """Return the name of an entry, and go behind its colon."""
        name = self._raw(":}").strip()
        name = unquote(name) if _is_quoted(name) else name
        if self.text[self.at : self.at + 1] != ":":
            raise ConfigError(
                f"{self.key}: '{name}' has no value; entries of a mapping are NAME: VALUE"
            )
        self.at += 1
        return name

    def _raw(self, ends: str) -> str:
        """Return the text up to one of `ends`, outside of quotes and interpolations, without the
        spaces around it.
        """
        start, self.at = self.at, _scan(self.text, self.at, ends)
        return self.text[start : self.at].strip()

    def _skip_spaces(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def _leaf(self, raw: str, hint: Any) -> str:
        if _is_quoted(raw):
            return scalar(self.key, unquote(raw), hint, quoted=True)
        whole = raw == _whole(self.text)
        return scalar(self.key, raw if whole else ESCAPED.sub(r"\1", raw), hint)

    def _fail(self, hint: Any) -> NoReturn:
        mapping = get_origin(hint) is dict or is_dataclass(hint)
        if get_origin(hint) is list:
            inner = "" if self.text.strip() == "null" else self.text
            form = f"[{inner}]" if "[" not in inner else inner
            raise ConfigError(f"{self.key} is a list, got '{self.text}'; type '{self.key}={form}'")
        if mapping:
            raise ConfigError(
                f"{self.key} is a mapping, got '{self.text}'; type '{self.key}={{NAME: VALUE}}'"
            )
        raise ConfigError(f"{self.key}: cannot read '{self.text}'")


def scalar(key: str, text: str, hint: Any, *, quoted: bool = False) -> str:
    """Write one value of type `hint`. Raises ConfigError where the text does not have that type."""
    kind = bare(hint)
    if "${" in text:
        _check_reference(key, text)
    if "${" in text and kind is not str:
        return text if text.startswith("${") else quote(text)
    if kind is str:
        if text == "null" and not quoted:
            raise ConfigError(
                f"{key} is text and cannot be null; for the word, type {key}=\"'null'\""
            )
        return quote(text)
    if kind is bool and text.lower() in TRUTH:
        return str(TRUTH[text.lower()]).lower()
    if kind is int and INT.fullmatch(text):
        if len(text) > MOST_DIGITS:
            raise ConfigError(f"{key} must be a whole number, got one of {len(text)} characters")
        return str(int(text))
    if kind is float and FLOAT.fullmatch(text):
        return repr(float(text.replace(".inf", "inf").replace(".nan", "nan")))
    if kind in (bool, int, float):
        allowed = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        several = "; several values need -m" if "," in text else ""
        raise ConfigError(f"{key} must be {allowed}, got '{text}'{several}")
    return text if not quoted and _is_plain(text) else quote(text)


def no_entries(key: str) -> str:
    """Return why a mapping without entries is refused."""
    return (
        f"{key}={{}} would change nothing, for a mapping is laid over the defaults entry by entry; name the entries to "
        f"change, or take one out with '~{key}.NAME'"
    )


def _check_reference(key: str, text: str) -> None:
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse

    try:
        parse(text)
    except GrammarParseError:
        raise ConfigError(
            f"{key}: '${{' begins a reference, as in ${{seed}}; type \\${{ for the two characters"
        ) from None


def _is_plain(text: str) -> bool:
    """Return whether text without a declared type is null, a truth value or a number rather than a
    string.
    """
    number = re.fullmatch(
        r"[-+]?(0|[1-9]\d*)|[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?", text, re.ASCII
    )
    return number is not None or text.lower() in ("null", "true", "false", "nan", "inf", "-inf")


def checked_name(key: str, name: str) -> str:
    """Return the name of an entry in a mapping. Raises ConfigError for one that the grammar of
    overrides cannot hold.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{key}: '{name}' is not a name: names begin with a letter and hold letters, digits, _ and -"
        )
    return name


def _whole(text: str) -> str:
    return text.strip() if _is_quoted(text.strip()) else text


def _is_quoted(text: str) -> bool:
    """Return whether the quote that opens `text` is closed by its last character, and not
    before.
    """
    return len(text) > 1 and text[0] in "'\"" and _closing(text, 0) == len(text) - 1


def _closing(text: str, start: int) -> int:
    """Return the place of the quote that closes the one at `start`, or -1: a backslash keeps a
    quote open.
    """
    at = start + 1
    while at < len(text):
        if text[at] == "\\":
            run = len(text[at:]) - len(text[at:].lstrip("\\"))
            closes = text[at + run : at + run + 1] == text[start] and run % 2
            at += run + bool(closes)
        elif text[at] == text[start]:
            return at
        else:
            at += 1
    return -1


def _scan(text: str, at: int, ends: str) -> int:
    """Return the place of the first of `ends` after `at`, skipping quoted parts, interpolations and
    escapes.
    """
    fresh = True
    while at < len(text) and text[at] not in ends:
        if fresh and text[at] in "'\"" and _closing(text, at) >= 0:
            at = _closing(text, at) + 1
        elif text.startswith("${", at):
            at = text.find("}", at) + 1 or len(text)
        else:
            escapes = text[at] == "\\" and text[at + 1 : at + 2] in tuple(ends)
            at += 2 if escapes else 1
        fresh = text[at - 1 : at].isspace() and fresh
    return at


def _split(text: str) -> Iterator[str]:
    """Yield the parts of a sweep: between commas, outside of quotes, brackets and
    interpolations.
    """
    start = at = depth = 0
    while True:
        at = _scan(text, at, ",[{]}")
        if at >= len(text):
            yield text[start:].strip()
            return
        if text[at] == "," and depth == 0:
            yield text[start:at].strip()
            start = at + 1
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(text[at], 0)
        at += 1


def read_yaml(path: Path) -> Any:
    """Return the root node of a YAML file with a loader that can construct parts of it, or (None,
    None) when empty.

    Raises ConfigError for a file that cannot be read, is not UTF-8 or is not YAML; a backslash in
    double quotes that YAML does not know is answered with the quoting to type.
    """
    import yaml

    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8: byte {error.start} is {content_byte(error)}; save it as UTF-8"
        ) from None
    try:
        loader = yaml.SafeLoader(content)  # raises too: for characters that YAML does not allow
        return loader.get_single_node(), loader
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        hint = (
            "; a backslash stands for itself in single quotes: KEY: 'a\\b'"
            if "escape" in text
            else ""
        )
        raise ConfigError(f"{path} is not valid YAML: {text}{hint}") from None


def content_byte(error: UnicodeDecodeError) -> str:
    """Return the byte at which decoding stopped, in hexadecimal."""
    return f"0x{error.object[error.start]:02x}"


def file_overrides(node: Any, loader: Any, schema: Any, prefix: str = "") -> Iterator[str]:
    """Yield the settings of a YAML mapping as typed overrides. Raises ConfigError that names key
    and line.
    """
    import yaml

    loader.flatten_mapping(node)  # `<<: *defaults`
    names = [_node_name(key, prefix) for key, _ in node.value]
    for name, (key, value) in zip(names, node.value, strict=True):
        if names.count(name) > 1:
            raise ConfigError(
                f"{prefix}{name} is set more than once (line {key.start_mark.line + 1}); keep one of them"
            )
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from file_overrides(value, loader, schema, f"{prefix}{name}.")
        else:
            full = f"{prefix}{name}"
            yield f"{full}={_node_text(full, value, hint_of(schema, full), loader)}"


def _node_name(node: Any, prefix: str) -> str:
    name = str(node.value)
    for part in name.split("."):
        checked_name(prefix.rstrip(".") or f"line {node.start_mark.line + 1}", part)
    return name


def _node_text(key: str, node: Any, hint: Any, loader: Any) -> str:
    """Write a node of YAML in Hydra's grammar, as the type of its setting asks."""
    import yaml

    hint = bare(hint)
    if isinstance(node, yaml.SequenceNode):
        if hint is not Any and get_origin(hint) is not list:
            raise ConfigError(f"{key} is not a list (line {node.start_mark.line + 1})")
        inner = get_args(hint)[0] if get_args(hint) else Any
        return "[" + ",".join(_node_text(key, item, inner, loader) for item in node.value) + "]"
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        pairs = [(_node_name(name, key), value) for name, value in node.value]
        if not pairs and hint is not Any:
            raise ConfigError(f"{no_entries(key)} (line {node.start_mark.line + 1})")
        entries = (
            f"{name}:{_node_text(f'{key}.{name}', v, hint_of(hint, name), loader)}"
            for name, v in pairs
        )
        return "{" + ",".join(entries) + "}"
    if get_origin(hint) in (list, dict) or is_dataclass(hint):
        if node.value.startswith("${"):
            return str(node.value)
        shape = "a list, [a, b]" if get_origin(hint) is list else "a mapping, {NAME: VALUE}"
        raise ConfigError(f"{key} is {shape}, got '{node.value}' (line {node.start_mark.line + 1})")
    if node.tag == "tag:yaml.org,2002:null":
        if hint is Any:
            return "null"
        raise ConfigError(
            f"{key} has no value (line {node.start_mark.line + 1}: '{node.value}' is YAML's null); leave the line out, or "
            f"write {key.rpartition('.')[2]}: '{node.value}' for that text"
        )
    if hint is Any and node.style is None:
        value = loader.construct_object(node)
        return str(value).lower() if isinstance(value, bool) else scalar(key, str(node.value), hint)
    return scalar(key, str(node.value), hint, quoted=True)
