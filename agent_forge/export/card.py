"""The model card: the content of a checkpoint's manifest as the README.md that model hubs show."""

import json
from pathlib import Path
from typing import Any

from agent_forge.export import Exported

MARK = "Exported by Agent Forge"  # a folder whose card holds this may be written again
USES = {
    "gguf": "llama-cli -m {file} -cnv",
    "ollama": "ollama create agent -f Modelfile && ollama run agent",
    "hf": "AutoModelForCausalLM.from_pretrained({file!r})",
    "lora": "llama-cli -m BASE.gguf --lora {file} -cnv",
    "packed": "agent_forge.runtime.load({file!r}).generate(ids, max_new_tokens=64)",
}


def text(source: Path, file: str, done: Exported) -> str:
    """Return the card of an export. file: what its user opens, a file or a folder."""
    manifest = _manifest(source)
    name = manifest.get("name") or source.name
    parts = [
        "---", "library_name: transformers", "tags: [agent-forge]", "pipeline_tag: text-generation",
        "---",
        f"# {name}", "",
        f"{MARK} from the checkpoint `{source.name}`{_identity(manifest)}, "
        f"format {done.format}, type {done.type}.",
        "", "## Use", "```", USES[done.format].format(file=file), "```",
        _chat_format(source), "",
        "## What the export did", *(f"- {line}" for line in done.lines),
    ]  # fmt: skip
    if done.check:
        parts += [
            "",
            "## Check against llama.cpp",
            *(f"- {key}: {_short(value)}" for key, value in done.check.items()),
        ]
    if manifest.get("metrics"):
        parts += [
            "",
            "## Measured on the checkpoint",
            *(f"- {k}: {_short(v)}" for k, v in manifest["metrics"].items()),
        ]
    if manifest.get("parents"):
        parts += [
            "",
            "## Parents",
            *(f"- {p['name']} ({p['phase']}, id {p['id']})" for p in manifest["parents"]),
        ]
    return "\n".join(parts) + "\n"


def _chat_format(source: Path) -> str:
    """Return how turns are written: by the model's chat template, or else in ChatML."""
    file = source / "chat_template.jinja"
    config = source / "tokenizer_config.json"
    template = file.read_text(encoding="utf-8") if file.is_file() else ""
    if not template and config.is_file():
        template = str(json.loads(config.read_text(encoding="utf-8")).get("chat_template") or "")
    if template and "<|im_start|>" not in template:
        return "Chat format: the model's own chat template, in its tokenizer."
    return "Chat format: ChatML (`<|im_start|>role`, newline, content, `<|im_end|>`)."


def _identity(manifest: dict[str, Any]) -> str:
    if not manifest:
        return ""
    return f" (id {manifest['id']}, phase {manifest['phase']}, seed {manifest['seed']})"


def _manifest(source: Path) -> dict[str, Any]:
    path = source / "forge.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, dict) else str(value)
