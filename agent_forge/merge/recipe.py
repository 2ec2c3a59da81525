"""What to merge: method, models, base, parameters, and optionally slices of layers.

Reads and writes mergekit's YAML.

Models are named by labels: directories as written in the file. A recipe is plain data;
`plan.make_plan` checks it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.merge.document import read_document, typed
from agent_forge.merge.values import Setting

Parameters = dict[str, Setting]
TOP_KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
TOKENIZER_KEYS = ("source", "pad_to_multiple_of", "tokens")
TOKEN_KINDS = {"zero": ("kind",), "model_token": ("kind", "model", "token", "token_id")}
# Methods that other tools know by another name: a layer path is a passthrough merge of slices.
FOREIGN_NAMES = {"dfs": "passthrough"}


@dataclass(slots=True, kw_only=True)
class ModelEntry:
    """One merged model and its own parameters."""

    model: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class SliceSource:
    """Layers [from, to) of one model."""

    model: str
    layer_range: tuple[int, int]
    parameters: Parameters = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Slice:
    """A stretch of output layers, merged from stretches of equal length."""

    sources: list[SliceSource]
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSource:
    """Whose embedding a token gets.

    model: "" for zeros. token: a token or an id there. force: also where it is known.
    """

    model: str = ""
    token: str | int = ""
    force: bool = False


@dataclass(slots=True, kw_only=True)
class Recipe:
    """A merge, either of `models` (whole models) or of `slices` (stretches of layers).

    dtype: what results are stored in unless out_dtype says otherwise; other tools compute in it
    too, here arithmetic is float32, or float64 for models stored in 16 bits and where dtype is
    float64.
    tokenizer_source: "" (all must be equal), "base", "union", or a model of the recipe.
    pad_to_multiple_of: 0 for none.
    tokens: whose embeddings the named tokens get.
    chat_template: "" (the tokenizer's own), "auto" (the most frequent one), or the template itself.
    """

    method: str
    models: list[ModelEntry] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    base: str = ""
    parameters: Parameters = field(default_factory=dict)
    dtype: str = ""
    out_dtype: str = ""
    tokenizer_source: str = ""
    pad_to_multiple_of: int = 0
    tokens: dict[str, TokenSource] = field(default_factory=dict)
    chat_template: str = ""

    def labels(self) -> list[str]:
        """Return every model that is named, once, in order."""
        named = [
            self.base,
            *(m.model for m in self.models),
            *(s.model for part in self.slices for s in part.sources),
        ]
        return list(dict.fromkeys(label for label in named if label))

    def renamed(self, names: Mapping[str, str]) -> "Recipe":
        """Return the recipe with each model called by its name in `names`."""

        def entry(part: Any) -> Any:
            return replace(part, model=names.get(part.model, part.model))

        slices = [
            replace(part, sources=[entry(source) for source in part.sources])
            for part in self.slices
        ]
        return replace(
            self,
            base=names.get(self.base, self.base),
            models=[entry(model) for model in self.models],
            slices=slices,
            tokenizer_source=names.get(self.tokenizer_source, self.tokenizer_source),
            tokens={token: entry(source) for token, source in self.tokens.items()},
        )

    def to_mergekit(self, dtype: str = "float32") -> dict[str, Any]:
        """Return the recipe as mergekit's YAML has it."""
        content: dict[str, Any] = {"merge_method": FOREIGN_NAMES.get(self.method, self.method)}
        if self.base:
            content["base_model"] = self.base
        if self.slices:
            content["slices"] = [
                {
                    "sources": [
                        _filled(
                            {
                                "model": s.model,
                                "layer_range": list(s.layer_range),
                                "parameters": s.parameters,
                            }
                        )
                        for s in part.sources
                    ],
                    **_filled({"parameters": part.parameters}),
                }
                for part in self.slices
            ]
        else:
            content["models"] = [
                _filled({"model": m.model, "parameters": m.parameters}) for m in self.models
            ]
        return {**content, **_filled({"parameters": self.parameters}), "dtype": self.dtype or dtype}


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a YAML file.

    Raises ConfigError naming the file and what does not fit.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        return parse_recipe(read_document(content))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_recipe(content: Any) -> Recipe:
    """Return the recipe of a mergekit document.

    Raises ConfigError on an unknown key or a wrong form.
    """
    top = _mapping(_whole_model(typed(content)), "the recipe", TOP_KEYS, required=("merge_method",))
    if bool(top.get("models")) == bool(top.get("slices")):
        raise ConfigError("a recipe needs either `models` or `slices`")
    models, slices = [], []
    for key in ("models", "slices"):
        if not isinstance(top.get(key) or [], list):
            raise ConfigError(f"{key}: a list expected, got {top[key]!r}")
    for entry in top.get("models") or []:
        part = _mapping(entry, "models", ("model", "parameters"), required=("model",))
        models.append(
            ModelEntry(model=_label(part["model"], "models"), parameters=_parameters(part))
        )
    for entry in top.get("slices") or []:
        part = _mapping(entry, "slices", ("sources", "parameters"), required=("sources",))
        if not isinstance(part["sources"], list):
            raise ConfigError(f"slices: sources must be a list, got {part['sources']!r}")
        slices.append(
            Slice(
                sources=[_slice_source(source) for source in part["sources"]],
                parameters=_parameters(part),
            )
        )
    tokenizer, multiple, tokens = _tokenizer(top)
    return Recipe(
        method=str(top["merge_method"]),
        models=models,
        slices=slices,
        base=_label(top["base_model"], "base_model") if top.get("base_model") else "",
        parameters=_parameters(top),
        dtype=str(top.get("dtype") or ""),
        out_dtype=str(top.get("out_dtype") or ""),
        tokenizer_source=tokenizer,
        pad_to_multiple_of=multiple,
        tokens=tokens,
        chat_template=str(top.get("chat_template") or ""),
    )


def _whole_model(content: Any) -> Any:
    """Return a document without `modules`: a causal language model is one module, whose entries
    count.
    """
    if not isinstance(content, dict) or not isinstance(content.get("modules"), dict):
        return content
    if len(content["modules"]) != 1:
        raise ConfigError(
            f"modules: {', '.join(map(str, content['modules']))}: models of several modules "
            "(vision and text, say) are not "
            "merged here; give `models` or `slices` of a causal language model"
        )
    (module,) = content["modules"].values()
    rest = {key: value for key, value in content.items() if key != "modules"}
    inner = _mapping(module, "modules", ("models", "slices", "parameters"), required=())
    if overlap := rest.keys() & inner.keys() - {"parameters"}:
        raise ConfigError(
            f"`{min(overlap)}` stands both in the recipe and in its module; give it once"
        )
    return {
        **rest,
        **inner,
        "parameters": {**(rest.get("parameters") or {}), **(inner.get("parameters") or {})},
    }


def _tokenizer(top: Mapping[str, Any]) -> tuple[str, int, dict[str, TokenSource]]:
    """Return the tokenizer's source, what its size is rounded up to (0: nothing), and tokens."""
    if top.get("tokenizer") and top.get("tokenizer_source"):
        raise ConfigError("give either `tokenizer` or `tokenizer_source`")
    section = {} if top.get("tokenizer") is None else top["tokenizer"]
    part = _mapping(section, "tokenizer", TOKENIZER_KEYS, required=())
    multiple = part.get("pad_to_multiple_of") or 0
    if _whole(multiple, "tokenizer: pad_to_multiple_of") < 0:
        raise ConfigError(
            f"tokenizer: pad_to_multiple_of must be a positive whole number, got {multiple!r}"
        )
    tokens = {} if part.get("tokens") is None else part["tokens"]
    if not isinstance(tokens, dict):
        raise ConfigError(
            f"tokenizer: tokens must be TOKEN: {{source: ...}} entries, got {tokens!r}"
        )
    source = str(part.get("source") or top.get("tokenizer_source") or "")
    sources = {str(token): _token_source(str(token), entry) for token, entry in tokens.items()}
    return source or ("base" if sources else ""), int(multiple), sources


def _token_source(token: str, entry: Any) -> TokenSource:
    """Return where a token's embedding comes from: a model, another token, or zeros.

    In the recipe these are a label, {kind: model_token, ...} and {kind: zero}.
    """
    where = f"tokenizer: tokens: {token}"
    part = _mapping(entry, where, ("source", "force"), required=("source",))
    source, force = part["source"], part.get("force", False)
    if not isinstance(force, bool):
        raise ConfigError(f"{where}: force must be true or false, got {force!r}")
    if isinstance(source, str):
        return TokenSource(model=source, token=token, force=force)
    kind = source.get("kind") if isinstance(source, dict) else source
    if kind not in TOKEN_KINDS:
        raise ConfigError(
            f"{where}: source must be a model, or have kind {' or '.join(TOKEN_KINDS)}; got "
            f"{source!r}"
        )
    content = _mapping(
        source, where, TOKEN_KINDS[kind], required=("model",) if kind == "model_token" else ()
    )
    if kind == "zero":
        return TokenSource(force=force)
    if (content.get("token") is None) == (content.get("token_id") is None):
        raise ConfigError(f"{where}: give either token or token_id")
    by_id = content.get("token") is None
    other = _whole(content["token_id"], f"{where}: token_id") if by_id else str(content["token"])
    return TokenSource(model=str(content["model"]), token=other, force=force)


def _slice_source(entry: Any) -> SliceSource:
    part = _mapping(
        entry, "sources", ("model", "layer_range", "parameters"), required=("model", "layer_range")
    )
    bounds = part["layer_range"]
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ConfigError(f"layer_range must be [from, to) as two whole numbers, got {bounds!r}")
    first, last = (_whole(bound, "layer_range: each bound") for bound in bounds)
    return SliceSource(
        model=_label(part["model"], "sources"),
        layer_range=(first, last),
        parameters=_parameters(part),
    )


def _label(value: Any, where: str) -> str:
    """Return a model's label. Raises ConfigError for anything but text, such as a revision."""
    if isinstance(value, (dict, list, bool)):
        raise ConfigError(f"{where}: a model is named by its directory, as text; got {value!r}")
    return str(value)


def _whole(value: Any, where: str) -> int:
    """Return a whole number, however it is written. Raises ConfigError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise ConfigError(f"{where} must be a whole number, got {value!r}")
    return int(value)


def _mapping(
    value: Any, where: str, known: tuple[str, ...], required: tuple[str, ...]
) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: KEY: VALUE entries expected, got {value!r}")
    for key in value:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key '{key}'{did_you_mean(str(key), known)}; known: "
                f"{', '.join(known)}"
            )
    for key in required:
        if not value.get(key):
            raise ConfigError(f"{where}: '{key}' is missing")
    return value


def _parameters(part: Mapping[str, Any]) -> Parameters:
    value = {} if part.get("parameters") is None else part["parameters"]
    if not isinstance(value, dict):
        raise ConfigError(f"parameters must be KEY: VALUE entries, got {value!r}")
    return dict(value)


def _filled(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if value != {} and value != []}
