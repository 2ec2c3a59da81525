"""Export one checkpoint in one format, for `forge export`."""

import json
from pathlib import Path
from typing import Any

from agent_forge import checkpoint
from agent_forge.checkpoint import atomic
from agent_forge.core.errors import ConfigError, GateError, did_you_mean
from agent_forge.export import FORMATS, Exported, card

DEFAULT_TYPES = {
    "gguf": "Q8_0", "ollama": "Q8_0", "hf": "BF16", "packed": "codes", "lora": "F32",
}  # fmt: skip
# Ollama's template language is Go's. This writes what data/chat_template.py's CHAT_TEMPLATE writes;
# Ollama offers tools to a model whose template names .Tools, and finds the tag of calls as the first
# text within .ToolCalls: the line end before a call is therefore an expression, not text.
_SCHEMA = (
    '{"type": "function", "function": {"name": {{ json .Function.Name }}, '
    '"description": {{ json .Function.Description }}, '
    '"parameters": {{ json .Function.Parameters }}}}'
)
_CALL = (
    '<tool_call>{"name": {{ json .Function.Name }}, '
    '"arguments": {{ json .Function.Arguments }}}</tool_call>'
)
CHATML = (
    'TEMPLATE """{{- if .Tools }}<|im_start|>system\n'
    "{{ if .System }}{{ .System }}\n{{ end }}You may call these tools: <tools>["
    "{{- range $i, $_ := .Tools }}{{ if $i }}, {{ end }}" + _SCHEMA + "{{ end -}}"
    "]</tools><|im_end|>\n{{ end }}"
    '{{- range .Messages }}{{- if not (and $.Tools (eq .Role "system")) }}<|im_start|>{{ .Role }}\n'
    '{{ if eq .Role "tool" }}<tool_response>{{ .Content }}</tool_response>'
    "{{ else }}{{ .Content }}{{ end }}{{- $content := .Content }}"
    "{{- range $i, $_ := .ToolCalls }}"
    '{{ if or $content $i }}{{ "\\n" }}{{ end }}' + _CALL + "{{ end }}<|im_end|>\n{{ end }}"
    '{{- end }}<|im_start|>assistant\n"""\n'
    'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|im_start|>"\n'
)
TURN = "<|im_start|>"


def export(
    source: Path,
    out: Path,
    format_name: str,
    kind: str = "",
    *,
    check: bool = False,
    llama_python: str = "",
) -> Exported:
    """Write `out`: a file for gguf, lora and packed, a folder for hf and ollama.

    Raises ConfigError for an unknown format or type and for a model the format cannot hold,
    CheckpointError for a folder without a readable config.json, GateError when the check finds
    other logits than the file's weights give.
    """
    from agent_forge.models.storage import refuse_remote_code

    if format_name not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigError(
            f"no format '{format_name}'{did_you_mean(format_name, FORMATS)}; known: {known}"
        )
    if not source.is_dir():
        checkpoint.open(source)  # raises, and names what may be meant
    refuse_remote_code(source)
    if check and format_name not in ("gguf", "ollama"):
        raise ConfigError(
            f"--check compares a GGUF file with llama.cpp; format {format_name} writes none"
        )
    _refuse_to_replace(source, out, is_folder=format_name in ("hf", "ollama"))
    _refuse_sub_norm(source)
    kind = kind or DEFAULT_TYPES[format_name]
    done = _WRITERS[format_name](source, out, kind)
    if check:
        from agent_forge.export.check import compare

        file = (
            out
            if format_name == "gguf"
            else Path(next(name for name in done.files if name.endswith(".gguf")))
        )
        comparison = compare(source, file, python=llama_python)
        done.check = comparison.as_dict()
    _write_card(source, out, done)
    if (
        done.check
        and not done.check["passed"]
        and done.check["rounding_error"] > done.check["limit"]
    ):
        raise GateError(
            f"the weights of {out} make a model that is too unstable to compare: "
            "llama.cpp's rounding of activations alone "
            f"moves its logits by {done.check['rounding_error']:.3g} of their size. "
            f"{kind} does not fit this checkpoint; "
            "try --type Q8_0"
        )
    if done.check and not done.check["passed"]:
        raise GateError(
            f"llama.cpp does not give the logits of {out}: relative error "
            f"{done.check['file_error']:.3g}, same tokens: "
            f"{done.check['same_tokens']}; do not use the file, and report this"
        )
    return done


def _refuse_to_replace(source: Path, out: Path, *, is_folder: bool) -> None:
    """Raise ConfigError when `out` lies in the checkpoint or was not written by an export."""
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise ConfigError(
            f"--out {out} is in the checkpoint itself, which an export leaves as it is; "
            "name another place"
        )
    if not is_folder:
        if out.is_dir():
            raise ConfigError(
                f"--out {out} is a folder, and this format is one file; name a file in it"
            )
        return
    if out.is_file():
        raise ConfigError(f"--out {out} is a file, and this format is a folder; name a folder")
    if out.is_dir() and any(out.iterdir()) and not _is_export(out):
        raise ConfigError(
            f"--out {out} holds files that no export wrote, and they would be lost; name a "
            "new folder"
        )


def _refuse_sub_norm(source: Path) -> None:
    """Raise ConfigError where ternary layers normalise their input, which no format holds."""
    content = json.loads((source / "config.json").read_text(encoding="utf-8"))
    places = (content, content.get("base_config") or {})
    if any((place.get("quantization_config") or {}).get("sub_norm") for place in places):
        raise ConfigError(
            "no format that forge exports holds this model, whose ternary layers normalise their "
            "input; use the checkpoint itself, or make it again with linear.sub_norm=[]"
        )


def _is_export(folder: Path) -> bool:
    card_file = folder / "README.md"
    return card_file.is_file() and card.MARK in card_file.read_text(
        errors="replace", encoding="utf-8"
    )


def _gguf(source: Path, out: Path, kind: str) -> Exported:
    from agent_forge.export import gguf_file

    written = gguf_file.write(source, out, kind)
    return Exported("gguf", kind, [str(out)], written.size_bytes, written.lines, written.tensors)


def _ollama(source: Path, out: Path, kind: str) -> Exported:
    done = _gguf(source, out / "model.gguf", kind)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    context = config.get("base_config", config).get("max_position_embeddings", 2048)
    notes = [] if _speaks_chatml(source) else [OTHER_TEMPLATE]
    text = f"FROM ./model.gguf\n{'' if notes else CHATML}PARAMETER num_ctx {context}\n"
    atomic.write_bytes(out / "Modelfile", text.encode())
    files, lines = [*done.files, str(out / "Modelfile")], [*done.lines, *notes]
    return Exported("ollama", kind, files, done.size_bytes, lines, done.tensors)


OTHER_TEMPLATE = (
    "this model's chat format is not ChatML: the Modelfile has no template, and Ollama "
    "goes by the one in model.gguf"
)


def _speaks_chatml(source: Path) -> bool:
    """Return whether turns are written in ChatML.

    They are where the tokenizer has its tokens and the chat template, if any, uses them.
    """
    from agent_forge import models

    tokenizer = models.load_tokenizer(source)
    template: Any = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    return TURN in tokenizer.get_vocab() and (not template or TURN in template)


def _hf(source: Path, out: Path, kind: str) -> Exported:
    from agent_forge.export import hf_folder

    lines = hf_folder.write(source, out, kind)
    files = sorted(str(path) for path in out.iterdir())
    return Exported("hf", kind, files, sum(Path(f).stat().st_size for f in files), lines)


def _packed(source: Path, out: Path, kind: str) -> Exported:
    from agent_forge.runtime.loading import load, save
    from agent_forge.runtime.shape import UnsupportedModelError

    if kind != "codes":
        raise ConfigError(
            f"the packed format keeps the checkpoint's own codes; leave --type away, got {kind}"
        )
    try:
        model = load(source)
    except UnsupportedModelError as error:
        # A Hugging Face folder does not hold these either.
        raise ConfigError(
            f"{str(error).removesuffix('; use engine=torch')}; use --format hf"
        ) from error
    size = save(model, out)
    return Exported(
        "packed", kind, [str(out)], size, [f"{len(model.matrices)} matrices", *model.notes]
    )


def _lora(source: Path, out: Path, kind: str) -> Exported:
    from agent_forge.export import lora_file

    lines = lora_file.write(source, out, kind)
    return Exported("lora", kind, [str(out)], out.stat().st_size, lines)


_WRITERS = {"lora": _lora, "gguf": _gguf, "ollama": _ollama, "hf": _hf, "packed": _packed}


def _write_card(source: Path, out: Path, done: Exported) -> None:
    """Write README.md into a folder, or <file>.md beside a file."""
    file = "model.gguf" if done.format == "ollama" else out.name
    content = card.text(source, file, done)
    path = out / "README.md" if out.is_dir() else out.with_name(f"{out.name}.md")
    atomic.write_bytes(path, content.encode())
    done.files.append(str(path))
